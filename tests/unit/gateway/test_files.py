"""Uploads on their way in: what a gateway that was killed leaves is removed, what is under way is not."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shortstack.core.clock import FakeClock
from shortstack.gateway.database import open_database
from shortstack.gateway.files.store import FileStore
from shortstack.storage.blobs import MemoryBlobStore

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = 3600


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """With an upload that was abandoned two hours ago, and one of a minute ago."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    for name, age in (("abandoned", 2 * HOUR), ("under-way", 60)):
        (uploads / name).write_bytes(b"{}\n")
        os.utime(uploads / name, times=(NOW.timestamp() - age,) * 2)
    return FileStore(open_database("sqlite://"), MemoryBlobStore(), uploads, FakeClock(NOW))


def test_an_upload_that_nobody_will_end_is_removed(store: FileStore, tmp_path: Path) -> None:
    assert store.clear_abandoned() == 1
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["under-way"]
    assert store.clear_abandoned() == 0


def test_the_next_upload_makes_room_first(store: FileStore, tmp_path: Path) -> None:
    store.incoming().write_bytes(b"new")
    assert "abandoned" not in {path.name for path in (tmp_path / "uploads").iterdir()}


def test_a_gateway_that_has_had_no_upload_yet_has_nothing_to_remove(tmp_path: Path) -> None:
    store = FileStore(open_database("sqlite://"), MemoryBlobStore(), tmp_path / "none", FakeClock(NOW))
    assert store.clear_abandoned() == 0
