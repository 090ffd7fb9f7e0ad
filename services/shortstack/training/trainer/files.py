"""Files that are whole or absent: atomic writes, digests, and manifests written last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shortstack.core.digest import canonical_json, file_sha256, sha256_hex

__all__ = ["digest_of", "file_digests", "sync_tree", "verified", "write_atomic", "write_json"]


def write_atomic(path: Path, data: bytes) -> None:
    """Writes under a temporary name, syncs, renames, and syncs the folder: afterwards it is there, or is not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of JSON with sorted keys, so that equal values are equal files."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def file_digests(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """``{relative path: sha256}`` of every file below ``folder``, sorted by path."""
    out = set(leave_out)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_sha256(path) for name, path in names.items() if name not in out}


def digest_of(files: dict[str, str]) -> str:
    """One SHA-256 over a set of files: of the canonical JSON of ``{path: sha256}``."""
    return sha256_hex(canonical_json(files))


def verified(folder: Path, files: dict[str, str]) -> bool:
    """Whether every named file is there with its digest."""
    return all((folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in files.items())


def sync_tree(folder: Path) -> None:
    """Makes every file and folder below ``folder`` durable; needed before a manifest may name them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
