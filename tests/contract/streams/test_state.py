"""State topics: one writer at a time, and every reader comes to what the last one wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal, Transient
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.messages.v1.state_pb2 import StateEnvelope
from shortstack.streams.broker import Broker
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateReader, StateWriter
from shortstack.streams.topics import Topic

CLOCK = SystemClock()


def snapshot(text: str) -> DatasetSnapshot:
    return DatasetSnapshot(message=text)


@pytest.fixture
def writer(broker: Broker, state_topic: Topic) -> Iterator[Callable[[], StateWriter[DatasetSnapshot]]]:
    """Makes writers, not yet open, and closes them."""
    made: list[StateWriter[DatasetSnapshot]] = []

    def make() -> StateWriter[DatasetSnapshot]:
        made.append(StateWriter(broker, state_topic, DatasetSnapshot, CLOCK, timeout_s=10))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def reader(broker: Broker, state_topic: Topic) -> Iterator[StateReader[DatasetSnapshot]]:
    made = StateReader(broker, state_topic, DatasetSnapshot)
    made.start()
    yield made
    made.stop(10)
    assert made.failed is None


def texts(reader: StateReader[DatasetSnapshot]) -> dict[str, str]:
    reader.wait_caught_up(10)
    return {key: message.message for key, message in reader.items().items()}


def late(broker: Broker, topic: Topic, key: str, text: str, epoch: int, revision: int = 99) -> None:
    """What a replaced writer sends, after all."""
    payload = snapshot(text).SerializeToString()
    value = StateEnvelope(epoch=epoch, revision=revision, payload=payload).SerializeToString()
    producer = broker.producer()
    producer.send(outbound(topic, key, value, type="test", source="zombie", clock=CLOCK))
    producer.flush(10)
    producer.close(5)


Make = Callable[[], StateWriter[DatasetSnapshot]]


def test_a_reader_sees_what_was_put(writer: Make, reader: StateReader[DatasetSnapshot]) -> None:
    one = writer()
    assert one.open() == {}
    assert one.put("a", snapshot("1"))
    assert one.put_all({"a": snapshot("2"), "b": snapshot("3")})
    assert texts(reader) == {"a": "2", "b": "3"}
    assert one.delete("a")
    assert not one.delete("a")
    assert texts(reader) == {"b": "3"}
    assert reader.get("a") is None


def test_only_a_change_is_written_and_its_revision_rises(broker: Broker, state_topic: Topic, writer: Make) -> None:
    one = writer()
    one.open()
    message = snapshot("1")
    assert one.put("a", message)
    assert not one.put("a", snapshot("1"))
    assert one.revision("a") == 1
    message.message = "2"  # the caller's own copy
    assert one.put("a", message)
    assert one.revision("a") == 2


def test_the_next_writer_goes_on_where_the_last_one_was(writer: Make) -> None:
    one = writer()
    one.open()
    one.put("a", snapshot("1"))
    one.delete("a")
    one.put("a", snapshot("2"))
    one.close()
    two = writer()
    assert {key: message.message for key, message in two.open().items()} == {"a": "2"}
    assert two.epoch == one.epoch + 1
    assert two.put("a", snapshot("3"))
    assert two.revision("a") == 4


def test_a_replaced_writer_ends_and_its_value_counts_for_nothing(
    writer: Make, reader: StateReader[DatasetSnapshot]
) -> None:
    old, new = writer(), writer()
    old.open()
    old.put("a", snapshot("old"))
    new.open()
    new.put("a", snapshot("new"))
    with pytest.raises(Fatal, match="newer writer"):
        old.put("a", snapshot("too late"))
    with pytest.raises(Fatal, match="newer writer"):
        old.check()
    new.check()
    assert texts(reader) == {"a": "new"}


def test_a_late_value_is_void_and_written_over(
    broker: Broker, state_topic: Topic, writer: Make, reader: StateReader[DatasetSnapshot]
) -> None:
    old, new = writer(), writer()
    old.open()
    new.open()
    new.put("a", snapshot("good"))
    late(broker, state_topic, "a", "stale", epoch=old.epoch)
    late(broker, state_topic, "unknown", "stale", epoch=old.epoch)
    assert texts(reader) == {"a": "good"}
    until(lambda: new.check() is None and new.revision("a") > 99, "the living writer repairs")  # type: ignore[func-returns-value]
    if isinstance(broker, MemoryBroker):
        broker.compact(state_topic.name)
    fresh = StateReader(broker, state_topic, DatasetSnapshot)
    fresh.start()
    assert texts(fresh) == {"a": "good"}
    fresh.stop(10)


def test_two_writers_that_open_at_once_do_not_both_go_on(writer: Make, reader: StateReader[DatasetSnapshot]) -> None:
    writers = [writer() for _ in range(3)]
    together = threading.Barrier(len(writers))
    alive: list[int] = []

    def run(place: int) -> None:
        together.wait(10)
        try:
            writers[place].open()
            for step in range(5):
                writers[place].put("a", snapshot(f"{place} {step}"))
        except Fatal:
            return
        alive.append(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({one.epoch for one in writers}) == len(writers)
    newest = max(range(len(writers)), key=lambda place: writers[place].epoch)
    assert newest in alive
    assert texts(reader) == {"a": f"{newest} 4"}


def test_a_miss_is_answered_only_at_the_end_of_the_topic(broker: Broker, state_topic: Topic) -> None:
    idle = StateReader(broker, state_topic, DatasetSnapshot)  # never started: it cannot know
    with pytest.raises(Transient, match="not read to its end"):
        idle.wait_caught_up(0.05)


def test_a_watcher_gets_a_snapshot_and_then_changes(writer: Make, reader: StateReader[DatasetSnapshot]) -> None:
    one = writer()
    one.open()
    one.put_all({"a": snapshot("1"), "b": snapshot("2")})
    reader.wait_caught_up(10)
    seen: list[tuple[str, str | None]] = []
    told: dict[str, str | None] = {}
    active = [True]

    def text(message: DatasetSnapshot | None) -> str | None:
        return message.message if message else None

    def watch() -> None:
        for key, message in reader.watch(active=lambda: active[0]):
            seen.append((key, text(message)))

    reader.subscribe(lambda key, message: told.update({key: text(message)}))
    thread = threading.Thread(target=watch)
    thread.start()
    until(lambda: len(seen) == 2 and told == {"a": "1", "b": "2"}, lambda: (seen, told))
    assert sorted(seen) == [("a", "1"), ("b", "2")]
    one.put("a", snapshot("3"))
    one.delete("b")
    until(lambda: ("a", "3") in seen and ("b", None) in seen)
    until(lambda: told == {"a": "3", "b": None}, lambda: told)
    active[0] = False
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_no_snapshot_is_passed_over(
    broker: Broker, state_topic: Topic, writer: Make, reader: StateReader[DatasetSnapshot]
) -> None:
    one = writer()
    one.open()
    one.put("a", snapshot("1"))
    producer = broker.producer()
    for value in (b"\xff\xff", StateEnvelope(epoch=1, revision=50, payload=b"\xff\xff").SerializeToString()):
        producer.send(outbound(state_topic, "a", value, type="test", source="junk", clock=CLOCK))
    producer.flush(10)
    producer.close(5)
    assert texts(reader) == {"a": "1"}
    one.put("b", snapshot("2"))
    assert texts(reader) == {"a": "1", "b": "2"}
    assert one.revision("a") == 51, "written again, above what was void"
