"""Base models that are imported while a service runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from shortstack.core.clock import FakeClock, SystemClock
from shortstack.core.errors import NotFound
from shortstack.declarations.base_models import BaseModel
from shortstack.storage.blobs import FileBlobStore
from shortstack.storage.late_bases import LateBases
from shortstack.storage.weights import fetch_base, import_base


@pytest.fixture
def store(tmp_path: Path) -> FileBlobStore:
    return FileBlobStore(tmp_path / "store")


@pytest.fixture
def folders(tmp_path: Path, store: FileBlobStore) -> dict[str, Path]:
    """Folders of two base models: one there, one that nobody has imported."""
    import_base(store, "small", _model(tmp_path, "small"))
    fetch_base(store, "small", tmp_path / "bases" / "small", weights=False)
    return {name: tmp_path / "bases" / name for name in ("small", "large")}


def _model(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / f"model-{name}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def test_one_is_fetched_when_it_is_there_and_its_absence_is_said_once(
    store: FileBlobStore, folders: dict[str, Path], tmp_path: Path
) -> None:
    with capture_logs() as logs:
        late = LateBases(folders, store, structlog.get_logger(), FakeClock())
        late.look()
        late.look()
        with pytest.raises(NotFound, match="large"):
            BaseModel("large", folders["large"]).digest()
        import_base(store, "large", _model(tmp_path, "large"))
        late.look()
    assert [(entry["event"], entry["base_model"]) for entry in logs] == [
        ("going on without a base model", "large"),
        ("base model is there now", "large"),
    ]
    assert BaseModel("large", folders["large"]).digest() == BaseModel("large", tmp_path / "model-large").digest()
    assert not (folders["large"] / "model.safetensors").exists()


def test_beside_a_service_it_ends_when_all_are_there_or_when_it_stops(
    store: FileBlobStore, folders: dict[str, Path], tmp_path: Path
) -> None:
    waiting = LateBases(folders, store, structlog.get_logger(), SystemClock())
    waiting.start()
    waiting.stop(30)
    assert waiting.join(0)
    import_base(store, "large", _model(tmp_path, "large"))
    done = LateBases(folders, store, structlog.get_logger(), SystemClock())
    done.start()
    assert done.join(30)
    assert (waiting.failed, done.failed) == (None, None)
    assert (folders["large"] / "manifest.json").is_file()
