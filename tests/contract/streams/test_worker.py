"""A worker loses nothing, repeats nothing that counts, and is stopped by no message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal, Invalid, Poison, Transient
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Broker, Delivery, Outbound
from shortstack.streams.dead_letters import DeadLetterLimit
from shortstack.streams.decoding import UNREADABLE
from shortstack.streams.envelope import header, outbound
from shortstack.streams.topics import Topic
from shortstack.streams.worker import BatchWorker, WorkerLimits

CLOCK = SystemClock()


class Killed(BaseException):
    """Stands for a signal that ends the process: no handler of ours catches it."""


@dataclass
class Recorder:
    """Answers every message on ``out``; does what the message's text names."""

    out: Topic
    seen: list[bytes] = field(default_factory=list)
    poisoned: list[tuple[bytes | None, str, int]] = field(default_factory=list)
    refusals: int = 0

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        text = delivery.value or b""
        self.seen.append(text)
        if text == b"poison":
            raise Invalid("it is bad", where="line 1", remedy="Mend it.")
        if text == b"later" and self.refusals > 0:
            self.refusals -= 1
            raise Transient("not yet")
        if text == b"bug":
            raise ValueError("a bug")
        if text == b"kill":
            raise Killed
        if text == b"fatal":
            raise Fatal("the disk is full")
        return [message(self.out, "out", text)]

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        self.poisoned.append((delivery.value, type(error).__name__, attempts))
        return [message(self.out, "out", b"failed")]


def message(topic: Topic, key: str, value: bytes) -> Outbound:
    return outbound(topic, key, value, type="test", source="test", clock=CLOCK)


def send(broker: Broker, topic: Topic, *pairs: tuple[str, bytes]) -> None:
    producer = broker.producer()
    for key, value in pairs:
        producer.send(message(topic, key, value))
    producer.flush(10)
    producer.close(5)


def everything(broker: Broker, name: str) -> list[Delivery]:
    reader = broker.reader([name])
    found: list[Delivery] = []
    while not reader.caught_up():
        found += reader.poll(0.1)
    reader.close()
    return found


@pytest.fixture
def out(broker: Broker, unique: str) -> Topic:
    topic = Topic(f"out.{unique}", "k", "v", "pipe")  # type: ignore[arg-type]  # the kind plays no part here
    broker.apply([topic])
    return topic


@pytest.fixture
def work(broker: Broker, topic: Topic, unique: str, telemetry: Telemetry) -> Callable[..., BatchWorker]:
    """Makes one life of the worker."""

    def make(handler: Recorder, **options: object) -> BatchWorker:
        limits = options.pop("limits", WorkerLimits(backoff_s=0.05, backoff_max_s=0.1, poll_s=0.05))
        health = Health(10, CLOCK)
        return BatchWorker(broker, unique, [topic.name], handler, health, telemetry, CLOCK, limits=limits, **options)  # type: ignore[arg-type]

    return make


@contextmanager
def running(worker: BatchWorker) -> Iterator[BatchWorker]:
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(10)


def test_outputs_are_there_and_offsets_committed(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, *[(f"k{i}", b"%d" % i) for i in range(50)])
    with running(work(Recorder(out))):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert sorted(int(d.value or b"") for d in everything(broker, out.name)) == list(range(50))


def test_poison_goes_to_the_dead_letters_with_its_reason_and_the_next_message_flows(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, ("a", b"1"), ("a", b"poison"), ("a", b"2"))
    recorder = Recorder(out)
    with running(work(recorder)):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert [d.value for d in everything(broker, out.name)] == [b"1", b"failed", b"2"]
    assert recorder.poisoned == [(b"poison", "Invalid", 1)]
    (letter,) = everything(broker, f"{topic.name}.dlq")
    assert (letter.key, letter.value) == (b"a", b"poison")
    told = {
        name: header(letter, f"dlq-{name}") for name in ("topic", "offset", "error", "message", "remedy", "attempts")
    }
    assert told == {
        "topic": topic.name,
        "offset": "1",
        "error": "Invalid",
        "message": "line 1: it is bad. Mend it.",
        "remedy": "Mend it.",
        "attempts": "1",
    }
    assert header(letter, "dlq-original-ce_type") == "test"


def test_a_transient_error_holds_its_partition_in_order_and_no_other(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, ("21", b"later"), ("21", b"after"), ("foobar", b"free"))
    recorder = Recorder(out, refusals=3)
    with running(work(recorder)):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert recorder.seen.count(b"later") == 4
    answers = [d.value for d in everything(broker, out.name)]
    assert answers.index(b"later") < answers.index(b"after")
    assert answers[0] == b"free"


def test_a_message_that_waits_is_handed_on_by_a_rebalance_without_an_attempt(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, *[(f"k{i}", b"later") for i in range(20)])
    recorder = Recorder(out, refusals=1_000_000)
    with ExitStack() as stack:
        stack.enter_context(running(work(recorder)))
        until(lambda: len(recorder.seen) >= 8, "messages of all partitions wait")
        other = broker.consumer(unique, [topic.name])
        stack.callback(other.close)

        def moved() -> bool:
            other.poll(0.05)
            return bool(other.assignment())

        until(moved, "another member has some of the partitions")
        found = [other.committed(partition) for partition in other.assignment()]
    assert found
    assert all(metadata == "" for _, metadata in filter(None, found))


