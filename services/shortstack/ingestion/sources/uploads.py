"""Uploads in numbered parts: each part is an immutable object, and a chain of parts from 0 to N is a source.

Nothing is listed: a part stands under the number of its first record, its content says how many it holds, and so the
next one is known. Order, retries, partitions and crashes do not matter, and whoever finds the chain whole goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final, cast

import orjson

from shortstack.core.errors import Conflict, Invalid, NotFound
from shortstack.storage.blobs import BlobStore

__all__ = ["Closing", "Uploads", "json_lines"]

_IN_MEMORY: Final = 16 * 1024 * 1024


def json_lines(records: Sequence[Any]) -> bytes:
    """One line a record, as canonical JSON: equal records give equal bytes."""
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    return b"".join(orjson.dumps(record, option=options) for record in records)


@dataclass(frozen=True, slots=True)
class Closing:
    """What closed an upload: its message, and the append time of the first of its kind."""

    message: dict[str, Any]
    at: datetime

    @property
    def records(self) -> int:
        """How many records the upload has."""
        return int(self.message["records"])


class Uploads:
    """The parts and closings of uploads in the object store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def add(self, owner: str, upload: str, seq: int, records: Sequence[Any], *, where: str) -> None:
        """Stores a part.

        Raises:
            Conflict: other records stand at that number already.
            Invalid: the upload is closed and the part lies beyond its end, or the upload has failed.
        """
        self._require_alive(owner, upload, where)
        closing = self.closing(owner, upload)
        if closing is not None and seq + len(records) > closing.records:
            raise Invalid(
                f"part {seq} to {seq + len(records) - 1} comes after the end: the upload is closed with "
                f"{closing.records} records",
                where=where,
                remedy="Start a new upload under another name.",
                param="seq",
            )
        try:
            self._blobs.put(_part(owner, upload, seq), json_lines(records))
        except Conflict as error:
            raise Conflict(
                f"the part from {seq} was sent before with other records",
                where=where,
                remedy="One upload has one writer, and a repeated part is the same part; start a new upload.",
                param="seq",
            ) from error

    def close(self, owner: str, upload: str, message: dict[str, Any], *, at: datetime, where: str) -> None:
        """Stores what closes an upload: its message, ``records`` in it. Sent again, the first ``at`` stays.

        Raises:
            Conflict: it was closed otherwise.
            Invalid: the upload has failed.
        """
        self._require_alive(owner, upload, where)
        try:
            given = {"at": at.isoformat(), "message": message}
            self._blobs.put(_closing(owner, upload), orjson.dumps(given, option=orjson.OPT_SORT_KEYS))
        except Conflict as error:
            closing = self.closing(owner, upload)
            if closing is not None and closing.message == message:
                return
            raise Conflict(
                "the upload was closed before by another message",
                where=where,
                remedy="Close an upload once, with the same message if it is sent again; or start a new upload.",
                param="complete",
            ) from error

    def closing(self, owner: str, upload: str) -> Closing | None:
        """What closed an upload; None while it is open."""
        try:
            stored: dict[str, Any] = orjson.loads(self._blobs.get(_closing(owner, upload)))
        except NotFound:
            return None
        return Closing(stored["message"], datetime.fromisoformat(stored["at"]))

    def fail(self, owner: str, upload: str) -> None:
        """Ends an upload that stayed incomplete: no part is taken any more."""
        self._blobs.put(_failed(owner, upload), b"{}")

    def _require_alive(self, owner: str, upload: str, where: str) -> None:
        if self.failed(owner, upload):
            raise Invalid(
                "the upload stayed incomplete for too long and has failed",
                where=where,
                remedy="Start a new upload under another name.",
                param="upload",
            )

    def failed(self, owner: str, upload: str) -> bool:
        """Whether `fail` ended it."""
        return self._blobs.exists(_failed(owner, upload))

    def incomplete(self, owner: str, upload: str) -> str | None:
        """What an upload lacks, for people: a part, or the message that closes it. None if it is whole."""
        closing = self.closing(owner, upload)
        if closing is not None:
            return self.missing(owner, upload, closing.records)
        at = 0
        while (count := self._count(owner, upload, at)) is not None:
            at += count
        return f'the message with "complete": true, or the part from {at} on'

    def missing(self, owner: str, upload: str, total: int) -> str | None:
        """The first gap before ``total``, for people; None if the parts are whole.

        Raises:
            Invalid: a part reaches or lies beyond ``total``: these records would be lost without a word.
        """
        at = 0
        while at < total:
            count = self._count(owner, upload, at)
            if count is None:
                return f"the part from {at} on"
            at += count
        beyond = self._count(owner, upload, at)
        if at > total or beyond:
            at += beyond or 0
            raise Invalid(
                f"the parts hold at least {at} records, the upload was closed with {total}",
                where=f"upload {upload}",
                remedy="Start a new upload and close it with the number of its records.",
                param="records",
            )
        return None

    def joined(self, owner: str, upload: str, total: int) -> BinaryIO:
        """All records of a whole upload, one JSON line each, as a file; on disk beyond 16 MiB."""
        whole: BinaryIO = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - the caller closes it
        at = 0
        while at < total:
            piece = self._blobs.get(_part(owner, upload, at))
            whole.write(piece)
            at += piece.count(b"\n")
        whole.seek(0)
        return whole

    def _count(self, owner: str, upload: str, seq: int) -> int | None:
        try:
            return self._blobs.get(_part(owner, upload, seq)).count(b"\n")
        except NotFound:
            return None


def _part(owner: str, upload: str, seq: int) -> str:
    return f"uploads/{owner}/{upload}/part-{seq}.jsonl"


def _failed(owner: str, upload: str) -> str:
    return f"uploads/{owner}/{upload}/failed.json"


def _closing(owner: str, upload: str) -> str:
    return f"uploads/{owner}/{upload}/complete.json"
