"""Uploads in numbered parts: each part is an immutable object, and a chain of parts from 0 to N is a source.

Nothing is listed: a part stands under the number of its first record, its content says how many it holds, and so the
next one is known. Order, retries, partitions and crashes do not matter, and whoever finds the chain whole goes on.
A part that begins within another would be passed over; it is refused, unless the process ended between the two and a
part before both was still missing then.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final, cast

import orjson

from shortstack.core.errors import Conflict, Invalid, NotFound, Transient
from shortstack.ingestion.sources.parts import PartIndex
from shortstack.storage.blobs import BlobStore

__all__ = ["Closing", "Uploads", "json_lines"]

_IN_MEMORY: Final = 16 * 1024 * 1024
_ONE_WRITER: Final = "One upload has one writer, and a repeated part is the same part; start a new upload."
_INDEXES: Final = 1000
"""Uploads whose parts are kept in mind; those of another are asked for anew."""


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
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[str, str], PartIndex] = OrderedDict()

    def add(self, owner: str, upload: str, seq: int, records: Sequence[Any], *, where: str) -> None:
        """Stores a part.

        Raises:
            Conflict: other records stand at one of its numbers already.
            Transient: a part that it overlaps is being stored.
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
        index = self._index(owner, upload)
        with index.lock:
            overlapping = [*index.overlapping(seq, len(records))]
            claimed = not overlapping and index.claim(seq, len(records))
        stored = False
        try:
            self._require_same(owner, upload, seq, records, overlapping, where)
            self._put(_part(owner, upload, seq), seq, records, where)
            stored = True
        finally:
            with index.lock:
                if stored:
                    index.store(seq, len(records))
                elif claimed:
                    index.release(seq)

    def _put(self, key: str, seq: int, records: Sequence[Any], where: str) -> None:
        try:
            self._blobs.put(key, json_lines(records))
        except Conflict as error:
            raise Conflict(
                f"the part from {seq} was sent before with other records", where=where, remedy=_ONE_WRITER, param="seq"
            ) from error

    def _require_same(
        self, owner: str, upload: str, seq: int, records: Sequence[Any], parts: Sequence[tuple[int, int]], where: str
    ) -> None:
        """A part cut anew is none the worse, where one of the two holds the other and both say the same."""
        for first, count in parts:
            low, high = max(first, seq), min(first + count, seq + len(records))
            try:
                lines = self._blobs.get(_part(owner, upload, first)).splitlines(keepends=True)
            except NotFound as error:
                raise Transient(f"the part from {first} is being stored", where=where) from error
            nested = high - low in (count, len(records))
            if not nested or b"".join(lines[low - first : high - first]) != json_lines(records[low - seq : high - seq]):
                raise Conflict(
                    f"records {low} to {high - 1} were sent before, in the part from {first}",
                    where=where,
                    remedy=_ONE_WRITER,
                    param="seq",
                )

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
        at = self._reach(owner, upload)
        return f'the message with "complete": true, or the part from {at} on'

    def missing(self, owner: str, upload: str, total: int) -> str | None:
        """The first gap before ``total``, for people; None if the parts are whole.

        Raises:
            Invalid: a part reaches or lies beyond ``total``: these records would be lost without a word.
        """
        at = self._reach(owner, upload)
        if at < total:
            return f"the part from {at} on"
        if at > total:
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

    def _index(self, owner: str, upload: str) -> PartIndex:
        with self._lock:
            index = self._indexes.setdefault((owner, upload), PartIndex())
            self._indexes.move_to_end((owner, upload))
            while len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
        with index.lock:
            if not index.loaded:
                self._load(owner, upload, index)
        return index

    def _load(self, owner: str, upload: str, index: PartIndex) -> None:
        """Follows the chain in the store from where it is known: another process may have stored parts."""
        while True:
            try:
                piece = self._blobs.get(_part(owner, upload, index.reached))
            except NotFound:
                break
            index.store(index.reached, piece.count(b"\n"))
        index.loaded = True

    def _reach(self, owner: str, upload: str) -> int:
        """How many records there are from 0 on without a gap."""
        index = self._index(owner, upload)
        with index.lock:
            self._load(owner, upload, index)
            return index.reached


def _part(owner: str, upload: str, seq: int) -> str:
    return f"uploads/{owner}/{upload}/part-{seq}.jsonl"


def _failed(owner: str, upload: str) -> str:
    return f"uploads/{owner}/{upload}/failed.json"


def _closing(owner: str, upload: str) -> str:
    return f"uploads/{owner}/{upload}/complete.json"
