"""Exports on local disk, where a server reads them: fetched by digest, checked, whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Poison
from shortstack.messages.v1.training_pb2 import Export
from shortstack.storage.blobs import BlobStore

__all__ = ["FetchedExport", "fetch_export"]

_MANIFEST: Final = "export.manifest.json"
_PARTS: Final = ("adapter/", "merged/tokenizer", "merged/special_tokens", "probes.json")


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


def fetch_export(blobs: BlobStore, export: Export, root: Path) -> FetchedExport:
    """Fetches what serving needs of an export (adapter, tokenizer, probes) to ``root/DIGEST``, once.

    Raises:
        Poison: the manifest or a file is not the one that training named.
        NotFound: an object is missing.
    """
    target = root / export.digest
    if (target / _MANIFEST).is_file():
        return FetchedExport(target)
    text = blobs.get(export.manifest)
    if sha256_hex(text) != export.manifest_sha256:
        raise Poison("the export's manifest is not the one that training named", where=export.manifest)
    manifest = orjson.loads(text)
    if manifest["digest"] != export.digest:
        raise Poison("the export's manifest names another digest", where=export.manifest)
    building = root / f".{export.digest}"
    shutil.rmtree(building, ignore_errors=True)
    for name, entry in manifest["files"].items():
        if name.startswith(_PARTS):
            blobs.fetch(f"{export.prefix}/{name}", building / name, entry["sha256"])
    (building / _MANIFEST).write_bytes(text)
    shutil.rmtree(target, ignore_errors=True)
    building.replace(target)
    return FetchedExport(target)
