"""Pinning: a source's bytes are copied into the object store under their digest before anything is read from them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shortstack.core.errors import Invalid
from shortstack.ingestion.sources.policy import Address
from shortstack.storage.blobs import BlobStore, disk_errors

__all__ = ["Pinned", "Pins", "source_object"]

_PIECE: Final = 1024 * 1024


def source_object(owner: str, sha256: str) -> str:
    """Object key of a pinned source."""
    return f"sources/{owner}/{sha256}"


@dataclass(frozen=True, slots=True)
class Pinned:
    """A source in the object store.

    Attributes:
        uri: where it came from.
        key: object key.
        sha256: of its bytes, 64 hex digits.
        size: in bytes.
    """

    uri: str
    key: str
    sha256: str
    size: int


class Pins:
    """Copies sources into the object store, and gives them back as local files.

    Args:
        blobs: the object store.
        folder: for copies on local disk while a source is worked on.
        max_bytes: of one source.
    """

    def __init__(self, blobs: BlobStore, folder: Path, max_bytes: int) -> None:
        self._blobs, self._folder, self._max_bytes = blobs, folder, max_bytes

    def pin(self, address: Address, owner: str) -> Pinned:
        """Copies a source, hashing it on the way; the same bytes are stored once.

        Raises:
            Invalid: it is larger than ``max_bytes``.
            Fatal: the disk is full.
        """
        with self.scratch() as scratch:
            path = scratch / "source"
            sha256, size = self._copy(address, path)
            key = source_object(owner, sha256)
            self._blobs.put_file(key, path)
        return Pinned(address.uri, key, sha256, size)

    def pin_bytes(self, data: bytes, owner: str, *, uri: str) -> Pinned:
        """Pins what came in a message."""
        sha256 = hashlib.sha256(data).hexdigest()
        key = source_object(owner, sha256)
        self._blobs.put(key, data)
        return Pinned(uri, key, sha256, len(data))

    def local(self, key: str, sha256: str, scratch: Path) -> Path:
        """A pinned source as a local file: the object itself where the store has files, else a copy in ``scratch``."""
        path = self._blobs.local_path(key)
        if path is not None:
            return path
        path = scratch / sha256
        if not path.exists():
            self._blobs.fetch(key, path, sha256)
        return path

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=self._folder, prefix="work-")
        with folder as path:
            yield Path(path)

    def copy(self, address: Address, path: Path) -> None:
        """Copies a source to ``path`` without pinning it, for a preview."""
        self._copy(address, path)

    def _copy(self, address: Address, path: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with address.open() as source, disk_errors(path), path.open("wb") as target:
            while piece := source.read(_PIECE):
                size += len(piece)
                if size > self._max_bytes:
                    raise Invalid(
                        f"{address.name} is larger than {self._max_bytes} bytes",
                        where=f"source {address.uri}",
                        remedy="Publish it in smaller files, or raise SHORTSTACK_SOURCE_MAX_BYTES.",
                        param="source.uri",
                    )
                digest.update(piece)
                target.write(piece)
        return digest.hexdigest(), size
