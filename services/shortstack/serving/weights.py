"""Exports on the disk of the serving service: fetched by digest, checked, whole or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.errors import Poison
from shortstack.messages.v1.training_pb2 import Export
from shortstack.storage import weights
from shortstack.storage.blobs import BlobStore

__all__ = ["ADAPTER_AND_WORDS", "WORDS", "FetchedExport", "fetch_export"]

_MANIFEST: Final = "export.manifest.json"
WORDS: Final = ("merged/tokenizer", "merged/special_tokens", "probes.json")
"""What rendering and proving need."""
ADAPTER_AND_WORDS: Final = ("adapter/", *WORDS)
"""What the embedded server needs beside."""


class FetchedExport:
    """An export in a local folder that carries its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter; None for a model that was trained in all its parameters."""
        folder = self.folder / "adapter"
        return folder if folder.is_dir() else None

    @property
    def tokenizer(self) -> Path:
        """Folder with tokenizer.json and tokenizer_config.json."""
        return self.folder / "merged"

    def probes(self) -> Mapping[str, Any]:
        """Content of probes.json."""
        content: Mapping[str, Any] = orjson.loads((self.folder / "probes.json").read_bytes())
        return content


def fetch_export(blobs: BlobStore, export: Export, root: Path, parts: Sequence[str]) -> FetchedExport:
    """Fetches parts of an export to ``root/DIGEST``, once; later calls ask the object store nothing.

    Raises:
        Poison: the manifest or a file is not the one that training named.
        NotFound: an object is missing.
    """
    target = root / export.digest
    if not (target / _MANIFEST).is_file():
        weights.fetch_export(blobs, export.manifest, export.manifest_sha256, target, parts)
    if orjson.loads((target / _MANIFEST).read_bytes())["digest"] != export.digest:
        raise Poison("the export's manifest names another digest", where=export.manifest)
    return FetchedExport(target)
