"""A notice is told once, over any number of lives of the controller that tells it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from shortstack.core.clock import SystemClock
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.notices import Notices
from shortstack.streams.topics import DATASETS_READY


def at(age: timedelta = timedelta()) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime((datetime.now(UTC) - age).replace(tzinfo=None))
    return stamp


def told(broker: MemoryBroker) -> list[bytes | None]:
    return [message.value for message in broker.messages(DATASETS_READY.name)]


def notices(broker: MemoryBroker) -> Notices:
    return Notices(broker, DATASETS_READY, "assembly", SystemClock())


def test_what_was_told_in_an_earlier_life_is_not_told_again() -> None:
    broker = MemoryBroker(SystemClock())
    first = notices(broker)
    first.tell("one/1", "one", b"one", at())
    first.tell("one/1", "one", b"one, changed", at())
    first.close(1)
    second = notices(broker)
    assert second.told("one/1")
    assert not second.told("one/2")
    second.tell("one/1", "one", b"one", at())
    second.tell("one/2", "one", b"another attempt", at())
    assert told(broker) == [b"one", b"another attempt"]


def test_what_is_a_day_old_is_no_news() -> None:
    broker = MemoryBroker(SystemClock())
    notices(broker).tell("old/1", "old", b"old", at(timedelta(hours=25)))
    notices(broker).tell("new/1", "new", b"new", at(timedelta(hours=23)))
    assert told(broker) == [b"new"]
