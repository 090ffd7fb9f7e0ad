"""Time as an argument, so that tests own it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "FakeClock", "SystemClock"]


class Clock(Protocol):
    """Wall time, monotonic time, and waiting."""

    def now(self) -> datetime:
        """Wall time, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits until ``event`` is set or ``seconds`` are over; whether it is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """See `Clock.wait`."""
        return event.wait(seconds)


class FakeClock:
    """A clock that moves only when told to; waiting moves it at once."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start.timestamp()
        self._elapsed = 0.0

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.fromtimestamp(self._start + self._elapsed, UTC)

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._elapsed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """See `Clock.wait`."""
        if not event.is_set():
            self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Moves the clock on."""
        self._elapsed += seconds
