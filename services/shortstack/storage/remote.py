"""Objects in S3, Google Cloud Storage, Azure or whatever else fsspec has a driver for."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from shortstack.core.errors import Fatal, ShortstackError, Transient
from shortstack.storage.blobs import BlobStore, check_key, differs, missing, same_bytes

__all__ = ["RemoteBlobStore"]


class RemoteBlobStore(BlobStore):
    """Objects behind an fsspec file system whose single put is atomic, as those of S3, GCS and Azure are.

    Between the look whether a key is free and the put another writer may come in. Both then write what the key
    names; every key of the stack carries a digest of its content or has one writer, so they write the same.

    Args:
        filesystem: an ``fsspec.AbstractFileSystem``.
        root: bucket and prefix, without a slash at the end.
        url: for error messages.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._url = url

    @classmethod
    def connect(cls, url: str) -> RemoteBlobStore:
        """The store at ``url``; credentials come from the environment, as the driver documents.

        Raises:
            Fatal: there is no such scheme, or its driver is not installed.
        """
        try:
            # Listings are cached by default; an object another process has just written must be seen.
            filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise Fatal(f'cannot open "{url}": {error}', where="SHORTSTACK_STORAGE_URL") from error
        return cls(filesystem, root, url)

    def put(self, key: str, data: bytes) -> None:
        """See `BlobStore.put`."""
        if self._is_stored(key, lambda: io.BytesIO(data)):
            return
        with self._errors(key):
            self._fs.pipe_file(self._path(key), data)

    def put_file(self, key: str, path: Path) -> None:
        """See `BlobStore.put_file`."""
        if self._is_stored(key, lambda: path.open("rb")):
            return
        with self._errors(key), path.open("rb") as source, self._fs.open(self._path(key), "wb") as target:
            shutil.copyfileobj(source, target, 8 * 1024 * 1024)

    def stream(self, key: str) -> BinaryIO:
        """See `BlobStore.stream`."""
        with self._errors(key):
            return cast(BinaryIO, self._fs.open(self._path(key), "rb"))

    def get(self, key: str) -> bytes:
        """See `BlobStore.get`; one request."""
        with self._errors(key):
            return bytes(self._fs.cat_file(self._path(key)))

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        with self._errors(key):
            return bool(self._fs.isfile(self._path(key)))

    def size(self, key: str) -> int:
        """See `BlobStore.size`."""
        with self._errors(key):
            found = self._fs.info(self._path(key))
            if found["type"] != "file":
                raise missing(key)
            return int(found["size"])

    def delete_prefix(self, prefix: str) -> int:
        """See `BlobStore.delete_prefix`."""
        path = self._path(prefix)
        with self._errors(prefix):
            found = [] if not self._fs.exists(path) else list(self._fs.find(path))
            if found:
                self._fs.rm(found)
        return len(found)

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _is_stored(self, key: str, source: Callable[[], BinaryIO]) -> bool:
        if not self.exists(key):
            return False
        with self.stream(key) as there, source() as here:
            if not same_bytes(there, here):
                raise differs(key)
        return True

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """fsspec's drivers raise OSError's children where they can and their cloud library's own errors elsewhere."""
        try:
            yield
        except ShortstackError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise missing(key) from error  # the last three: it is a prefix of objects, or lies below an object
        except PermissionError as error:
            raise Fatal(f"no permission: {error}", where=self._url, remedy="Check its credentials.") from error
        except Exception as error:
            raise Transient(f"object store: {type(error).__name__}: {error}", where=self._url) from error
