"""Messages that nobody waits for and that must arrive all the same, however long the broker is away.

A producer gives a message up after its delivery time-out, and one that is idempotent may refuse all later ones. What
it gave up is sent again here, by a new producer, until it is acknowledged, and what comes in meanwhile waits in line.

At least once, since a message that was given up may have arrived; and in order, but for what a producer had under way
already when it gave up an earlier one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from shortstack.core.errors import Fatal, ShortstackError, Transient
from shortstack.streams.broker import Broker, Outbound, Position, Producer

__all__ = ["Outbox"]

_RETRY_S: Final = 1.0
_GRACE_S: Final = 5.0
"""What a producer gets to settle what it has, before another one takes its place."""


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
        self._waiting: dict[int, tuple[Outbound, Future[Position] | None]] = {}  # None: no producer has it yet
        self._numbers = itertools.count()
        self._refused: BaseException | None = None
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
            ) from self._refused
        with self._lock:
            if self._mending is not None:
                self._waiting[next(self._numbers)] = message, None
                return
        with self._sending:
            self._send(next(self._numbers), message)

    def close(self, timeout_s: float) -> None:
        """Sends what is under way, and once more what failed; what the broker does not take then is lost, unless its
        sender tells it again. Each step has ``timeout_s``.

        Raises:
            Transient: something is lost.
            Fatal: the broker refuses this service for good.
        """
        with self._lock:
            self._closing.set()
            mending = self._mending
        if mending is not None:
            mending.join(timeout_s)
        if not self._sending.acquire(timeout=timeout_s):
            raise Transient("a producer is still being waited for", where="outbox")
        try:
            self._close(timeout_s)
        finally:
            self._sending.release()
        with self._lock:
            left = len(self._waiting)
        if left:
            raise Transient(f"{left} messages were not delivered", where="outbox")

    def _close(self, timeout_s: float) -> None:
        try:
            if self._behind():
                self._broker.ready(timeout_s)
                self._renew(timeout_s)
        finally:
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
            self._refused = self._refused or error
            self._waiting.pop(number, None)

    def _mend(self) -> None:
        pause = self._retry_s
        while not self._closing.wait(pause):
            try:
                with self._sending:
                    behind = self._behind()
                    if not behind and self._mended():
                        return
                    pause = self._retry_s if _any_failed(behind.values()) else 0.0
                    self._catch_up(behind)
            except Transient:
                pause = self._retry_s  # still away
            except Exception as error:  # noqa: BLE001 - whoever sends next is told
                with self._lock:
                    self._refused, self._mending = error, None
                return

    def _mended(self) -> bool:
        """Ends the mending; False if something has come in meanwhile."""
        with self._lock:
            if self._behind():
                return False
            self._mending = None
            return True

    def _behind(self) -> dict[int, Future[Position] | None]:
        """What failed, or waits in line."""
        with self._lock:
            return {n: future for n, (_, future) in self._waiting.items() if future is None or _failed(future)}

    def _catch_up(self, behind: dict[int, Future[Position] | None]) -> None:
        if _any_failed(behind.values()):
            self._renew(_GRACE_S)
        else:
            self._send_again(behind)

    def _renew(self, grace_s: float) -> None:
        """Lets the producer settle what it still has, and sends the rest on a new one."""
        fresh = self._broker.producer()
        old, self._producer = self._producer, fresh
        with suppress(ShortstackError):  # each message tells by itself how it fared
            old.close(grace_s)
        with self._lock:
            unsettled = list(self._waiting)
        self._send_again(unsettled)

    def _send_again(self, numbers: Iterable[int]) -> None:
        for number in sorted(numbers):
            with self._lock:
                waiting = self._waiting.get(number)
            if waiting is not None and not self._send(number, waiting[0]):
                return


def _any_failed(futures: Iterable[Future[Position] | None]) -> bool:
    return any(future is not None and _failed(future) for future in futures)


def _failed(future: Future[Position]) -> bool:
    return future.done() and isinstance(future.exception(), Transient)
