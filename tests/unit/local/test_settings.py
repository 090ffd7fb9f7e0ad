from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.settings import LocalSettings


def test_a_wrong_value_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTSTACK_PORT_BASE", "abc")
    with pytest.raises(Fatal, match='SHORTSTACK_PORT_BASE: "abc" will not do') as caught:
        LocalSettings()
    assert "unset it" in caught.value.remedy


def test_the_environment_moves_the_whole_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHORTSTACK_VAR", str(tmp_path))
    monkeypatch.setenv("SHORTSTACK_PORT_BASE", "30000")
    monkeypatch.delenv("SHORTSTACK_KAFKA_BOOTSTRAP", raising=False)
    settings = LocalSettings()
    assert settings.run_folder == tmp_path / "run"
    assert settings.bootstrap == "127.0.0.1:30092"


def test_the_readme_names_every_setting_with_its_default() -> None:
    readme = (Path(__file__).parents[3] / "services" / "shortstack" / "local" / "README.md").read_text()
    for name, field in LocalSettings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        assert f"| `SHORTSTACK_{name.upper()}` | {default} | {field.description} |" in readme


def test_every_folder_means_the_stack_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHORTSTACK_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert LocalSettings().root == Path(__file__).resolve().parents[3] / "var"
    monkeypatch.setenv("SHORTSTACK_VAR", "var")
    assert LocalSettings().root == tmp_path / "var"
