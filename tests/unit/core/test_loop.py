"""A controller's loop: what it waits for shows in readiness, and what cannot be mended ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, Transient
from shortstack.core.health import Health
from shortstack.core.loop import Loop
from shortstack.core.telemetry import Telemetry


@dataclass
class Turning:
    """Raises what stands on ``open_errors`` and ``error``; counts the rest."""

    open_errors: list[Exception] = field(default_factory=list)
    error: Exception | None = None
    opened: int = 0
    turned: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def open(self) -> None:
        self.opened += 1
        if self.open_errors:
            raise self.open_errors.pop()

    def turn(self) -> None:
        if self.error is not None:
            raise self.error
        self.turned += 1

    def close(self) -> None:
        self.closed.set()


class Hasty(SystemClock):
    """Pauses are short."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(0.01)


@dataclass
class Running:
    loop: Loop
    health: Health


@contextmanager
def running(turning: Turning) -> Iterator[Running]:
    with Telemetry.start("test", ServiceConfig()) as telemetry:
        clock = Hasty()
        health = Health(60, clock)
        loop = Loop("datasets", turning, health, telemetry, clock)
        assert not health.readiness().ok
        loop.start()
        try:
            yield Running(loop, health)
        finally:
            loop.stop(10)


def test_while_the_broker_is_away_it_is_alive_and_not_ready_and_says_why() -> None:
    turning = Turning()
    with running(turning) as it:
        until(lambda: it.health.readiness().ok, "ready after a good turn")
        turning.error = Transient("Kafka is away", where="end of topics")
        until(lambda: not it.health.readiness().ok, "not ready")
        assert it.health.readiness().waiting == {"datasets": "end of topics: Kafka is away"}
        assert it.health.liveness().ok
        assert it.loop.failed is None
        turning.error = None
        until(lambda: it.health.readiness().ok, "ready again")
    assert turning.opened == 1
    assert turning.closed.is_set()


def test_it_opens_until_it_can_and_is_not_ready_before() -> None:
    turning = Turning(open_errors=[Transient("away"), Transient("away")])
    with running(turning) as it:
        until(lambda: it.health.readiness().ok)
        assert turning.opened == 3
        assert turning.turned >= 1


@pytest.mark.parametrize("error", [Fatal("another writer is at work"), ValueError("a bug")])
def test_what_cannot_be_mended_ends_it(error: Exception) -> None:
    turning = Turning(error=error)
    with running(turning) as it:
        until(lambda: it.loop.failed is not None)
        assert it.loop.failed is error
        assert turning.closed.is_set()
