"""Objects: immutable bytes under a key. No folder is listed to learn what is true.

An object appears whole or not at all, and never changes: the same bytes again are a no-op, other bytes a conflict.
So a crash, a retry, or two writers at once cannot leave anything half-written or overwritten.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from shortstack.core.errors import Conflict, Fatal, Invalid, NotFound, Poison, Transient

__all__ = ["BlobStore", "FileBlobStore", "MemoryBlobStore"]

_PIECE: Final = 1024 * 1024
_SEGMENT_BYTES: Final = 255
"""Longest part of a key, in bytes: what file systems take."""

_INCOMING: Final = ".incoming"
"""Folder of a file store for what is not whole yet; no key may start with it."""

_HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""System errors that trying again does not mend."""


class BlobStore(ABC):
    """An object store. Safe to share between threads and processes.

    Every method raises `Invalid` for a key that is no relative path of plain parts, `Transient` while the store is
    away, and `Fatal` where it can never work (disk full, no permission, no driver).
    """

    @staticmethod
    def open(url: str) -> BlobStore:
        """The store at ``url``: ``file://FOLDER`` (relative to the working folder), ``memory://``, or one of a cloud.

        To read an object, call `stream` or `get`.

        Raises:
            Fatal: the URL has no scheme or an unknown one, or the environment lacks what a cloud's store needs.
        """
        scheme, separator, rest = url.partition("://")
        if not separator:
            remedy = "Write file://FOLDER, s3://BUCKET/PREFIX, gs://… or az://…"
            raise Fatal(f'"{url}" is no storage URL', where="SHORTSTACK_STORAGE_URL", remedy=remedy)
        own: dict[str, Callable[[], BlobStore]] = {
            "file": lambda: FileBlobStore(Path(rest)),
            "memory": MemoryBlobStore,
        }
        if scheme in own:
            return own[scheme]()
        from shortstack.storage.remote import RemoteBlobStore  # its driver is wanted only here

        return RemoteBlobStore.connect(url)

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Stores ``data``, durably, before it returns.

        Raises:
            Conflict: other bytes stand there already.
        """

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Stores the content of a local file, in pieces; else as `put`."""

    @abstractmethod
    def stream(self, key: str) -> BinaryIO:
        """Opens an object for reading; the caller closes it.

        Raises:
            NotFound: there is no such object.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Its bytes.

        Raises:
            NotFound: there is no such object.
        """

    @abstractmethod
    def delete_prefix(self, prefix: str) -> int:
        """Deletes the object ``prefix`` and all objects below ``prefix/``; how many there were."""

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a local file; None if the store has no such thing. Never write to it."""
        check_key(key)
        return None

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            NotFound: there is no such object.
        """
        with self.stream(key) as source:
            return source.read()

    def fetch(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copies an object to ``path``, which appears whole or not at all.

        Args:
            key: of the object.
            path: a local file; its folder is created, an older file is replaced.
            sha256: 64 hex digits that the content must have.

        Raises:
            NotFound: there is no such object.
            Poison: the content has another digest.
        """
        digest = hashlib.sha256()
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.stream(key) as source, disk_errors(path), partial.open("wb") as target:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    target.write(piece)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise Poison(
                    f"object {key} has sha256 {digest.hexdigest()}, expected {sha256}",
                    remedy="It was damaged or is another one; delete it and make it again.",
                )
            with disk_errors(path):
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def check_key(key: str) -> str:
    """Returns ``key`` if it is one: parts of printable characters joined by single slashes.

    Raises:
        Invalid: it is empty, absolute, has an empty part, ``.`` or ``..``, a backslash, a control character, or a part
            of more than 255 bytes.
    """
    parts = key.split("/")
    bad = (
        any(part in ("", ".", "..") or len(part.encode()) > _SEGMENT_BYTES for part in parts)
        or parts[0] == _INCOMING
        or "\\" in key
        or not key.isprintable()
    )
    if bad:
        raise Invalid(f"{key!r} is not an object key", remedy="Expected plain parts joined by slashes, such as a/b/c.")
    return key


def missing(key: str) -> NotFound:
    """The error of an object that is not there."""
    return NotFound(f"there is no object {key}", remedy="It was deleted, never written, or lies in another store.")


def differs(key: str) -> Conflict:
    """The error of an object that would change."""
    return Conflict(f"object {key} exists with other bytes", remedy="Objects never change; write under another key.")


def same_bytes(one: BinaryIO, other: BinaryIO) -> bool:
    """Whether both hold the same bytes from here on."""
    while True:
        a, b = one.read(_PIECE), other.read(_PIECE)
        if a != b:
            return False
        if not a:
            return True


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a local disk's errors into `Fatal` (full, read-only, forbidden) and `Transient` (all others)."""
    try:
        yield
    except OSError as error:
        if error.errno in _HOPELESS:
            raise Fatal(
                f"cannot write: {error.strerror}",
                where=str(path),
                remedy="Free space there or give the process the right to write, then start it again.",
            ) from error
        raise Transient(f"disk error: {error.strerror or error}", where=str(path)) from error


class FileBlobStore(BlobStore):
    """Objects as files below one folder. Temporary name, fsync, link under the key, fsync of the folder.

    A hard link fails where the name exists, so of two writers at once exactly one wins, whatever they write.

    Args:
        root: the folder; created at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()

    def put(self, key: str, data: bytes) -> None:
        """See `BlobStore.put`."""
        self._store(key, lambda: io.BytesIO(data))

    def put_file(self, key: str, path: Path) -> None:
        """See `BlobStore.put_file`."""
        self._store(key, lambda: path.open("rb"))

    def stream(self, key: str) -> BinaryIO:
        """See `BlobStore.stream`."""
        path = self._path(key)
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise missing(key) from error

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        """See `BlobStore.size`."""
        if not self.exists(key):
            raise missing(key)
        return self._path(key).stat().st_size

    def delete_prefix(self, prefix: str) -> int:
        """See `BlobStore.delete_prefix`."""
        path = self._path(prefix)
        with disk_errors(path):
            if path.is_file():
                path.unlink()
                return 1
            if not path.is_dir():
                return 0
            count = sum(len(files) for _, _, files in os.walk(path))
            shutil.rmtree(path)
            return count

    def local_path(self, key: str) -> Path | None:
        """See `BlobStore.local_path`.

        Raises:
            NotFound: there is no such object.
        """
        if not self.exists(key):
            raise missing(key)
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _store(self, key: str, source: Callable[[], BinaryIO]) -> None:
        target = self._path(key)
        with disk_errors(target):
            if target.is_file():
                self._check_same(key, source)
                _fsync_folder(target.parent)  # whoever linked it may have died before this
                return
            partial = self._write_partial(source)
            try:
                _make_folders(target.parent)
                os.link(partial, target)
            except FileExistsError:
                self._check_same(key, source)
            finally:
                partial.unlink(missing_ok=True)
            _fsync_folder(target.parent)

    def _check_same(self, key: str, source: Callable[[], BinaryIO]) -> None:
        with self.stream(key) as there, source() as here:
            if not same_bytes(there, here):
                raise differs(key)

    def _write_partial(self, source: Callable[[], BinaryIO]) -> Path:
        folder = self._root / _INCOMING
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / uuid.uuid4().hex
        try:
            with source() as given, partial.open("xb") as file:
                shutil.copyfileobj(given, file, _PIECE)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial


def _make_folders(folder: Path) -> None:
    """Creates ``folder``; each new name is made durable in its parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class MemoryBlobStore(BlobStore):
    """Objects in a dict, for tests; keeps every promise but durability."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        """See `BlobStore.put`."""
        check_key(key)
        with self._lock:
            if self._objects.setdefault(key, bytes(data)) != data:
                raise differs(key)

    def put_file(self, key: str, path: Path) -> None:
        """See `BlobStore.put_file`."""
        self.put(key, path.read_bytes())

    def stream(self, key: str) -> BinaryIO:
        """See `BlobStore.stream`."""
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise missing(key)
        return io.BytesIO(data)

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        with self._lock:
            return check_key(key) in self._objects

    def size(self, key: str) -> int:
        """See `BlobStore.size`."""
        return len(self.get(key))

    def delete_prefix(self, prefix: str) -> int:
        """See `BlobStore.delete_prefix`."""
        check_key(prefix)
        with self._lock:
            found = [key for key in self._objects if key == prefix or key.startswith(prefix + "/")]
            for key in found:
                del self._objects[key]
        return len(found)

    def keys(self) -> list[str]:
        """Every key, sorted: for the assertions of tests."""
        with self._lock:
            return sorted(self._objects)
