"""A dead letter always fits its topic, and how much poison is too much."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Invalid, Poison
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Delivery, Outbound, Partition
from shortstack.streams.dead_letters import LEFT_OUT, DeadLetterLimit, Fates, dead_letter
from shortstack.streams.limits import size_of
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.set_aside import SetAside
from shortstack.streams.topics import MODELS_REQUESTS, RECORDS_RAW, Topic, dead_letters
from shortstack.streams.worker import BatchWorker

CLOCK = SystemClock()
HUGE = b"0" * (4 * 1024 * 1024)
"""What a batch of a few kilobytes unpacks to."""


class Refuses:
    """A handler that takes nothing."""

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        raise Invalid("it is bad")

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        return []


def unpacked(topic: Topic) -> MemoryBroker:
    """A broker with a message that is larger than its topic takes, as it is after a compressed batch was read."""
    broker = MemoryBroker(CLOCK)
    with broker.changed:
        broker.append(Outbound(topic.name, b"key", HUGE, (("foreign", b"x" * 1000),)))
    return broker


def stands_for_the_message(letter: Delivery, topic: Topic) -> None:
    headers = dict(letter.headers)
    assert (letter.key, letter.value) == (b"key", None)
    assert headers["dlq-topic"] == topic.name.encode()
    assert headers["dlq-offset"] == b"0"
    told = headers[LEFT_OUT].decode()
    assert f"{len(HUGE)} bytes" in told
    assert hashlib.sha256(HUGE).hexdigest() in told
    assert "1 headers" in told
    assert "foreign" not in headers


def test_a_batch_worker_sets_aside_what_is_larger_than_the_letters_topic_takes() -> None:
    broker = unpacked(RECORDS_RAW)
    with Telemetry.start("test", ServiceConfig(), io.StringIO()) as telemetry:
        worker = BatchWorker(broker, "group", [RECORDS_RAW.name], Refuses(), Health(60, CLOCK), telemetry, CLOCK)
        worker.start()
        until(lambda: worker.failed or broker.lag("group", [RECORDS_RAW.name]) == 0, "an end")
        worker.stop(10)
    assert worker.failed is None
    (letter,) = broker.messages(dead_letters(RECORDS_RAW).name)
    stands_for_the_message(letter, RECORDS_RAW)


def test_a_controller_sets_aside_what_is_larger_than_the_letters_topic_takes() -> None:
    broker = unpacked(MODELS_REQUESTS)
    (delivery,) = broker.messages(MODELS_REQUESTS.name)
    with Telemetry.start("test", ServiceConfig(), io.StringIO()) as telemetry:
        aside = SetAside(broker, MODELS_REQUESTS, "serving", telemetry, CLOCK)
        aside.put(delivery, Invalid("it is bad"))
        small = Delivery(delivery.partition, 1, 0, b"key", b"small", ())
        aside.put(small, Invalid("it is bad"))
        aside.close(5)
    huge, other = broker.messages(dead_letters(MODELS_REQUESTS).name)
    stands_for_the_message(huge, MODELS_REQUESTS)
    assert other.value == b"small"


sizes = st.sampled_from([0, 10, 60_000, 1_000_000, 2_200_000])


@given(key=sizes, value=sizes, foreign=st.lists(sizes, max_size=2), text=sizes)
def test_every_letter_fits(key: int, value: int, foreign: list[int], text: int) -> None:
    headers = tuple((f"foreign-{number}", b"x" * size) for number, size in enumerate(foreign))
    delivery = Delivery(Partition(RECORDS_RAW.name, 0), 7, 0, b"k" * key, b"v" * value, headers)
    letter = dead_letter(delivery, Invalid("\N{SNOWMAN}" * text, remedy="r" * text), 1, group="g", clock=CLOCK)
    assert size_of(letter) <= dead_letters(RECORDS_RAW).max_bytes
    whole = (letter.key, letter.value) == (delivery.key, delivery.value)
    assert whole != (LEFT_OUT in dict(letter.headers))


def excess_of(origins: Sequence[tuple[str | None, bool]]) -> str | None:
    """The first excess of a worker that meets these messages, in this order."""
    fates = Fates(DeadLetterLimit())
    for origin, poison in origins:
        if poison and (excess := fates.excess(origin)):
            return excess
        fates.add(poison, origin)
    return None


def test_one_origin_may_be_all_poison() -> None:
    assert excess_of([("one", True)] * 1000) is None


@pytest.mark.parametrize("batches", [1, 50, 1000])
def test_poison_of_many_origins_is_too_much_however_large_each_is(batches: int) -> None:
    assert excess_of([(f"{number}", True) for number in range(10) for _ in range(batches)]) is not None


def test_a_good_batch_speaks_for_its_own_origin_alone() -> None:
    bad = [[("good", False), (f"{number}", True)] for number in range(10)]
    assert excess_of([one for pair in bad for one in pair]) is not None
    half = [[(f"good {number}", False), (f"bad {number}", True)] for number in range(100)]
    assert excess_of([one for pair in half for one in pair]) is None


def test_what_has_no_origin_counts_by_itself() -> None:
    assert excess_of([(None, True)] * 99) is None
    assert excess_of([(None, True)] * 100) == "100 messages in a row are poison"
    assert excess_of([(None, True)] * 99 + [("one", False)] + [(None, True)] * 99) is None
