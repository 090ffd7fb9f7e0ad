"""A producer that connects when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.errors import Transient
from shortstack.streams.broker import Outbound, Position, Producer

__all__ = ["LateProducer"]

_WAIT_S: Final = 1.0
_REMEMBERED_S: Final = 1.0
"""Who waited for a try that failed is told so, instead of each trying in its turn."""


class LateProducer:
    """See `Producer`. What a service is built with: Kafka may be away while it starts, and then it waits, alive and not
    ready, instead of ending. Safe to share between threads.

    Args:
        connect: makes the producer, and is asked again while it raises `Transient`.
        clock: says when a failure is old.
        wait_s: waits so long while another thread connects.
    """

    def __init__(self, connect: Callable[[], Producer], clock: Clock | None = None, *, wait_s: float = _WAIT_S) -> None:
        self._connect = connect
        self._clock = clock or SystemClock()
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._made: Producer | None = None
        self._failed: tuple[Transient, float] | None = None  # and when

    def send(self, message: Outbound) -> Future[Position]:
        """See `Producer.send`.

        Raises:
            Transient: there is no connection yet, and none can be made, now or within a second.
        """
        return (self._made or self._connected()).send(message)

    def _connected(self) -> Producer:
        if not self._lock.acquire(timeout=self._wait_s):
            raise Transient("there is no connection to Kafka yet", remedy="It is being made; try again.")
        try:
            if self._made is None:
                self._made = self._new()
            return self._made
        finally:
            self._lock.release()

    def _new(self) -> Producer:
        if self._failed is not None and self._clock.monotonic() - self._failed[1] < _REMEMBERED_S:
            error = self._failed[0]
            raise Transient(error.what, where=error.where, remedy=error.remedy) from error
        try:
            return self._connect()
        except Transient as error:
            self._failed = error, self._clock.monotonic()
            raise

    def flush(self, timeout_s: float) -> None:
        """See `Producer.flush`."""
        if self._made is not None:
            self._made.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """See `Producer.close`."""
        if self._made is not None:
            self._made.close(timeout_s)
