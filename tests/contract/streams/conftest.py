from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Broker
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import Topic, TopicKind


@pytest.fixture(params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Both brokers, one after the other; each test takes topics of its own."""
    if request.param == "memory":
        yield MemoryBroker(SystemClock())
        return
    config = ServiceConfig(kafka_bootstrap=request.getfixturevalue("kafka_bootstrap"), kafka_bootstrap_timeout_s=5)
    with KafkaBroker.connect(config) as made:
        yield made


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A part of a name that no other test and no earlier run has."""
    return f"{abs(hash(request.node.name)) % 10**6}-{time.monotonic_ns() % 10**9}"


@pytest.fixture
def topic(broker: Broker, unique: str) -> Topic:
    """An empty topic of 4 partitions, with its dead letters."""
    name = f"records.raw.{unique}"
    made = Topic(name, "k", "bytes", TopicKind.PIPE, 4, 7, 100_000)
    dead = Topic(f"{name}.dlq", "k", "bytes", TopicKind.DEAD_LETTERS, 1, 7, 200_000)
    broker.apply([made, dead])
    return made


@pytest.fixture
def state_topic(broker: Broker, unique: str) -> Topic:
    """An empty state topic."""
    made = Topic(f"state.{unique}", "k", "StateEnvelope", TopicKind.STATE, 1, None)
    broker.apply([made])
    return made


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with Telemetry.start("test", ServiceConfig()) as started:
        yield started
