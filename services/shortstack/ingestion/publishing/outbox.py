"""What one publication sends: a producer of its own, and a word on every message.

Producers may be shared, but a flush tells its failures once, to whoever flushes next: of two publications on one
producer, the second would hear of the first one's lost batch, and the first announce a source that is not all there.
And an idempotent producer that gave a message up may refuse all later ones, so a next try takes a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from shortstack.core.errors import Transient
from shortstack.streams.broker import Outbound, Position, Producer

__all__ = ["Outbox", "outbox"]

_CLOSE_S = 1.0


class Outbox:
    """Sends messages, and answers for them."""

    def __init__(self, producer: Producer, flush_s: float) -> None:
        self._producer, self._flush_s = producer, flush_s
        self._sent: list[Future[Position]] = []

    def send(self, message: Outbound) -> None:
        """Queues a message."""
        self._sent.append(self._producer.send(message))

    def confirm(self) -> None:
        """Returns once the broker has everything that was sent.

        Raises:
            Transient: it has not, or not in time.
            Poison: it refused a message.
        """
        self._producer.flush(self._flush_s)
        for future in self._sent:
            future.result(0)
        self._sent = []

    def close(self) -> None:
        """Lets go; what is not confirmed by now is sent again by whoever tries next."""
        with suppress(Transient):
            self._producer.close(_CLOSE_S)


@contextmanager
def outbox(new_producer: Callable[[], Producer], flush_s: float) -> Iterator[Outbox]:
    """An outbox on a new producer."""
    made = Outbox(new_producer(), flush_s)
    try:
        yield made
    finally:
        made.close()
