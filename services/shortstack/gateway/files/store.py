"""Files that people upload: a blob, its JSON sidecar, and a row that finds it.

The blob and the sidecar lie in the object store (``files/OWNER/ID`` and ``files/OWNER/ID.json``), where ingestion
reads them; the table is the list, as no folder is listed to learn what is true.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from sqlalchemy import ColumnElement, Engine, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, NotFound
from shortstack.gateway.database import FILES
from shortstack.storage.blobs import BlobStore

__all__ = ["FileStore", "StoredFile"]

_ABANDONED_S: Final = 3600.0
"""An upload has come in whole when its file is made; nothing but the object store is waited for then."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file: uploaded, or made by the stack (a job's results)."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    @property
    def key(self) -> str:
        """Key of its content in the object store."""
        return f"files/{self.owner}/{self.id}"

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's ``File`` object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": None,
            "status_details": None,
        }


class FileStore:
    """Files by owner and id. Blocking: call it off the event loop.

    Args:
        engine: the database.
        blobs: the object store.
        incoming: folder for uploads that are not whole yet.
        clock: time.
    """

    def __init__(self, engine: Engine, blobs: BlobStore, incoming: Path, clock: Clock) -> None:
        self._engine = engine
        self._blobs = blobs
        self._incoming = incoming
        self._clock = clock

    def incoming(self) -> Path:
        """A new path for an upload's bytes; whoever asked removes the file."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        self.clear_abandoned()
        return self._incoming / secrets.token_hex(16)

    def clear_abandoned(self) -> int:
        """Removes uploads that a gateway began and did not live to end; how many there were.

        By age, as another gateway of the same folder may be at work on its own.
        """
        oldest = self._clock.now().timestamp() - _ABANDONED_S
        paths = self._incoming.iterdir() if self._incoming.is_dir() else ()
        abandoned = [path for path in paths if _modified(path) < oldest]
        for path in abandoned:
            path.unlink(missing_ok=True)
        return len(abandoned)

    def add(self, owner: str, filename: str, purpose: str, path: Path) -> StoredFile:
        """Stores the file at ``path``: content, sidecar, and last the row, from which on it exists."""
        file = StoredFile(
            f"file-{secrets.token_hex(12)}",
            owner,
            filename,
            purpose,
            path.stat().st_size,
            int(self._clock.now().timestamp()),
        )
        self._blobs.put_file(file.key, path)
        self._enter(file)
        return file

    def add_result(self, file: StoredFile, data: bytes) -> None:
        """Stores what the stack itself made, under an id that follows from what it is of: once, whoever else does it.

        What stands in the object store stays, also where it was made of more or fewer events than ``data``.
        """
        with suppress(Conflict):
            self._blobs.put(file.key, data)
        with suppress(IntegrityError):  # another gateway was quicker
            self._enter(replace(file, bytes=self._blobs.size(file.key)))

    def results(self, owner: str, ids: Iterable[str]) -> dict[str, bool]:
        """Which of ``ids`` have been made, and whether each is still there: a deleted one is not made again."""
        with self._engine.connect() as connection:
            made = select(FILES.c.id, FILES.c.deleted).where(FILES.c.owner == owner, FILES.c.id.in_(list(ids)))
            return {row.id: not row.deleted for row in connection.execute(made)}

    def _enter(self, file: StoredFile) -> None:
        with suppress(Conflict):  # two that made it at once may differ in what the sidecar says of its size
            self._blobs.put(f"{file.key}.json", orjson.dumps(file.as_openai()))
        next_number = select(func.coalesce(func.max(FILES.c.sequence), 0) + 1).scalar_subquery()
        with self._engine.begin() as connection:
            connection.execute(insert(FILES).values(**asdict(file), deleted=False, sequence=next_number))

    def get(self, owner: str, file_id: str, *, param: str | None = None) -> StoredFile:
        """One file.

        Raises:
            NotFound: the owner has no such file.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(FILES).where(*_one(owner, file_id))).one_or_none()
        if row is None:
            raise NotFound(
                f"No such File object: {file_id}",
                remedy="Files are named by id (file-…), not by name; GET /v1/files lists them.",
                param=param or "id",
            )
        return _file(row)

    def listed(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[StoredFile], bool]:
        """A page of the owner's files, and whether there are more."""
        conditions = [FILES.c.owner == owner, FILES.c.deleted.is_(False)]
        if purpose is not None:
            conditions.append(FILES.c.purpose == purpose)
        order = FILES.c.sequence.desc() if newest_first else FILES.c.sequence.asc()
        with self._engine.connect() as connection:
            if after is not None:
                place = connection.execute(
                    select(FILES.c.sequence).where(FILES.c.owner == owner, FILES.c.id == after)
                ).scalar_one_or_none()
                place = 0 if place is None else place
                conditions.append(FILES.c.sequence < place if newest_first else FILES.c.sequence > place)
            rows = connection.execute(select(FILES).where(*conditions).order_by(order).limit(limit + 1)).all()
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    def open(self, file: StoredFile) -> BinaryIO:
        """Its content; the caller closes it.

        Raises:
            NotFound: the content is gone.
        """
        return self._blobs.stream(file.key)

    def delete(self, owner: str, file_id: str) -> None:
        """Forgets the file. A run that has read it keeps what it read.

        Raises:
            NotFound: the owner has no such file.
        """
        file = self.get(owner, file_id)
        with self._engine.begin() as connection:
            connection.execute(update(FILES).where(*_one(owner, file_id)).values(deleted=True))
        self._blobs.delete_prefix(f"{file.key}.json")
        self._blobs.delete_prefix(file.key)


def _modified(path: Path) -> float:
    """Seconds since 1970; never, where it has just gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _one(owner: str, file_id: str) -> tuple[ColumnElement[bool], ...]:
    return FILES.c.owner == owner, FILES.c.id == file_id, FILES.c.deleted.is_(False)


def _file(row: Row[tuple[Any, ...]]) -> StoredFile:
    return StoredFile(row.id, row.owner, row.filename, row.purpose, row.bytes, row.created_at)
