"""A client that holds its partitions and is given nothing is replaced by one that hears."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from tests.fakes.deaf_broker import DeafOnce
from tests.polling import until

from shortstack.core.clock import FakeClock, SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Poison, Transient
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Consumer, Delivery, Outbound
from shortstack.streams.hearing import Hearing
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import RECORDS_RAW
from shortstack.streams.worker import BatchWorker

DEADLINE_S = 20


class Collector:
    def __init__(self) -> None:
        self.got = threading.Event()

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        self.got.set()
        return []

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        return []


def test_a_deaf_consumer_is_replaced() -> None:
    broker, clock, handler = DeafOnce(), FakeClock(), Collector()
    broker.apply([RECORDS_RAW])
    broker.producer().send(Outbound(RECORDS_RAW.name, b"k", b"v")).result(5)
    with Telemetry.start("formatting", ServiceConfig()) as telemetry:
        worker = BatchWorker(broker, "formatting", [RECORDS_RAW.name], handler, Health(60, clock), telemetry, clock)
        worker.start()

        def a_second_later() -> bool:
            clock.advance(1.0)
            return handler.got.wait(0.05)

        until(a_second_later, "a message", deadline_s=DEADLINE_S)
        worker.stop(5)

    assert handler.got.is_set()
    assert broker.joined == 2
    assert worker.failed is None


class Silence:
    """A consumer that is given nothing, one second after the other."""

    def __init__(self) -> None:
        self.clock, broker = FakeClock(), MemoryBroker(SystemClock())
        broker.apply([RECORDS_RAW])
        self.producer = broker.producer()
        self.consumer: Consumer = broker.consumer("g", [RECORDS_RAW.name])
        self.consumer.poll(0)
        self.hearing = Hearing(self.consumer, self.clock)

    def arrives(self) -> None:
        self.producer.send(Outbound(RECORDS_RAW.name, b"k", b"v")).result(5)

    def lasts(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            self.hearing.polled(False)


def test_a_topic_where_nothing_stands_is_quiet_and_nobody_is_deaf() -> None:
    Silence().lasts(60)


def test_paused_partitions_are_not_missed() -> None:
    silence = Silence()
    silence.arrives()
    silence.consumer.pause(silence.consumer.assignment())
    silence.lasts(60)


def test_what_arrived_late_in_a_silence_has_another_one_to_be_delivered() -> None:
    silence = Silence()
    silence.lasts(4)
    silence.arrives()
    silence.lasts(5)
    silence.hearing.polled(True)
    silence.lasts(9)


def test_what_stands_there_for_two_silences_was_missed() -> None:
    silence = Silence()
    silence.arrives()
    with pytest.raises(Transient, match="1 messages stand there and are not delivered"):
        silence.lasts(10)
