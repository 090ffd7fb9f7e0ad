"""Requests that come while Kafka is away fail soon, each of them, and succeed once it is back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shortstack.core.clock import FakeClock, SystemClock
from shortstack.core.errors import Transient
from shortstack.streams.broker import Outbound, Producer
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import DATASETS_READY

MESSAGE = Outbound(DATASETS_READY.name, b"key", b"value")


class Connecting:
    """Kafka, away until it is not; a try lasts until ``go``."""

    def __init__(self) -> None:
        self.tries = 0
        self.away = True
        self.go, self.trying = threading.Event(), threading.Event()

    def __call__(self) -> Producer:
        self.tries += 1
        self.trying.set()
        assert self.go.wait(30)
        if self.away:
            raise Transient("Kafka is away", where="here", remedy="Start it.")
        return MemoryBroker(SystemClock()).producer()


def test_a_failure_is_told_to_all_who_ask_within_a_second_and_then_tried_again() -> None:
    connect, clock = Connecting(), FakeClock()
    connect.go.set()
    producer = LateProducer(connect, clock)
    for _ in range(3):
        with pytest.raises(Transient, match="Kafka is away") as raised:
            producer.send(MESSAGE)
        assert (raised.value.where, raised.value.remedy) == ("here", "Start it.")
    assert connect.tries == 1
    connect.away = False
    clock.advance(1.1)
    assert producer.send(MESSAGE).result(5).offset == 0
    assert connect.tries == 2


def test_who_comes_while_another_connects_does_not_wait_for_the_end_of_it() -> None:
    connect = Connecting()
    producer = LateProducer(connect, wait_s=0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(producer.send, MESSAGE)
        assert connect.trying.wait(30)
        try:
            for _ in range(3):
                with pytest.raises(Transient, match="no connection to Kafka yet"):
                    producer.send(MESSAGE)
            assert not first.done()
        finally:
            connect.away = False
            connect.go.set()
        assert first.result(30).result(5).offset == 0
