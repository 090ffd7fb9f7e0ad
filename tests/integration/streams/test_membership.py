"""A member of a real group that misses something of its joining: it is put right, or it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kafka.coordinator.base import MemberState
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Transient
from shortstack.streams.broker import Delivery
from shortstack.streams.envelope import outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.kafka_consumer import KafkaConsumer
from shortstack.streams.topics import Topic, TopicKind

SHORT_MS, LATE_S = 50, 0.3


@pytest.fixture
def broker(kafka_bootstrap: str) -> Iterator[KafkaBroker]:
    with KafkaBroker.connect(ServiceConfig(kafka_bootstrap=kafka_bootstrap, kafka_bootstrap_timeout_s=5)) as made:
        yield made


@pytest.fixture
def topic(broker: KafkaBroker) -> Topic:
    made = Topic(f"membership.{time.monotonic_ns()}", "k", "bytes", TopicKind.PIPE, 4, 7, 100_000)
    broker.apply([made])
    return made


@pytest.fixture
def member(broker: KafkaBroker, topic: Topic) -> Iterator[KafkaConsumer]:
    """The only member of its group: it has joined, and knows what there is to know of its topic."""
    consumer = broker.consumer(topic.name, [topic.name])
    coordinator = consumer._raw._coordinator

    def settled() -> bool:
        consumer.poll(0.1)
        return bool(
            consumer.assignment()
            and coordinator._assignment_snapshot == coordinator._metadata_snapshot
            and coordinator._metadata_snapshot.get(topic.name)
        )

    until(settled, "the group's second joining is over")
    yield consumer
    consumer.close()


def send(broker: KafkaBroker, topic: Topic) -> None:
    producer = broker.producer()
    producer.send(outbound(topic, "a", b"1", type="test", source="test", clock=SystemClock()))
    producer.flush(10)
    producer.close(5)


def test_a_poll_that_ends_in_the_middle_of_a_joining_leaves_a_member_that_can_commit(
    broker: KafkaBroker, topic: Topic, member: KafkaConsumer
) -> None:
    coordinator = member._raw._coordinator
    joined = coordinator._do_join_and_sync_async

    async def late() -> bytes:
        assignment: bytes = await joined()
        await coordinator._net.sleep(LATE_S)
        return assignment

    coordinator._do_join_and_sync_async = late
    coordinator._assignment_snapshot = {}  # the topic's partitions became known, or others
    member._raw.poll(timeout_ms=SHORT_MS)
    assert coordinator.state is MemberState.REBALANCING

    send(broker, topic)
    found: list[Delivery] = until(lambda: member.poll(0.2), "the message")
    assert coordinator.state is MemberState.STABLE
    assert member.commit({found[0].partition: (found[0].offset + 1, "")})
    assert broker.lag(topic.name, [topic.name]) == 0


def test_a_member_that_does_not_know_that_it_is_out_of_its_group_is_told_when_it_commits(
    broker: KafkaBroker, topic: Topic, member: KafkaConsumer
) -> None:
    send(broker, topic)
    found: list[Delivery] = until(lambda: member.poll(0.2), "the message")
    member._raw._coordinator.state = MemberState.REBALANCING  # and nothing goes on that would end it
    with pytest.raises(Transient, match="It is no member any more, and joins its group anew"):
        member.commit({found[0].partition: (found[0].offset + 1, "")})
