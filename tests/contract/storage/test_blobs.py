"""Objects appear whole or not at all, and never change, wherever they are kept."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.s3 import S3Server

from shortstack.core.errors import Conflict, Invalid, NotFound, Poison, Transient
from shortstack.storage.blobs import BlobStore, FileBlobStore, MemoryBlobStore

LARGE = 40 * 1024 * 1024  # what a remote store sends in parts


@pytest.fixture(params=["file", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    """Every kind of store, empty."""
    if request.param == "file":
        return FileBlobStore(tmp_path / "blobs")
    if request.param == "memory":
        return MemoryBlobStore()
    server: S3Server = request.getfixturevalue("s3")
    bucket = f"bucket-{uuid.uuid4().hex}"
    server.make_bucket(bucket)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return BlobStore.open(f"s3://{bucket}/some/prefix")


class UnreadablePath(type(Path())):
    """A file on a disk that breaks after 20 MiB."""

    def open(self, *_: Any, **__: Any) -> Any:
        left = [20 * 1024 * 1024]

        class Broken(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                if left[0] <= 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                left[0] -= len(buffer)
                return len(buffer)

        return io.BufferedReader(Broken(), 1024 * 1024)


def test_what_was_put_is_there(blobs: BlobStore) -> None:
    assert not blobs.exists("a/b")
    blobs.put("a/b", b"content")
    assert blobs.exists("a/b")
    assert blobs.get("a/b") == b"content"
    assert blobs.size("a/b") == 7
    with blobs.stream("a/b") as source:
        assert (source.read(3), source.read()) == (b"con", b"tent")


def test_an_empty_object_is_an_object(blobs: BlobStore) -> None:
    blobs.put("empty", b"")
    assert (blobs.exists("empty"), blobs.size("empty"), blobs.get("empty")) == (True, 0, b"")


def test_the_same_bytes_again_change_nothing_and_others_are_refused(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put("a", b"one")
    blobs.put("a", b"one")
    with pytest.raises(Conflict, match="other bytes"):
        blobs.put("a", b"two")
    (tmp_path / "two").write_bytes(b"two")
    with pytest.raises(Conflict):
        blobs.put_file("a", tmp_path / "two")
    assert blobs.get("a") == b"one"


def test_a_file_goes_in_and_comes_out(blobs: BlobStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 12_000  # 3 pieces
    (tmp_path / "source").write_bytes(content)
    blobs.put_file("big", tmp_path / "source")
    blobs.put_file("big", tmp_path / "source")
    target = tmp_path / "new folder" / "target"
    blobs.fetch("big", target, sha256=hashlib.sha256(content).hexdigest())
    assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_large_file_goes_in_and_comes_out(blobs: BlobStore, tmp_path: Path) -> None:
    content = os.urandom(LARGE + 1)
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "other").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    blobs.put_file("large", tmp_path / "source")
    blobs.put_file("large", tmp_path / "source")
    with pytest.raises(Conflict, match="other bytes"):
        blobs.put_file("large", tmp_path / "other")
    assert blobs.size("large") == LARGE + 1
    blobs.fetch("large", tmp_path / "target", sha256=hashlib.sha256(content).hexdigest())
    with blobs.stream("large") as source:
        source.seek(-5, io.SEEK_END)
        assert (source.read(), source.seek(10), source.read(5)) == (content[-5:], 10, content[10:15])
        assert source.read() == content[15:]


def test_a_source_that_breaks_while_it_is_read_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    for size in (LARGE, 25 * 1024 * 1024):  # in parts, and at once
        broken = UnreadablePath(tmp_path / "source")
        with Path(broken).open("wb") as file:
            file.truncate(size)
        with pytest.raises((Transient, OSError), match="Input/output error"):
            blobs.put_file("a", broken)
        assert not blobs.exists("a")
    blobs.put("a", b"content")
    assert blobs.get("a") == b"content"


@pytest.mark.parametrize(
    "key", ["with space/ümlaut", "a%20b", "a#b?c=d&e", "~[]*^`|<>{}\"'", "a+b=c@d:e", "日本/x.json"]
)
def test_every_printable_key_keeps_its_name(blobs: BlobStore, key: str) -> None:
    blobs.put(key, b"x")
    assert (blobs.get(key), blobs.size(key)) == (b"x", 1)
    assert blobs.delete_prefix(key) == 1
    assert not blobs.exists(key)


def test_a_damaged_object_does_not_arrive(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put("a", b"content")
    target = tmp_path / "out" / "target"
    with pytest.raises(Poison, match="expected 0000"):
        blobs.fetch("a", target, sha256="0" * 64)
    assert list(target.parent.iterdir()) == []


def test_what_is_not_there_is_named(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put("folder/object", b"x")
    for key in ("nothing", "folder", "folder/object/below"):
        assert not blobs.exists(key)
        for ask in (blobs.get, blobs.stream, blobs.size):
            with pytest.raises(NotFound, match=key):
                ask(key)
    with pytest.raises(NotFound):
        blobs.fetch("nothing", tmp_path / "x")


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\nb", "x" * 256, ".incoming/a"]
)
def test_a_key_cannot_leave_the_store(blobs: BlobStore, key: str) -> None:
    for act in (blobs.get, blobs.exists, blobs.size, blobs.delete_prefix, blobs.local_path):
        with pytest.raises(Invalid, match="not an object key"):
            act(key)
    with pytest.raises(Invalid):
        blobs.put(key, b"x")


def test_a_prefix_is_deleted_as_a_folder_not_as_letters(blobs: BlobStore) -> None:
    for key in ("p/a/1", "p/a/2/3", "p/ab", "p/a.txt", "q"):
        blobs.put(key, b"x")
    assert blobs.delete_prefix("p/a") == 2
    assert [key for key in ("p/a/1", "p/a/2/3", "p/ab", "p/a.txt", "q") if blobs.exists(key)] == [
        "p/ab",
        "p/a.txt",
        "q",
    ]
    assert blobs.delete_prefix("q") == 1
    assert blobs.delete_prefix("never/was") == 0
    blobs.put("p/a/1", b"another")  # forgotten, so free again
    assert blobs.get("p/a/1") == b"another"


def test_of_writers_at_once_one_wins_and_nothing_is_mixed(blobs: BlobStore) -> None:
    together = threading.Barrier(8)
    outcomes: list[str] = []

    def write(content: bytes) -> None:
        together.wait(10)
        try:
            blobs.put("race", content)
            outcomes.append("stored")
        except Conflict:
            outcomes.append("refused")

    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["refused"] * 7 + ["stored"]
    assert blobs.get("race") in contents


def test_only_files_have_a_path(blobs: BlobStore) -> None:
    blobs.put("a/b", b"x")
    path = blobs.local_path("a/b")
    assert path is None or path.read_bytes() == b"x"
    assert (path is not None) == isinstance(blobs, FileBlobStore)
