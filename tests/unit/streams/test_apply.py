"""The command that creates the topics: it waits for Kafka, and says so."""

from __future__ import annotations

import threading

import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, ShortstackError, Transient
from shortstack.streams.apply import apply_when_ready
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import TOPICS


class LateBroker(MemoryBroker):
    """Fails as told, in order, before it answers."""

    def __init__(self, *failures: ShortstackError) -> None:
        super().__init__(FakeClock(), [])
        self.failures = list(failures)

    def ready(self, timeout_s: float) -> None:
        if self.failures:
            raise self.failures.pop(0)


def test_topics_are_created_once_kafka_answers(capsys: pytest.CaptureFixture[str]) -> None:
    broker, clock = LateBroker(*[Transient("no broker at kafka:9092")] * 6), FakeClock()

    lines = apply_when_ready(broker, list(TOPICS.values()), ServiceConfig(), clock, threading.Event())

    assert len(lines) == len(TOPICS)
    assert capsys.readouterr().err.count("waiting: no broker at kafka:9092") == 6
    assert clock.monotonic() == 1 + 2 + 4 + 8 + 15 + 15


def test_a_second_time_nothing_changes() -> None:
    broker = LateBroker()
    topics = list(TOPICS.values())
    apply_when_ready(broker, topics, ServiceConfig(), FakeClock(), threading.Event())

    assert apply_when_ready(broker, topics, ServiceConfig(), FakeClock(), threading.Event()) == []


def test_what_waiting_does_not_mend_ends_it() -> None:
    broker = LateBroker(Fatal("the password was refused"))

    with pytest.raises(Fatal, match="password"):
        apply_when_ready(broker, [], ServiceConfig(), FakeClock(), threading.Event())


def test_a_stop_ends_the_wait() -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(Transient, match="no broker"):
        apply_when_ready(LateBroker(Transient("no broker")), [], ServiceConfig(), FakeClock(), stop)
