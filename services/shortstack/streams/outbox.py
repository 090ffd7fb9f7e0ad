"""Messages that nobody waits for and that must arrive all the same, however long the broker is away.

A producer gives a message up after its delivery time-out, and one that is idempotent may refuse all later ones. What
it gave up is sent again here, in order, by a new producer, until it is acknowledged.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.streams.broker import Broker, Outbound, Position, Producer

__all__ = ["Outbox"]

_RETRY_S: Final = 1.0


class Outbox:
    """Sends from any thread. A thread of its own works only while something has failed.

    Args:
        broker: is asked for a producer now, and for another one after each failure.
        retry_s: waits so long between two tries.
    """

    def __init__(self, broker: Broker, *, retry_s: float = _RETRY_S) -> None:
        self._broker, self._retry_s = broker, retry_s
        self._producer: Producer = broker.producer()
        self._sending = threading.Lock()  # held while a producer is used, which may block
        self._lock = threading.RLock()  # held for a moment; the client's own thread takes it too
        self._waiting: dict[int, tuple[Outbound, Future[Position]]] = {}  # in the order of sending
        self._numbers = itertools.count()
        self._refused: Poison | None = None
        self._closing = threading.Event()
        self._mending: threading.Thread | None = None

    def send(self, message: Outbound) -> None:
        """Sends ``message``, sooner or later.

        Raises:
            Fatal: the broker refused an earlier one for good.
        """
        if self._refused is not None:
            raise Fatal(
                f"the broker refused a message: {self._refused}",
                remedy="Its topic differs from the declared one; run `shortstack topics apply`.",
            )
        with self._sending:
            self._send(next(self._numbers), message)

    def close(self, timeout_s: float) -> None:
        """Sends what is under way; what the broker has not taken by then is lost, unless its sender tells it again.

        Raises:
            Transient: the broker is away.
        """
        self._closing.set()
        if self._mending is not None:
            self._mending.join(timeout_s)
        with self._sending:
            self._producer.close(timeout_s)

    def _send(self, number: int, message: Outbound) -> bool:
        """Whether the producer took it; ``number`` keeps its place in line."""
        future = self._producer.send(message)
        with self._lock:
            self._waiting[number] = message, future
        future.add_done_callback(lambda settled: self._settled(number, settled))
        return not _failed(future)

    def _settled(self, number: int, future: Future[Position]) -> None:
        """Called by the client's own thread, where nothing may block."""
        error = future.exception()
        with self._lock:
            if isinstance(error, Transient):
                if self._mending is None and not self._closing.is_set():
                    self._mending = threading.Thread(target=self._mend, name="outbox", daemon=True)
                    self._mending.start()
                return
            if isinstance(error, Poison):
                self._refused = error
            self._waiting.pop(number, None)

    def _mend(self) -> None:
        while not self._closing.wait(self._retry_s):
            with self._lock:
                failed = {number: message for number, (message, future) in self._waiting.items() if _failed(future)}
                if not failed:
                    self._mending = None
                    return
            with suppress(Transient):  # still away
                self._send_again(failed)

    def _send_again(self, failed: Mapping[int, Outbound]) -> None:
        """On a new producer. What the old one has not given up yet arrives, or fails in its turn."""
        fresh = self._broker.producer()
        with self._sending:
            old, self._producer = self._producer, fresh
            for number, message in failed.items():
                if not self._send(number, message):
                    break
        old.close(self._retry_s)


def _failed(future: Future[Position]) -> bool:
    return future.done() and isinstance(future.exception(), Transient)
