"""Ingestion's consumer: it is replaced when it no longer hears, and a message that ends its process is set aside."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

import pytest
from tests.fakes.deaf_broker import DeafOnce
from tests.polling import until

from shortstack.assembly.datasets import Datasets
from shortstack.core.clock import Clock, FakeClock, SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Invalid, Transient
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.ingestion.worker import GROUP, IngestionWorker
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_FAILED, DatasetSnapshot, PublicationEvent
from shortstack.streams.attempts import AttemptMark, Attempts
from shortstack.streams.broker import Broker, Outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import DATASETS_INGEST, DATASETS_PUBLICATIONS

DEADLINE_S = 20


class Parts:
    """Takes every message for a part of an upload that is not whole yet."""

    def __init__(self) -> None:
        self.got = threading.Event()

    def order(self, value: bytes, owner: str, requested_at: datetime) -> None:
        self.got.set()


def worker_of(broker: Broker, requests: object, telemetry: Telemetry, clock: Clock) -> IngestionWorker:
    """A worker on `datasets.ingest` that publishes nothing."""
    publisher, health = cast(Any, None), Health(60, clock)
    topics = [DATASETS_INGEST.name]
    return IngestionWorker(broker, topics, cast(Any, requests), publisher, broker.producer(), health, telemetry, clock)


def test_a_deaf_consumer_is_replaced_and_that_is_told() -> None:
    broker, clock, requests, said = DeafOnce(), FakeClock(), Parts(), io.StringIO()
    broker.apply([DATASETS_INGEST])
    broker.producer().send(Outbound(DATASETS_INGEST.name, b"k", b"{}")).result(5)
    with Telemetry.start(GROUP, ServiceConfig(), said) as telemetry:
        worker = worker_of(broker, requests, telemetry, clock)
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


class Deadly:
    """Ends the process over ``bad``, keeps at ``slow`` until it is let go, and takes everything else."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.done: list[bytes] = []
        self.let_go = threading.Event()

    def order(self, value: bytes, owner: str, requested_at: datetime) -> None:
        self.begun.append(value)
        if value == b"bad":
            raise RuntimeError("unforeseen")
        if value == b"slow" and not self.let_go.wait(0.02):
            raise Transient("still at it")
        self.done.append(value)


@contextmanager
def life(broker: Broker, requests: Deadly) -> Iterator[IngestionWorker]:
    """One process, from its start to its end."""
    clock = SystemClock()
    with Telemetry.start(GROUP, ServiceConfig(), io.StringIO()) as telemetry:
        worker = worker_of(broker, requests, telemetry, clock)
        worker.start()
        yield worker
        worker.stop(5)


def sent(*values: bytes) -> MemoryBroker:
    """A broker with these messages on one partition."""
    broker = MemoryBroker(SystemClock())
    broker.apply([DATASETS_INGEST])
    for value in values:
        broker.producer().send(Outbound(DATASETS_INGEST.name, b"faq", value)).result(5)
    return broker


def done(broker: MemoryBroker) -> bool:
    return broker.lag(GROUP, [DATASETS_INGEST.name]) == 0


def marks(broker: MemoryBroker) -> list[AttemptMark | None]:
    return [AttemptMark.read(committed) for committed in broker.committed(GROUP).values()]


def told(broker: MemoryBroker) -> list[DatasetSnapshot]:
    """What assembly makes of what ingestion said."""
    datasets = Datasets()
    for message in broker.messages(DATASETS_PUBLICATIONS.name):
        datasets.apply(PublicationEvent.FromString(message.value or b""), 0.0)
    return [dataset.snapshot for dataset in datasets.by_publication.values()]


def test_a_message_that_ends_the_process_five_times_is_set_aside() -> None:
    broker, requests, lives = sent(b"one", b"bad", b"two"), Deadly(), 0
    while not done(broker):
        lives += 1
        with life(broker, requests) as worker:
            until(lambda: worker.failed or done(broker), "an end", deadline_s=DEADLINE_S)
        assert lives < 10
    (letter,) = broker.messages(f"{DATASETS_INGEST.name}.dlq")
    assert letter.value == b"bad"
    assert b"processes died on this message" in dict(letter.headers)["dlq-message"]
    assert 5 <= requests.begun.count(b"bad") <= 6
    assert lives == requests.begun.count(b"bad") + 1
    assert {b"one", b"two"} <= set(requests.done)
    (snapshot,) = told(broker)
    assert (snapshot.publication.dataset, snapshot.state) == ("faq", DATASET_STATE_FAILED)
    assert "processes died on this message" in snapshot.message


def test_what_is_under_way_beside_it_is_neither_lost_nor_blamed() -> None:
    broker, requests = sent(b"slow", b"bad", b"two"), Deadly()
    with life(broker, requests) as worker:
        until(lambda: worker.failed, "the first death", deadline_s=DEADLINE_S)
    (mark,) = marks(broker)
    assert mark is not None
    assert mark.offset == 0
    for _ in range(3):  # found with a mark, it has its partition to itself, and stopping is no death
        before = requests.begun.count(b"slow")
        with life(broker, requests) as worker:
            until(lambda: requests.begun.count(b"slow") > before + 2, "it is at work", deadline_s=DEADLINE_S)  # noqa: B023
            assert worker.failed is None
    assert marks(broker) == [mark]
    requests.let_go.set()
    while not done(broker):
        with life(broker, requests) as worker:
            until(lambda: worker.failed or done(broker), "an end", deadline_s=DEADLINE_S)
    assert set(requests.done) == {b"slow", b"two"}
    assert [letter.value for letter in broker.messages(f"{DATASETS_INGEST.name}.dlq")] == [b"bad"]


