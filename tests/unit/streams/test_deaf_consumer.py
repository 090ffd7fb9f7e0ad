"""A client that holds its partitions and is given nothing is replaced by one that hears."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from tests.polling import until

from shortstack.core.clock import FakeClock, SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Poison
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import RECORDS_RAW
from shortstack.streams.worker import BatchWorker

DEADLINE_S = 20


class DeafOnce(MemoryBroker):
    """Its first consumer polls and is never given a message."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.joined = 0

    def consumer(self, *arguments: Any, **settings: Any) -> Any:
        made = super().consumer(*arguments, **settings)
        self.joined += 1
        if self.joined == 1:
            heard = made.poll

            def poll(timeout_s: float, max_messages: int = 500) -> list[Delivery]:
                heard(0.0, 0)
                return []

            made.poll = poll  # type: ignore[method-assign]
        return made


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
