"""What a state topic says, worked out in one place for its writer and all its readers. Pure.

Every value is a `StateEnvelope` with the epoch of the writer that wrote it; a writer claims its epoch under the key
``_writer`` before it writes anything else. A snapshot whose epoch is lower than the newest epoch that stands before
it is void: a writer that was replaced and does not know it (a zombie) changes nothing. So is one whose revision does
not rise, which is what a producer that was given up delivers late. Compaction may then keep the void value and erase
the good one, so the living writer writes a key again whose last value is void.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from shortstack.messages.v1.state_pb2 import StateEnvelope
from shortstack.streams.broker import Delivery

__all__ = ["WRITER_KEY", "Fate", "Snapshot", "StateFold"]

WRITER_KEY: Final = "_writer"
"""Key of the claims; no snapshot may have it."""

M = TypeVar("M", bound=Message)


class Fate(StrEnum):
    """What became of one message of a state topic."""

    SNAPSHOT = "snapshot"
    CLAIM = "claim"
    VOID = "void"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[M]):
    """The newest valid value of a key.

    Attributes:
        message: None if the key is deleted.
        payload: the serialized message.
        revision: rises with every change of the key.
        epoch: of the writer.
    """

    message: M | None
    payload: bytes
    revision: int
    epoch: int


class StateFold(Generic[M]):
    """The state of one topic so far; feed it every message in log order.

    Attributes:
        message_type: of the snapshots.
        epoch: the newest epoch seen.
        snapshots: key → newest valid value, the deleted ones too.
        void: keys whose last value in the log is void or unreadable → the highest revision seen there.
    """

    def __init__(self, message_type: type[M]) -> None:
        self.message_type = message_type
        self.epoch = 0
        self.snapshots: dict[str, Snapshot[M]] = {}
        self.void: dict[str, int] = {}

    def apply(self, delivery: Delivery) -> tuple[str, Fate]:
        """Takes the next message in; its key, and what became of it."""
        key = (delivery.key or b"").decode(errors="replace")
        envelope = self._envelope(delivery.value)
        if envelope is None:
            self.void.setdefault(key, 0)
            return key, Fate.UNREADABLE
        stale = envelope.epoch < self.epoch
        self.epoch = max(self.epoch, envelope.epoch)
        if key == WRITER_KEY:
            return key, self._claim(stale)
        known = self.snapshots.get(key)
        stale = stale or (known is not None and (envelope.epoch, envelope.revision) <= (known.epoch, known.revision))
        message = None if stale else self._message(envelope)
        if stale or (message is None and not envelope.deleted):
            self.void[key] = max(envelope.revision, self.void.get(key, 0))
            return key, Fate.VOID if stale else Fate.UNREADABLE
        self.void.pop(key, None)
        self.snapshots[key] = Snapshot(message, envelope.payload, envelope.revision, envelope.epoch)
        return key, Fate.SNAPSHOT

    def get(self, key: str) -> M | None:
        """The value of ``key``; None if there is none or it is deleted."""
        found = self.snapshots.get(key)
        return found.message if found else None

    def live(self) -> dict[str, M]:
        """Every key that has a value, in order of first appearance."""
        return {key: found.message for key, found in self.snapshots.items() if found.message is not None}

    def next_revision(self, key: str) -> int:
        """Higher than every revision seen under ``key``, void ones too."""
        found = self.snapshots.get(key)
        return max(found.revision if found else 0, self.void.get(key, 0)) + 1

    def _claim(self, stale: bool) -> Fate:
        if stale:
            self.void[WRITER_KEY] = 0
            return Fate.VOID
        self.void.pop(WRITER_KEY, None)
        return Fate.CLAIM

    @staticmethod
    def _envelope(value: bytes | None) -> StateEnvelope | None:
        try:
            return None if value is None else StateEnvelope.FromString(value)
        except DecodeError:
            return None

    def _message(self, envelope: StateEnvelope) -> M | None:
        if envelope.deleted:
            return None
        try:
            return self.message_type.FromString(envelope.payload)
        except DecodeError:
            return None
