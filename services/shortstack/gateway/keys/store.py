"""Keys in the database, and the first key of a stack."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.engine import Row

from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, NotFound
from shortstack.core.identity import DEFAULT_OWNER
from shortstack.gateway.database import KEYS
from shortstack.gateway.keys.secret import SCOPES, Principal, check_key, digest_of, new_key, prefix_of

__all__ = ["DECLARED", "KeyRecord", "KeyStore", "ensure_first_key"]

DECLARED: Final = "bootstrap"
"""The name of a key that was declared; no other key is created by it."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is listed: without its secret."""

    id: str
    prefix: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    created_at: int
    revoked_at: int | None


class KeyStore:
    """Keys by id and prefix. Blocking: call it off the event loop.

    Args:
        engine: the database.
        clock: time.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def _now(self) -> int:
        return int(self._clock.now().timestamp())

    def verify(self, key: str) -> Principal | None:
        """Whose key it is; None if it is unknown or revoked. Digests are compared in constant time."""
        prefix = prefix_of(key)
        if prefix is None:
            return None
        with self._engine.connect() as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.prefix == prefix)).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, digest_of(key)) or row.revoked_at is not None:
            return None
        return Principal(row.id, row.owner, frozenset(row.scopes.split()))

    def create(self, name: str, owner: str, scopes: frozenset[str]) -> tuple[KeyRecord, str]:
        """A new key: what is listed of it, and the key itself, which is shown this once."""
        key = new_key()
        return self._insert(key, name, owner, scopes), key

    def listed(self) -> list[KeyRecord]:
        """All keys, the oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id)).all()
        return [_record(row) for row in rows]

    def revoke(self, key_id: str) -> None:
        """Ends a key for good.

        Raises:
            NotFound: there is no such key.
        """
        with self._engine.begin() as connection:
            changed = connection.execute(
                update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None)).values(revoked_at=self._now())
            ).rowcount
            known = connection.execute(select(KEYS.c.id).where(KEYS.c.id == key_id)).one_or_none()
        if not changed and known is None:
            raise NotFound(f'there is no key "{key_id}"', remedy="GET /v1/admin/keys lists them.", param="id")

    def is_revoked(self, key: str) -> bool:
        """Whether ``key`` is known, and revoked."""
        with self._engine.connect() as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.prefix == prefix_of(key))).one_or_none()
        return row is not None and hmac.compare_digest(row.digest, digest_of(key)) and row.revoked_at is not None

    def ensure(self, key: str, name: str) -> None:
        """Accepts ``key``, with every scope, for the default owner; also if it was revoked.

        Raises:
            Conflict: another key begins with the same characters.
        """
        with self._engine.begin() as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.prefix == prefix_of(key))).one_or_none()
            if row is not None and not hmac.compare_digest(row.digest, digest_of(key)):
                raise Conflict(
                    "another key begins with the same characters",
                    where=name,
                    remedy="Use a key whose first 12 characters after sk-ss- are random.",
                )
            if row is not None:
                connection.execute(update(KEYS).where(KEYS.c.id == row.id).values(revoked_at=None))
                return
        self._insert(key, name, DEFAULT_OWNER, frozenset(SCOPES))

    def declare(self, key: str) -> None:
        """Accepts ``key`` as `ensure` does, and ends every other one that was declared before it.

        Raises:
            Conflict: another key begins with the same characters.
        """
        self.ensure(key, DECLARED)
        before = (KEYS.c.name == DECLARED, KEYS.c.prefix != prefix_of(key), KEYS.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            connection.execute(update(KEYS).where(*before).values(revoked_at=self._now()))

    def _insert(self, key: str, name: str, owner: str, scopes: frozenset[str]) -> KeyRecord:
        record = KeyRecord(
            f"key-{secrets.token_hex(8)}", str(prefix_of(key)), name, owner, _ordered(scopes), self._now(), None
        )
        values = {
            "id": record.id,
            "prefix": record.prefix,
            "digest": digest_of(key),
            "name": name,
            "owner": owner,
            "scopes": " ".join(record.scopes),
            "created_at": record.created_at,
        }
        with self._engine.begin() as connection:
            connection.execute(insert(KEYS).values(values))
        return record


def ensure_first_key(store: KeyStore, declared: SecretStr | None, file: Path) -> None:
    """Makes sure that a new stack has a key: the declared one, else the one in ``file``, else a new one in ``file``.

    One in ``file`` that was revoked is replaced; a declared one is accepted anew, and ends those declared before it.
    The file is readable by its owner alone; the command line reads it there.

    Raises:
        Fatal: a key without the form of a key.
    """
    if declared is not None:
        store.declare(check_key(declared.get_secret_value(), where="SHORTSTACK_BOOTSTRAP_KEY"))
        return
    if file.is_file():
        known = check_key(file.read_text().strip(), where=str(file))
        # Revoked is revoked: the command line then gets another.
        if not store.is_revoked(known):
            store.ensure(known, "local")
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    key = new_key()
    store.ensure(key, "local")
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(f"{key}\n")
    partial.replace(file)


def _ordered(scopes: frozenset[str]) -> tuple[str, ...]:
    return tuple(scope for scope in SCOPES if scope in scopes)


def _record(row: Row[tuple[object, ...]]) -> KeyRecord:
    return KeyRecord(row.id, row.prefix, row.name, row.owner, tuple(row.scopes.split()), row.created_at, row.revoked_at)
