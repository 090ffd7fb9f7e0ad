"""A producer that connects when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from shortstack.streams.broker import Outbound, Position, Producer

__all__ = ["LateProducer"]


class LateProducer:
    """See `Producer`. What a service is built with: Kafka may be away while it starts, and then it waits, alive and not
    ready, instead of ending. Safe to share between threads.

    Args:
        connect: makes the producer, and is asked again while it raises `Transient`.
    """

    def __init__(self, connect: Callable[[], Producer]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._made: Producer | None = None

    def send(self, message: Outbound) -> Future[Position]:
        """See `Producer.send`.

        Raises:
            Transient: there is no connection yet, and none can be made.
        """
        with self._lock:
            if self._made is None:
                self._made = self._connect()
        return self._made.send(message)

    def flush(self, timeout_s: float) -> None:
        """See `Producer.flush`."""
        if self._made is not None:
            self._made.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """See `Producer.close`."""
        if self._made is not None:
            self._made.close(timeout_s)
