"""Attempts: only success is final, and a redelivery opens nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shortstack.ingestion.publishing.attempts import Decision, Todo, decide, decide_retry
from shortstack.messages.v1 import dataset_pb2 as pb

THEN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = THEN + timedelta(seconds=1)


def snapshot(state: pb.DatasetState, attempt: int = 2) -> pb.DatasetSnapshot:
    found = pb.DatasetSnapshot(publication=pb.Publication(attempt=attempt), state=state)
    found.publication.accepted_at.FromDatetime(THEN)
    return found


@pytest.mark.parametrize(
    ("state", "same", "later", "retry"),
    [
        (pb.DATASET_STATE_ACCEPTED, (2, "everything"), (2, "everything"), (2, "nothing")),
        (pb.DATASET_STATE_FORMATTING, (2, "everything"), (2, "everything"), (2, "nothing")),
        (pb.DATASET_STATE_STALLED, (2, "everything"), (2, "everything"), (2, "everything")),
        (pb.DATASET_STATE_READY, (2, "nothing"), (2, "accept"), (2, "nothing")),
        (pb.DATASET_STATE_HELD, (2, "nothing"), (2, "accept"), (2, "nothing")),
        (pb.DATASET_STATE_FAILED, (2, "nothing"), (3, "everything"), (3, "everything")),
        (pb.DATASET_STATE_DELETED, (2, "nothing"), (3, "everything"), (3, "everything")),
    ],
)
def test_what_is_left_to_do(
    state: pb.DatasetState, same: tuple[int, str], later: tuple[int, str], retry: tuple[int, str]
) -> None:
    found = snapshot(state)
    assert decide(found, THEN) == Decision(same[0], Todo(same[1]))
    assert decide(found, LATER) == Decision(later[0], Todo(later[1]))
    assert decide_retry(found, LATER) == Decision(retry[0], Todo(retry[1]))


def test_records_that_failed_are_read_again_when_asked_for() -> None:
    """What formatting died of may be mended; a dataset that is held for anything else would come out the same."""
    held = snapshot(pb.DATASET_STATE_HELD)
    held.counts.failed = 5
    assert decide_retry(held, LATER) == Decision(3, Todo.EVERYTHING)
    assert decide_retry(held, THEN) == Decision(2, Todo.NOTHING)
    assert decide(held, LATER) == Decision(2, Todo.ACCEPT)


def test_a_request_between_the_first_and_the_newest_is_carried_out() -> None:
    """Two requests for a dataset that is ready may be under way at once, each with a wish of its own."""
    ready = snapshot(pb.DATASET_STATE_READY)
    ready.opened_at.FromDatetime(THEN)
    ready.publication.accepted_at.FromDatetime(LATER + timedelta(seconds=1))
    assert decide(ready, LATER) == Decision(2, Todo.ACCEPT)
    assert decide(ready, THEN) == Decision(2, Todo.NOTHING)


def test_the_first_request_does_everything() -> None:
    assert decide(None, THEN) == Decision(1, Todo.EVERYTHING)


def test_a_retry_that_was_carried_out_is_not_repeated() -> None:
    assert decide_retry(snapshot(pb.DATASET_STATE_FAILED, attempt=3), THEN) == Decision(3, Todo.NOTHING)
