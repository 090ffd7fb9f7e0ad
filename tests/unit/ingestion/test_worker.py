"""Ingestion's consumer is replaced when it no longer hears, and says so."""

from __future__ import annotations

import io
import threading
from datetime import datetime
from typing import Any, cast

from tests.fakes.deaf_broker import DeafOnce
from tests.polling import until

from shortstack.core.clock import FakeClock
from shortstack.core.config import ServiceConfig
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.ingestion.worker import GROUP, IngestionWorker
from shortstack.streams.broker import Outbound
from shortstack.streams.topics import DATASETS_INGEST

DEADLINE_S = 20


class Parts:
    """Takes every message for a part of an upload that is not whole yet."""

    def __init__(self) -> None:
        self.got = threading.Event()

    def order(self, value: bytes, owner: str, requested_at: datetime) -> None:
        self.got.set()


def test_a_deaf_consumer_is_replaced_and_that_is_told() -> None:
    broker, clock, requests, said = DeafOnce(), FakeClock(), Parts(), io.StringIO()
    broker.apply([DATASETS_INGEST])
    broker.producer().send(Outbound(DATASETS_INGEST.name, b"k", b"{}")).result(5)
    with Telemetry.start(GROUP, ServiceConfig(), said) as telemetry:
        worker = IngestionWorker(
            broker,
            [DATASETS_INGEST.name],
            cast(Any, requests),
            cast(Any, None),  # nothing is published
            broker.producer(),
            Health(60, clock),
            telemetry,
            clock,
        )
        worker.start()

        def a_second_later() -> bool:
            clock.advance(1.0)
            return requests.got.wait(0.05)

        until(a_second_later, "a message", deadline_s=DEADLINE_S)
        until(lambda: broker.lag(GROUP, [DATASETS_INGEST.name]) == 0, "it is committed", deadline_s=DEADLINE_S)
        worker.stop(5)
        waits = telemetry.metrics.registry.get_sample_value("shortstack_waits_total", {"part": GROUP})

    assert broker.joined == 2
    assert worker.failed is None
    assert waits == 1
    assert "1 messages stand there and are not delivered" in said.getvalue()
    assert "warning" in said.getvalue()