def test_fatal_stops_the_worker_and_its_message_comes_again(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, ("a", b"1"), ("a", b"fatal"))
    for _ in range(7):  # more often than a message may kill: a full disk is not the message's fault
        worker = work(Recorder(out))
        with running(worker):
            until(lambda: worker.failed is not None)  # noqa: B023 - called before the next round
        assert isinstance(worker.failed, Fatal)
    # At the latest at the message that it died of; the one before may have been done in a poll of its own.
    assert broker.lag(unique, [topic.name]) >= 1
    assert everything(broker, f"{topic.name}.dlq") == []


def test_a_bug_is_tried_five_times_and_then_set_aside(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, ("a", b"1"), ("a", b"bug"), ("a", b"2"))
    recorder = Recorder(out)
    for _ in range(5):
        worker = work(recorder)
        with running(worker):
            until(lambda: worker.failed is not None)  # noqa: B023
        assert isinstance(worker.failed, ValueError)
    with running(work(recorder)):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert recorder.seen.count(b"bug") == 5
    assert recorder.poisoned == [(b"bug", "Poison", 6)]
    assert len(everything(broker, f"{topic.name}.dlq")) == 1
    assert [d.value for d in everything(broker, out.name)] == [b"1", b"failed", b"2"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_message_that_kills_the_process_is_set_aside_and_its_neighbours_are_not(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    innocent = [("a", b"%d" % i) for i in range(5)]
    send(broker, topic, *innocent[:3], ("a", b"kill"), *innocent[3:], ("21", b"bystander"), ("foobar", b"bystander"))
    recorder = Recorder(out)
    lives = 0
    while broker.lag(unique, [topic.name]) > 0:
        lives += 1
        assert lives <= 8
        worker = work(recorder)
        worker.start()
        until(lambda: worker.join(0.01) or broker.lag(unique, [topic.name]) == 0)  # noqa: B023
        worker.stop(10)
    assert 5 <= recorder.seen.count(b"kill") <= 6
    assert [value for value, _, _ in recorder.poisoned] == [b"kill"]
    answers = [d.value for d in everything(broker, out.name)]
    assert set(answers) == {b"0", b"1", b"2", b"3", b"4", b"bystander", b"failed"}


def test_what_cannot_be_unpacked_reaches_no_handler(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    producer = broker.producer()
    producer.send(Outbound(topic.name, b"a", None, ((UNREADABLE, b"batch unpacks to too much"),)))
    producer.flush(10)
    producer.close(5)
    recorder = Recorder(out)
    with running(work(recorder)):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert recorder.seen == []
    (letter,) = everything(broker, f"{topic.name}.dlq")
    assert "unpacks to too much" in str(header(letter, "dlq-message"))


def test_too_much_poison_stops_the_worker(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, *[("a", b"poison")] * 10)
    worker = work(Recorder(out), limits=WorkerLimits(dead_letters=DeadLetterLimit(run=4)))
    with running(worker):
        until(lambda: worker.failed is not None)
    assert "4 messages in a row" in str(worker.failed)
    assert len(everything(broker, f"{topic.name}.dlq")) == 3
    with running(work(Recorder(out), limits=WorkerLimits(dead_letters=None))):
        until(lambda: broker.lag(unique, [topic.name]) == 0)


def test_much_poison_of_one_origin_is_its_own_fault(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    limits = WorkerLimits(dead_letters=DeadLetterLimit(run=4), origin=lambda delivery: (delivery.key or b"").decode())
    send(broker, topic, *[("a", b"poison")] * 10)
    with running(work(Recorder(out), limits=limits)):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert len(everything(broker, f"{topic.name}.dlq")) == 10
    send(broker, topic, *[(f"key {number}", b"poison") for number in range(10)])
    worker = work(Recorder(out), limits=limits)
    with running(worker):
        until(lambda: worker.failed is not None)
    assert "5 of 5 origins" in str(worker.failed)


def test_a_groups_reset_repeats_the_work_and_changes_nothing_else(
    broker: Broker, topic: Topic, out: Topic, unique: str, work: Callable[..., BatchWorker]
) -> None:
    send(broker, topic, ("a", b"1"), ("a", b"2"))
    with running(work(Recorder(out))):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    before = [d.value for d in everything(broker, out.name)]
    consumer = broker.consumer(unique, [topic.name])
    while not consumer.assignment():
        consumer.poll(0.1)
    assert consumer.commit(dict.fromkeys(consumer.assignment(), (0, "")))
    consumer.close()
    with running(work(Recorder(out))):
        until(lambda: broker.lag(unique, [topic.name]) == 0)
    assert [d.value for d in everything(broker, out.name)] == before * 2
