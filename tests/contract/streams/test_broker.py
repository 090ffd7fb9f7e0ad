"""What every part of the stack relies on, for the real broker and the one in memory alike."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.streams.broker import Broker, Consumer, Delivery, Outbound, Partition, Reader
from shortstack.streams.envelope import header, outbound
from shortstack.streams.topics import Topic, TopicKind


def message(topic: Topic, key: str, value: bytes) -> Outbound:
    return outbound(topic, key, value, type="test", source="test", clock=SystemClock())


def send(broker: Broker, topic: Topic, *pairs: tuple[str, bytes]) -> list[Partition]:
    producer = broker.producer()
    sent = [producer.send(message(topic, key, value)) for key, value in pairs]
    producer.flush(10)
    producer.close(5)
    return [future.result(0).partition for future in sent]


def read(source: Consumer | Reader, count: int) -> list[Delivery]:
    """The next ``count`` messages; fewer after 60 s."""
    found: list[Delivery] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += source.poll(0.2, max_messages=count - len(found))
    return found


def silent(source: Consumer | Reader) -> bool:
    """Whether nothing more comes for half a second."""
    return not source.poll(0.25) and not source.poll(0.25)


def test_messages_of_a_key_stay_in_order_and_carry_their_headers(broker: Broker, topic: Topic) -> None:
    send(broker, topic, *[("a", b"%d" % i) for i in range(20)], ("b", b"other"))
    reader = broker.reader([topic.name])
    found = read(reader, 21)
    assert [d.value for d in found if d.key == b"a"] == [b"%d" % i for i in range(20)]
    assert [d.offset for d in found if d.key == b"a"] == list(range(20))
    first = found[0]
    assert header(first, "ce_type") == "test"
    assert header(first, "content-type") == "application/protobuf"
    assert header(first, "absent") is None
    reader.close()


def test_a_key_lies_on_the_partition_that_every_kafka_client_gives_it(broker: Broker, topic: Topic) -> None:
    # The murmur2 vectors of Kafka's UtilsTest.java, modulo 4: kcat or a Java producer must meet our messages of a key.
    known = {"21": 0, "foobar": 2, "a-little-bit-long-string": 0, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": 1}
    sent = send(broker, topic, *[(key, b"") for key in known])
    assert [partition.number for partition in sent] == list(known.values())


def test_the_brokers_clock_orders_messages(broker: Broker, topic: Topic) -> None:
    before = time.time() * 1000 - 1
    send(broker, topic, ("a", b"1"), ("a", b"2"))
    reader = broker.reader([topic.name])
    stamps = [d.timestamp_ms for d in read(reader, 2)]
    assert before <= stamps[0] <= stamps[1] <= time.time() * 1000 + 1
    reader.close()


def test_what_was_not_committed_comes_again_and_what_was_does_not(broker: Broker, topic: Topic, unique: str) -> None:
    (partition,) = set(send(broker, topic, *[("a", b"%d" % i) for i in range(4)]))
    first = broker.consumer(unique, [topic.name])
    assert len(read(first, 4)) == 4
    assert first.committed(partition) is None
    assert first.commit({partition: (2, "a note")})
    first.close()
    second = broker.consumer(unique, [topic.name])
    assert [d.value for d in read(second, 2)] == [b"2", b"3"]
    assert second.committed(partition) == (2, "a note")
    assert broker.lag(unique, [topic.name]) == 2
    assert second.commit({partition: (4, "")})
    assert broker.lag(unique, [topic.name]) == 0
    second.close()


def test_a_paused_partition_waits_while_others_flow(broker: Broker, topic: Topic, unique: str) -> None:
    paused, other = send(broker, topic, ("21", b"1"), ("foobar", b"1"))
    consumer = broker.consumer(unique, [topic.name])
    read(consumer, 2)
    consumer.pause([paused])
    send(broker, topic, ("21", b"2"), ("foobar", b"2"))
    assert [d.partition for d in read(consumer, 1)] == [other]
    assert silent(consumer)
    consumer.resume([paused])
    assert [(d.partition, d.value) for d in read(consumer, 1)] == [(paused, b"2")]
    consumer.close()


def test_everything_is_paused_and_resumed_again_and_again_and_nothing_is_lost(
    broker: Broker, topic: Topic, unique: str
) -> None:
    """Polls are short, and the first pause falls into the joining: a member that missed it could not commit."""
    consumer = broker.consumer(unique, [topic.name])
    for round_ in range(30):
        consumer.pause(consumer.assignment())
        consumer.poll(0.01)
        sent = send(broker, topic, ("21", b"%d" % round_), ("foobar", b"%d" % round_))
        consumer.pause(consumer.assignment())
        consumer.poll(0.01)
        consumer.resume(consumer.assignment())
        found = read(consumer, 2)
        assert sorted(d.partition for d in found) == sorted(sent)
        assert {d.value for d in found} == {b"%d" % round_}
        assert consumer.commit({d.partition: (d.offset + 1, "") for d in found})
    assert broker.lag(unique, [topic.name]) == 0
    consumer.close()


def test_what_was_not_delivered_is_counted_by_asking_the_broker(broker: Broker, topic: Topic, unique: str) -> None:
    with ExitStack() as stack:
        consumer = broker.consumer(unique, [topic.name])
        stack.callback(consumer.close)
        send(broker, topic, ("a", b"1"))
        read(consumer, 1)
        assert consumer.undelivered() == 0

        send(broker, topic, ("a", b"2"), ("a", b"3"))
        assert consumer.undelivered() == 2
        consumer.pause(consumer.assignment())
        assert consumer.undelivered() == 0


def test_seeking_back_delivers_again(broker: Broker, topic: Topic, unique: str) -> None:
    (partition,) = set(send(broker, topic, *[("a", b"%d" % i) for i in range(4)]))
    consumer = broker.consumer(unique, [topic.name])
    read(consumer, 4)
    consumer.seek(partition, 1)
    assert [d.offset for d in read(consumer, 3)] == [1, 2, 3]
    consumer.seek(Partition(topic.name, 99), 1)  # not held: nothing happens
    consumer.close()


class Member:
    """A consumer and the one thread that uses it."""

    def __init__(self, broker: Broker, group: str, topic: Topic) -> None:
        self.held: frozenset[Partition] = frozenset()
        self.events: list[tuple[str, frozenset[Partition]]] = []
        self.stray: bool | None = None
        self._ending = threading.Event()
        self._orders: queue.SimpleQueue[Partition] = queue.SimpleQueue()
        self._consumer = broker.consumer(
            group,
            [topic.name],
            on_assigned=lambda p: self.events.append(("assigned", p)),
            on_revoked=lambda p: self.events.append(("revoked", p)),
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._consumer.poll(0.05)
            self.held = self._consumer.assignment()
            with suppress(queue.Empty):
                self.stray = self._consumer.commit({self._orders.get_nowait(): (1, "")})
        self._consumer.close()

    def commit(self, partition: Partition) -> None:
        self._orders.put(partition)

    def leave(self) -> None:
        self._ending.set()
        self._thread.join(20)


def test_members_share_partitions_and_inherit_them(broker: Broker, topic: Topic, unique: str) -> None:
    with ExitStack() as stack:
        first = Member(broker, unique, topic)
        stack.callback(first.leave)
        until(lambda: len(first.held) == 4, "one member holds all")
        second = Member(broker, unique, topic)
        stack.callback(second.leave)
        until(lambda: len(first.held) == len(second.held) == 2, "two members share")
        assert not first.held & second.held
        assert ("revoked", second.held) in first.events
        assert ("assigned", second.held) in second.events
        first.commit(next(iter(second.held)))
        until(lambda: first.stray is not None)
        assert first.stray is False, "committed what another member holds"
        second.leave()
        until(lambda: len(first.held) == 4, "the one that stays inherits")


def test_a_reader_sees_everything_and_knows_the_end(broker: Broker, topic: Topic) -> None:
    send(broker, topic, *[(f"k{i}", b"x") for i in range(10)])
    late = broker.reader([topic.name], from_end=True)
    reader = broker.reader([topic.name])
    assert not reader.caught_up()
    assert len(read(reader, 10)) == 10
    assert reader.caught_up()
    assert late.caught_up()
    send(broker, topic, ("new", b"y"))
    assert not reader.caught_up()
    assert [d.key for d in read(late, 1)] == [b"new"]
    assert [d.key for d in read(reader, 1)] == [b"new"]
    reader.close()
    late.close()


def test_an_empty_topic_is_read_to_its_end(broker: Broker, topic: Topic) -> None:
    reader = broker.reader([topic.name])
    assert reader.caught_up()
    assert reader.poll(0) == []
    reader.close()


def test_a_deleted_key_is_delivered_without_a_value(broker: Broker, topic: Topic) -> None:
    producer = broker.producer()
    producer.send(replace(message(topic, "a", b""), value=None))
    producer.flush(10)
    producer.close(5)
    reader = broker.reader([topic.name])
    assert [d.value for d in read(reader, 1)] == [None]
    reader.close()


def test_too_large_a_message_is_refused_by_name_and_others_go_on(broker: Broker) -> None:
    producer = broker.producer()
    ingest = Topic("datasets.ingest", "dataset", "request (JSON)", TopicKind.PIPE, 4)
    broker.apply([ingest])
    refused = producer.send(message(ingest, "a", b"x" * 3_000_000))
    with pytest.raises(Poison, match=r"datasets\.ingest takes"):
        refused.result(0)
    accepted = producer.send(message(ingest, "a", b"x"))
    producer.flush(10)
    assert accepted.result(0).partition.topic == ingest.name
    producer.close(5)


def test_an_unknown_topic_is_worth_another_try(broker: Broker, unique: str) -> None:
    with pytest.raises(Transient, match="topics apply"):
        broker.reader([f"absent.{unique}"])
    with pytest.raises(Transient, match="topics apply"):
        broker.consumer(unique, [f"absent.{unique}"])
    with pytest.raises(Transient, match="topics apply"):
        broker.lag("group", [f"absent.{unique}"])


def test_topics_are_applied_once_and_configured_when_they_differ(broker: Broker, unique: str) -> None:
    topic = Topic(f"applied.{unique}", "k", "v", TopicKind.PIPE, 2, 7)
    assert broker.apply([topic]) == [f"created {topic.name} (2 partitions, 1 replicas)"]
    assert broker.apply([topic]) == []
    (line,) = broker.apply([replace(topic, retention_days=1)])
    assert line.startswith(f"configured {topic.name}")
    assert broker.apply([replace(topic, retention_days=1)]) == []


def test_a_state_topic_has_one_partition_for_ever(broker: Broker, unique: str) -> None:
    with pytest.raises(Fatal, match="2 partitions"):
        broker.apply([Topic(f"spread.{unique}", "k", "v", TopicKind.STATE, 2, None)])


def test_the_broker_says_when_it_is_there(broker: Broker) -> None:
    broker.ready(5)
