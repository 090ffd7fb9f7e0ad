"""A publication hears of its own lost messages, and of nobody else's."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from shortstack.core.errors import Poison, Transient
from shortstack.ingestion.publishing.outbox import Outbox, outbox
from shortstack.streams.broker import Outbound, Partition, Position


class Failing:
    """A producer whose flush says nothing of a failure, because another thread's flush heard of it."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.closed = error, False

    def send(self, message: Outbound) -> Future[Position]:
        future: Future[Position] = Future()
        if self.error is None:
            future.set_result(Position(Partition(message.topic, 0), 0, 0))
        else:
            future.set_exception(self.error)
        return future

    def flush(self, timeout_s: float) -> None:
        pass

    def close(self, timeout_s: float) -> None:
        self.closed = True
        raise Transient("what was not confirmed could not be sent")


@pytest.mark.parametrize("error", [Transient("not acknowledged"), Poison("too large")])
def test_a_message_that_was_lost_is_heard_of(error: Exception) -> None:
    out = Outbox(Failing(error), 1.0)
    out.send(Outbound("t", b"", b""))
    with pytest.raises(type(error), match=str(error)):
        out.confirm()


def test_every_run_has_a_producer_of_its_own_and_lets_it_go() -> None:
    made: list[Failing] = []

    def new() -> Failing:
        made.append(Failing(None))
        return made[-1]

    for _ in range(2):
        with outbox(new, 1.0) as out:
            out.send(Outbound("t", b"", b""))
            out.confirm()
    assert [one.closed for one in made] == [True, True]
