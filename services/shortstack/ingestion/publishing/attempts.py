"""Which attempt a request belongs to, and what is left to do about it. Pure.

A request is told from its own redelivery by time alone: a snapshot carries the append time of the request that
opened its attempt. So reading the topic again from its beginning opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from shortstack.messages.v1.dataset_pb2 import (
    DATASET_STATE_DELETED,
    DATASET_STATE_FAILED,
    DATASET_STATE_HELD,
    DATASET_STATE_READY,
    DATASET_STATE_STALLED,
    DatasetSnapshot,
)

__all__ = ["Decision", "Todo", "decide", "decide_retry"]

_FAILED: Final = frozenset({DATASET_STATE_FAILED, DATASET_STATE_DELETED})
_WHOLE: Final = frozenset({DATASET_STATE_READY, DATASET_STATE_HELD})


class Todo(StrEnum):
    """What a request asks for now."""

    EVERYTHING = "everything"
    """Accept, send every batch, announce."""
    ACCEPT = "accept"
    """Accept alone: the records are there, the wish to train may be new."""
    NOTHING = "nothing"
    """It was dealt with to its end."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The attempt, and what is to be done."""

    attempt: int
    todo: Todo


def decide(snapshot: DatasetSnapshot | None, requested_at: datetime) -> Decision:
    """About a publication, given its newest snapshot and the append time of the request.

    Only success is final: a later request for something failed or deleted opens the next attempt. The same request
    again, or an older one, only finishes what it began.
    """
    if snapshot is None:
        return Decision(1, Todo.EVERYTHING)
    attempt = max(1, snapshot.publication.attempt)
    again = requested_at <= _opened_at(snapshot)
    if snapshot.state in _FAILED:
        return Decision(attempt, Todo.NOTHING) if again else Decision(attempt + 1, Todo.EVERYTHING)
    if snapshot.state in _WHOLE:
        return Decision(attempt, Todo.NOTHING if again else Todo.ACCEPT)
    return Decision(attempt, Todo.EVERYTHING)


def decide_retry(snapshot: DatasetSnapshot, requested_at: datetime) -> Decision:
    """About `datasets retry`: a stalled one gets its batches again; a failed one its next attempt, and so one that is
    held with records that failed, since whatever they died of may be mended."""
    decision = decide(snapshot, requested_at)
    if snapshot.state == DATASET_STATE_STALLED or snapshot.state in _FAILED:
        return decision
    if snapshot.state == DATASET_STATE_HELD and snapshot.counts.failed and decision.todo is not Todo.NOTHING:
        return Decision(decision.attempt + 1, Todo.EVERYTHING)
    return Decision(decision.attempt, Todo.NOTHING)


def _opened_at(snapshot: DatasetSnapshot) -> datetime:
    """Not the newest request's time: one before it may still be under way, with a wish of its own."""
    known = snapshot.opened_at if snapshot.HasField("opened_at") else snapshot.publication.accepted_at
    return known.ToDatetime(tzinfo=UTC)
