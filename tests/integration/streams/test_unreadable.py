"""What another client wrote and this one cannot read, on a real broker, which refuses none of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kafka.producer.kafka import KafkaProducer as RawProducer

from shortstack.core.config import ServiceConfig
from shortstack.streams.broker import Delivery
from shortstack.streams.decoding import UNREADABLE
from shortstack.streams.envelope import header
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import Topic, TopicKind


class Latin(str):
    """A header's name that is sent in Latin-1, as a client may that takes names for bytes."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("latin-1")


@pytest.fixture
def broker(kafka_bootstrap: str) -> Iterator[KafkaBroker]:
    with KafkaBroker.connect(ServiceConfig(kafka_bootstrap=kafka_bootstrap, kafka_bootstrap_timeout_s=5)) as made:
        yield made


def test_a_headers_name_that_is_no_utf8_does_not_block_its_partition(broker: KafkaBroker, kafka_bootstrap: str) -> None:
    topic = Topic(f"unreadable.{time.monotonic_ns()}", "k", "bytes", TopicKind.PIPE, 1, 7, 100_000)
    broker.apply([topic])
    raw = RawProducer(bootstrap_servers=kafka_bootstrap, linger_ms=200)
    for value, name in ((b"1", "plain"), (b"2", Latin("caf\xe9")), (b"3", "plain")):
        raw.send(topic.name, value, b"key", [(name, b"x")])
    raw.flush(10)
    raw.close()

    consumer = broker.consumer(topic.name, [topic.name])
    found: list[Delivery] = []
    deadline = time.monotonic() + 60
    while len(found) < 3 and time.monotonic() < deadline:
        found += consumer.poll(0.2)
    assert [(d.offset, d.value) for d in found] == [(0, b"1"), (1, None), (2, b"3")]
    assert "cannot be read" in str(header(found[1], UNREADABLE))
    assert found[1].timestamp_ms > 0
    assert consumer.commit({found[-1].partition: (3, "")})
    consumer.close()
