"""What only a store of files can do wrong, and what opening one says."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal, Transient
from shortstack.storage.blobs import BlobStore, FileBlobStore, MemoryBlobStore


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_stops_the_process_and_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    blobs = FileBlobStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Fatal, match=os.strerror(number)) as raised:
        blobs.put("a/b", b"content")
    assert "Free space" in raised.value.remedy
    monkeypatch.undo()
    assert not blobs.exists("a/b")
    assert files_of(tmp_path) == []
    blobs.put("a/b", b"content")
    assert blobs.get("a/b") == b"content"


def test_another_disk_error_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Transient, match="Input/output error"):
        FileBlobStore(tmp_path).put("a", b"x")


def test_content_is_durable_before_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def note_link(source: Path, target: Path) -> None:
        order.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    FileBlobStore(tmp_path).put("a", b"x")
    assert order == ["file", "link", "folder"]


def test_a_crash_between_leaves_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCut(BaseException):
        pass

    def cut(_source: Path, _target: Path) -> None:
        raise PowerCut

    blobs = FileBlobStore(tmp_path)
    monkeypatch.setattr(os, "link", cut)
    with pytest.raises(PowerCut):
        blobs.put("a/b", b"content")
    monkeypatch.undo()
    assert not blobs.exists("a/b")
    blobs.put("a/b", b"content")
    assert blobs.get("a/b") == b"content"


def test_a_relative_url_is_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blobs = BlobStore.open("file://var/blobs")
    blobs.put("a", b"x")
    monkeypatch.chdir("/")
    assert blobs.get("a") == b"x"
    assert (tmp_path / "var" / "blobs" / "a").read_bytes() == b"x"


def test_a_url_is_checked_when_it_is_opened() -> None:
    assert isinstance(BlobStore.open("memory://"), MemoryBlobStore)
    with pytest.raises(Fatal, match="no storage URL"):
        BlobStore.open("var/blobs")
    with pytest.raises(Fatal, match="nonsense"):
        BlobStore.open("nonsense://bucket/prefix")
