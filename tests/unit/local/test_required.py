"""What a start needs is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.base_model import BASE_MODEL
from shortstack.local.doctor import doctor
from shortstack.local.required import require_base_model, setup_command
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import status, up


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("shortstack.local.stack.launch", started)
    for name in ("VAR", "BASE_MODELS", "KAFKA_BOOTSTRAP"):
        monkeypatch.delenv(f"SHORTSTACK_{name}", raising=False)


def test_a_second_stack_that_was_never_set_up_says_so_before_anything_is_started(tmp_path: Path) -> None:
    settings = LocalSettings(var=tmp_path / "second stack", port_base=21000)
    with pytest.raises(Fatal, match="never converted") as caught:
        up(settings)
    assert f"SHORTSTACK_VAR='{tmp_path}/second stack' make setup" in caught.value.remedy
    assert "Remove" not in caught.value.remedy
    assert all(line.state == "stopped" for line in status(settings))


def test_doctor_says_the_same_and_removes_only_what_is_there(tmp_path: Path) -> None:
    settings = LocalSettings(var=tmp_path)
    made = f"`SHORTSTACK_VAR={tmp_path} make setup`"
    assert made in _remedy(settings)
    assert "Remove" not in _remedy(settings)
    folder = tmp_path / "models" / BASE_MODEL
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert f"Remove {folder}, then make it anew: {made}" in _remedy(settings)


def test_the_checkout_s_own_stack_needs_no_naming() -> None:
    assert setup_command(LocalSettings()) == "make setup"


def test_declared_base_models_are_looked_at_instead_of_the_packaged_one(tmp_path: Path) -> None:
    settings = LocalSettings(var=tmp_path, base_models=f'{{"mine": "{tmp_path}/mine"}}')
    with pytest.raises(Fatal, match=f"base model mine: there is no config.json in {tmp_path}/mine") as caught:
        require_base_model(settings)
    assert "SHORTSTACK_BASE_MODELS" in caught.value.remedy
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert require_base_model(settings).startswith("mine at ")


def _remedy(settings: LocalSettings) -> str:
    finding = next(finding for finding in doctor(settings) if finding.check == "base model")
    assert not finding.ok
    return finding.remedy
