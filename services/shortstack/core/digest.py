"""Canonical JSON and the digests that identities are made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import orjson

__all__ = ["IDENTITY_HEX", "canonical_json", "file_sha256", "identity", "sha256_hex"]

IDENTITY_HEX: Final = 32
"""Hex digits of an identity: 128 bits of SHA-256, beyond any chance of two alike."""


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(*parts: Any) -> str:
    """The identity of ``parts``: SHA-256 over their canonical JSON, cut to `IDENTITY_HEX` digits."""
    return sha256_hex(canonical_json(list(parts)))[:IDENTITY_HEX]
