"""The broker goes away and comes back; nothing that was acknowledged is lost, and nobody has to be restarted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Poison, Transient
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.envelope import outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.kafka_consumer import KafkaReader
from shortstack.streams.state import StateReader, StateWriter
from shortstack.streams.topics import DATASETS_STATE, RECORDS_FORMATTED, RECORDS_RAW, TOPICS
from shortstack.streams.worker import BatchWorker

CLOCK = SystemClock()
WITHIN_S = 60


@pytest.fixture
def local(tmp_path: Path, repository: Path) -> Iterator[LocalBroker]:
    """A broker of its own, which the test may kill."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(2)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        ports = [int(probe.getsockname()[1]) for probe in found]
    libs = Path(os.environ.get("SHORTSTACK_VAR", repository / "var")) / "kafka" / "libs"
    broker = LocalBroker(BrokerConfig(tmp_path, tmp_path / "kafka.log", ports[0], ports[1], libs))
    broker.prepare()
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with Telemetry.start("test", ServiceConfig()) as started:
        yield started


class Copier:
    """Sends every message on."""

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        return [message(RECORDS_FORMATTED.name, delivery.value or b"")]

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        raise AssertionError(f"{delivery.place}: {error}")


def message(topic: str, value: bytes) -> Outbound:
    return outbound(TOPICS[topic], value.decode(), value, type="test", source="test", clock=CLOCK)


def publish(broker: KafkaBroker, numbers: range) -> None:
    producer = broker.producer()
    for number in numbers:
        producer.send(message(RECORDS_RAW.name, b"%d" % number))
    producer.flush(20)
    producer.close(5)


def read_all(broker: KafkaBroker, topic: str) -> list[Delivery]:
    reader = broker.reader([topic])
    found: list[Delivery] = []
    while not reader.caught_up():
        found += reader.poll(0.1)
    reader.close()
    return found


def wait_done(broker: KafkaBroker) -> None:
    def look() -> bool:
        with suppress(Transient):
            return broker.lag("copier", [RECORDS_RAW.name]) == 0
        return False

    until(look, "the worker comes to the end", deadline_s=WITHIN_S, every_s=0.1)


def is_away(reader: KafkaReader) -> bool:
    """What polling says to one who has nothing to read."""
    try:
        reader.poll(0.1)
    except Transient:
        return True
    return False


def test_an_idle_reader_learns_that_its_broker_is_away_and_back(local: LocalBroker) -> None:
    with KafkaBroker.connect(ServiceConfig(kafka_bootstrap=local.bootstrap, kafka_bootstrap_timeout_s=3)) as broker:
        broker.apply(TOPICS.values())
        reader = broker.reader([RECORDS_FORMATTED.name])
        while not reader.caught_up():
            reader.poll(0.1)
        assert not is_away(reader)
        local.kill()
        until(lambda: is_away(reader), "the reader says so", deadline_s=WITHIN_S, every_s=0.1)
        assert is_away(reader), "it says so until the broker is back"
        local.start()
        until(lambda: not is_away(reader), "the broker is back", deadline_s=WITHIN_S, every_s=0.1)
        reader.close()


def test_a_worker_and_a_state_topic_ride_out_a_killed_broker(local: LocalBroker, telemetry: Telemetry) -> None:
    config = ServiceConfig(kafka_bootstrap=local.bootstrap, kafka_bootstrap_timeout_s=3)
    with KafkaBroker.connect(config) as broker:
        broker.apply(TOPICS.values())
        health = Health(120, CLOCK)
        worker = BatchWorker(broker, "copier", [RECORDS_RAW.name], Copier(), health, telemetry, CLOCK)
        writer = StateWriter(broker, DATASETS_STATE, DatasetSnapshot, CLOCK, timeout_s=5)
        writer.open()
        reader = StateReader(broker, DATASETS_STATE, DatasetSnapshot)
        reader.start()
        worker.start()
        publish(broker, range(100))
        writer.put("a", DatasetSnapshot(message="before"))
        local.kill()
        with pytest.raises(Transient):
            writer.put("a", DatasetSnapshot(message="meanwhile"))
        assert health.liveness().ok
        local.start()
        publish(broker, range(100, 200))
        wait_done(broker)
        writer.put("a", DatasetSnapshot(message="after"))
        reader.wait_caught_up(WITHIN_S)
        assert reader.items() == {"a": DatasetSnapshot(message="after")}
        assert (worker.failed, reader.failed) == (None, None)
        copied = {int(delivery.value or b"") for delivery in read_all(broker, RECORDS_FORMATTED.name)}
        assert copied == set(range(200))
        assert read_all(broker, f"{RECORDS_RAW.name}.dlq") == []
        worker.stop(20)
        reader.stop(20)
        writer.close()
