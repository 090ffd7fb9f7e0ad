"""API keys as text: ``sk-ss-`` and 55 characters of which the last 43 hold 256 random bits. Pure."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Fatal, Invalid, did_you_mean

__all__ = ["SCOPES", "Principal", "check_key", "digest_of", "new_key", "prefix_of", "read_scopes"]

_MARK: Final = "sk-ss-"
_LOOKUP: Final = 12
_SECRET: Final = 43
"""Characters of base64 that hold 256 bits."""

SCOPES: Final = ("chat", "datasets", "admin")
"""What a key may do: talk to models; upload files, train and see jobs; manage keys. Admin may do all."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        key_id: id of the key, for logs and usage; never the key.
        owner: whose files, jobs and models it sees.
        scopes: some of `SCOPES`.
    """

    key_id: str
    owner: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether it has ``scope``, or admin."""
        return scope in self.scopes or "admin" in self.scopes


def new_key() -> str:
    """A key that nobody can guess."""
    return f"{_MARK}{secrets.token_hex(_LOOKUP // 2)}{secrets.token_urlsafe(32)}"


def prefix_of(key: str) -> str | None:
    """What finds the key's row; None if it does not look like a key of ours."""
    if not key.startswith(_MARK) or len(key) < len(_MARK) + _LOOKUP + _SECRET or not key.isascii():
        return None
    return key[: len(_MARK) + _LOOKUP]


def digest_of(key: str) -> str:
    """SHA-256 of the key, in hex: all that is stored of its secret part."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_key(key: str, *, where: str) -> str:
    """Returns ``key`` if it has the form of a key.

    Raises:
        Fatal: it does not; the key is not repeated.
    """
    if prefix_of(key) is None:
        raise Fatal(
            f'the key does not have the form "{_MARK}" and at least {_LOOKUP + _SECRET} more ASCII characters',
            where=where,
            remedy="Make one: python -c 'import secrets; print(\"sk-ss-\" + secrets.token_urlsafe(42))'",
        )
    return key


def read_scopes(values: list[str]) -> frozenset[str]:
    """Scopes by name.

    Raises:
        Invalid: none, or an unknown one; names the nearest.
    """
    for value in values:
        if value not in SCOPES:
            raise Invalid(f'scope "{value}" is unknown', remedy=did_you_mean(value, SCOPES), param="scopes")
    if not values:
        raise Invalid("a key needs a scope", remedy=did_you_mean("", SCOPES), param="scopes")
    return frozenset(values)