def test_stopping_is_no_death() -> None:
    broker, requests = sent(b"slow"), Deadly()
    for _ in range(3):
        before = len(requests.begun)
        with life(broker, requests):
            until(lambda: len(requests.begun) > before, "it is begun", deadline_s=DEADLINE_S)  # noqa: B023
            until(lambda: [mark.attempts for mark in marks(broker) if mark] == [1], "counted", deadline_s=DEADLINE_S)
        assert marks(broker) == [AttemptMark(0)]


class Killing:
    """``bad`` has the process killed, which cuts short what is under way beside it; everything else takes a while."""

    def __init__(self) -> None:
        self.kill = threading.Event()
        self.done: list[bytes] = []

    def order(self, value: bytes, owner: str, requested_at: datetime) -> None:
        if value == b"bad":
            self.kill.set()
        if self.kill.wait(0.3):
            raise Transient("cut short")
        self.done.append(value)


def test_what_is_under_way_on_other_partitions_is_not_set_aside_with_a_killer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Attempts, "give_up", lambda attempts: None)  # a process that is killed takes nothing back
    broker, requests, lives = MemoryBroker(SystemClock()), Killing(), 0
    broker.apply([DATASETS_INGEST])
    for number in range(12):
        value = b"bad" if number == 5 else b"%d" % number
        broker.producer().send(Outbound(DATASETS_INGEST.name, b"%d" % number, value)).result(5)
    assert len({message.partition for message in broker.messages(DATASETS_INGEST.name)}) > 1
    while not done(broker):
        lives += 1
        assert lives < 10
        requests.kill.clear()
        with life(broker, cast(Any, requests)):
            until(lambda: requests.kill.is_set() or done(broker), "an end", deadline_s=DEADLINE_S)
    assert [letter.value for letter in broker.messages(f"{DATASETS_INGEST.name}.dlq")] == [b"bad"]
    assert set(requests.done) == {b"%d" % number for number in range(12)} - {b"5"}


class Refusing:
    """Takes no request; whoever reads it anew is told the same."""

    def order(self, value: bytes, owner: str, requested_at: datetime) -> None:
        raise Invalid("is larger than 5 bytes", where="source a.jsonl", remedy="Publish it in parts.")


def test_a_request_larger_than_its_dead_letter_may_be_is_set_aside_without_its_content() -> None:
    broker = MemoryBroker(SystemClock())
    with broker.changed:
        broker.append(Outbound(DATASETS_INGEST.name, b"faq", b"0" * 4_000_000))  # as unpacked from a compressed batch
    with life(broker, cast(Any, Refusing())) as worker:
        until(lambda: worker.failed or done(broker), "an end", deadline_s=DEADLINE_S)
        assert worker.failed is None
    (letter,) = broker.messages(f"{DATASETS_INGEST.name}.dlq")
    assert letter.value is None
    assert b"value of 4000000 bytes" in dict(letter.headers)["dlq-left-out"]


POINTER = b'{"dataset": "faq", "source": "a.jsonl", "train": {}, "job": "ftjob-1"}'


def test_a_request_that_is_refused_fails_its_dataset_with_reason_and_remedy() -> None:
    broker = sent(POINTER)
    for _ in range(2):
        with life(broker, cast(Any, Refusing())) as worker:
            until(lambda: worker.failed or done(broker), "an end", deadline_s=DEADLINE_S)
        broker.reset(GROUP)  # the next life reads it again, which fails nothing else
    assert len(broker.messages(f"{DATASETS_INGEST.name}.dlq")) == 2
    (snapshot,) = told(broker)
    assert (snapshot.publication.owner, snapshot.publication.dataset) == ("default", "faq")
    assert (snapshot.publication.job, snapshot.state) == ("ftjob-1", DATASET_STATE_FAILED)
    assert snapshot.message == "source a.jsonl: is larger than 5 bytes"
    assert snapshot.remedy == "Publish it in parts."


@pytest.mark.parametrize(
    "value",
    [
        b'{"dataset": "faq", "records": [',
        b'{"dataset": "faq", "sauce": "a.jsonl"}',
        b'{"dataset": "faq", "upload": "u", "seq": 0, "records": [{}]}',
        b'{"dataset": "faq", "retry": "00000000000000000000000000000000"}',
    ],
)
def test_what_cannot_be_read_or_is_only_about_another_request_fails_no_dataset(value: bytes) -> None:
    broker = sent(value)
    with life(broker, cast(Any, Refusing())) as worker:
        until(lambda: worker.failed or done(broker), "an end", deadline_s=DEADLINE_S)
    assert len(broker.messages(f"{DATASETS_INGEST.name}.dlq")) == 1
    assert not told(broker)


def test_care_ends_when_all_that_stood_there_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "give_up", lambda attempts: None)
    broker, requests = sent(b"slow"), Deadly()
    with life(broker, requests):
        until(lambda: requests.begun, "it is begun", deadline_s=DEADLINE_S)
    requests.let_go.set()
    with life(broker, requests) as worker:
        until(lambda: worker._attempts.careful or done(broker), "the mark is found", deadline_s=DEADLINE_S)
        until(lambda: done(broker) and not worker._attempts.careful, "it is past it", deadline_s=DEADLINE_S)
        requests.let_go.clear()
        requests.begun.clear()
        for key in (b"faq", b"faq"):
            broker.producer().send(Outbound(DATASETS_INGEST.name, key, b"slow")).result(5)
        broker.producer().send(Outbound(DATASETS_INGEST.name, b"faq", b"beside")).result(5)
        until(lambda: b"beside" in requests.done, "several are under way", deadline_s=DEADLINE_S)
