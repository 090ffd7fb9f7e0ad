"""Who lives is not counted as dead: not after a rebalance, not after a clean end, not beside a message that kills."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Poison, Transient
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.streams.attempts import MAX_ATTEMPTS, AttemptMark, Attempts
from shortstack.streams.broker import Delivery, Outbound, Partition
from shortstack.streams.memory import MemoryBroker, MemoryConsumer
from shortstack.streams.topics import RECORDS_RAW
from shortstack.streams.worker import BatchWorker, WorkerLimits

CLOCK = SystemClock()
GROUP = "group"
TOPICS = [RECORDS_RAW.name]


@dataclass
class Away:
    """A handler whose object store is away."""

    handled: int = 0
    poisoned: list[Poison] = field(default_factory=list)

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        self.handled += 1
        raise Transient("the object store is away")

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        self.poisoned.append(error)
        return []


@dataclass
class Done:
    """A handler that answers nothing."""

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        return []

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        return []


@pytest.fixture
def broker() -> MemoryBroker:
    made = MemoryBroker(CLOCK)
    made.producer().send(Outbound(RECORDS_RAW.name, b"key", b"value"))
    return made


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with Telemetry.start("test", ServiceConfig()) as started:
        yield started


@contextmanager
def working(broker: MemoryBroker, handler: Away | Done, telemetry: Telemetry) -> Iterator[BatchWorker]:
    limits = WorkerLimits(backoff_s=0.02, backoff_max_s=0.05, poll_s=0.02)
    worker = BatchWorker(broker, GROUP, TOPICS, handler, Health(10, CLOCK), telemetry, CLOCK, limits=limits)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(10)


def rob(broker: MemoryBroker) -> None:
    """Has another member hold the partition with the message for a moment; which one it gets is a matter of chance."""

    def taken() -> bool:
        thief = broker.consumer(GROUP, TOPICS)
        try:
            return any(thief.poll(0.02) for _ in range(10))
        finally:
            thief.close()

    until(taken, "another member has the message")


def test_a_rebalance_while_a_message_waits_is_no_death_of_it(broker: MemoryBroker, telemetry: Telemetry) -> None:
    handler = Away()
    for _ in range(MAX_ATTEMPTS + 3):
        before = handler.handled
        with working(broker, handler, telemetry) as worker:
            until(lambda: handler.handled > before + 1, "the message was tried")  # noqa: B023
            rob(broker)
            assert worker.failed is None
    assert handler.poisoned == []
    assert broker.messages(f"{RECORDS_RAW.name}.dlq") == []
    assert broker.lag(GROUP, TOPICS) == 1


@pytest.mark.parametrize("accepted", [False, True])
def test_a_partition_that_is_lost_within_a_commit_ends_no_worker(
    broker: MemoryBroker, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    """As the client does it: the loss was noted while the commit was under way, and is told before it returns."""
    real, lost = MemoryConsumer.commit, threading.Event()

    def commit(consumer: MemoryConsumer, offsets: Mapping[Partition, tuple[int, str]]) -> bool:
        if lost.is_set() or accepted != (next(iter(offsets.values())) == (1, "")):
            return real(consumer, offsets)
        lost.set()
        kept = accepted and real(consumer, offsets)
        for partition in offsets:
            del consumer._held.next[partition]
        assert consumer._on_revoked is not None
        consumer._on_revoked(frozenset(offsets))
        return kept

    monkeypatch.setattr(MemoryConsumer, "commit", commit)
    with working(broker, Done(), telemetry) as worker:
        until(lambda: lost.is_set() and broker.lag(GROUP, TOPICS) == 0, "it was handled after all")
        assert worker.failed is None


def test_a_partition_that_goes_to_and_fro_between_living_members_counts_each_once(broker: MemoryBroker) -> None:
    members = [Attempts(64), Attempts(64)]
    for turn in range(4 * MAX_ATTEMPTS):
        attempts, consumer = members[turn % 2], broker.consumer(GROUP, TOPICS)
        attempts.join(consumer)
        (delivery,) = consumer.poll(1)
        assert attempts.begin(delivery)
        assert attempts.at(delivery) <= 2
        consumer.close()  # it is gone before anything could be taken back


def test_every_life_that_a_message_ends_is_counted(broker: MemoryBroker) -> None:
    for life in range(1, 50):
        attempts, consumer = Attempts(64), broker.consumer(GROUP, TOPICS)
        attempts.join(consumer)
        (delivery,) = consumer.poll(1)
        assert attempts.begin(delivery)
        assert attempts.at(delivery) == min(life, 32)
        (mark,) = broker.committed(GROUP).values()
        assert len(mark[1]) < 4096
        assert AttemptMark.read(mark) is not None
        consumer.close()
