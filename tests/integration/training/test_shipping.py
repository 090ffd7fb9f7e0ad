"""Events while the broker is away for longer than a producer tries to deliver: each comes once, and in order."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Transient
from shortstack.local.broker import LocalBroker
from shortstack.messages.v1.training_pb2 import TrainingEvent
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.kafka_producer import KafkaProducer
from shortstack.training.event_book import EventBook
from shortstack.training.shipper import EventShipper

pytestmark = pytest.mark.timeout(600)

DELIVERY_S = 4.0
WITHIN_S = 90


class Log:
    """Keeps what is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append(f"{event}: {fields}")


def write(path: Path, numbers: range) -> None:
    with path.open("a") as out:
        for number in numbers:
            line = {"seq": number, "attempt": 1, "type": "step", "time": float(number), "step": number, "max_steps": 9}
            out.write(json.dumps(line) + "\n")


def events_of(bootstrap: str) -> list[TrainingEvent]:
    with closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=bootstrap))) as broker:
        reader, found = broker.reader([topics.TRAINING_EVENTS.name]), []
        while not reader.caught_up():
            found += [TrainingEvent.FromString(delivery.value or b"") for delivery in reader.poll(0.2)]
    return found


def test_an_outage_that_outlasts_the_producer_loses_no_event_and_changes_no_order(
    own_broker: LocalBroker, own_bootstrap: str, tmp_path: Path
) -> None:
    config = ServiceConfig(kafka_bootstrap=own_bootstrap, kafka_bootstrap_timeout_s=60)
    path, shipped, log = tmp_path / "events.jsonl", tmp_path / "events.shipped", Log()
    with closing(KafkaBroker.connect(config)) as broker:
        connected: list[KafkaProducer] = []

        def connect() -> KafkaProducer:
            # A client of kafka-python that finds no broker leaves its sockets to the collector: none is made then.
            host, port = own_bootstrap.split(":")
            try:
                socket.create_connection((host, int(port)), 1.0).close()
            except OSError as error:
                raise Transient("the broker is away") from error
            connected.append(made := broker.producer(delivery_s=DELIVERY_S))
            return made

        shipper = EventShipper(path, "run-1", connect, shipped, SystemClock(), log)
        write(path, range(1, 51))
        shipper.start()
        until(
            lambda: shipped.exists() and int(shipped.read_text()) == path.stat().st_size,
            "the first events",
            deadline_s=WITHIN_S,
        )

        own_broker.kill()
        write(path, range(51, 3001))
        # The producer that ran when the broker went gives up what it holds, and another takes its place.
        until(lambda: log.warnings, "the producer's own limit", deadline_s=WITHIN_S)
        assert len(connected) == 1
        write(path, range(3001, 3101))
        own_broker.start()
        until(lambda: shipper.finish(1.0), "everything that was left", deadline_s=WITHIN_S)

    assert len(connected) > 1
    book = EventBook()
    news = [event.seq for event in events_of(own_bootstrap) if book.add(event)]
    assert news == list(range(1, 3101))
