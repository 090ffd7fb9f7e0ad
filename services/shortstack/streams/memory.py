"""A broker in memory: logs, groups, commits and compaction, for tests. Same contract tests as `KafkaBroker`."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from kafka.partitioner.default import murmur2

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.streams.broker import Delivery, Outbound, Partition, Position
from shortstack.streams.limits import too_large, unknown_topic
from shortstack.streams.memory_log import Log
from shortstack.streams.topics import TOPICS, Topic, TopicKind

__all__ = ["MemoryBroker"]

_AWAY: Final = "the broker is away"


@dataclass(slots=True)
class _Group:
    """A consumer group; partitions move only once their holder has let go, as in cooperative rebalancing."""

    members: dict[str, MemoryConsumer] = field(default_factory=dict)
    committed: dict[Partition, tuple[int, str]] = field(default_factory=dict)

    def wanted(self, member: str, partitions: Sequence[Partition]) -> frozenset[Partition]:
        """Every n-th partition for each of n members that read its topic."""
        mine = []
        for place, partition in enumerate(sorted(partitions)):
            readers = sorted(name for name, other in self.members.items() if partition.topic in other.topics)
            if readers and readers[place % len(readers)] == member:
                mine.append(partition)
        return frozenset(mine)


class MemoryBroker:
    """Topics as lists, shared by threads.

    Args:
        clock: gives append times.
        topics: exist from the beginning; the declared ones unless given.
    """

    def __init__(self, clock: Clock, topics: Iterable[Topic] | None = None) -> None:
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.groups: dict[str, _Group] = {}
        self._topics: dict[str, Topic] = {}
        self._logs: dict[Partition, Log] = {}
        self._pending: list[tuple[Outbound, Future[Position]]] = []
        self._away = False
        self.apply(TOPICS.values() if topics is None else topics)

    def producer(self) -> MemoryProducer:
        """See `Broker.producer`."""
        return MemoryProducer(self)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callable[[frozenset[Partition]], None] | None = None,
        on_revoked: Callable[[frozenset[Partition]], None] | None = None,
    ) -> MemoryConsumer:
        """See `Broker.consumer`."""
        with self.changed:
            self.require(topics)
            return MemoryConsumer(self, self.groups.setdefault(group, _Group()), topics, on_assigned, on_revoked)

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> MemoryReader:
        """See `Broker.reader`."""
        return MemoryReader(self, topics, from_end)

    def apply(self, topics: Iterable[Topic], *, replication: int = 1) -> list[str]:
        """See `Broker.apply`."""
        lines = []
        with self.changed:
            for topic in topics:
                if topic.kind is TopicKind.STATE and topic.partitions != 1:
                    raise Fatal(f"state topic {topic.name} has {topic.partitions} partitions", remedy="Declare one.")
                if topic.name not in self._topics:
                    lines.append(f"created {topic.name} ({topic.partitions} partitions, {replication} replicas)")
                    self._logs |= {Partition(topic.name, number): Log() for number in range(topic.partitions)}
                elif self._topics[topic.name].configs != topic.configs:
                    lines.append(f"configured {topic.name}")
                self._topics[topic.name] = topic
        return lines

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """See `Broker.lag`."""
        with self.changed:
            self.require(topics)
            committed = self.committed(group)
            return sum(self.end(p) - committed.get(p, (0, ""))[0] for p in self.partitions(topics))

    def ready(self, timeout_s: float) -> None:
        """See `Broker.ready`."""
        if self._away:
            raise Transient(f"{_AWAY}, for {timeout_s} s", where="memory")

    def close(self) -> None:
        """See `Broker.close`."""

    # What tests ask for.

    def set_away(self, away: bool) -> None:
        """Makes the broker unreachable, or reachable again: what was sent meanwhile arrives then, in order."""
        with self.changed:
            self._away = away
            if not away:
                waiting, self._pending = self._pending, []
                for message, future in waiting:
                    future.set_result(self.append(message))

    def compact(self, topic: str) -> None:
        """Keeps the last message of each key; a deleted key vanishes. Offsets stay."""
        with self.changed:
            for partition in self.partitions([topic]):
                self._logs[partition].compact()

    def expire(self, topic: str) -> None:
        """Forgets what stands on the topic, as retention does. Offsets stay."""
        with self.changed:
            for partition in self.partitions([topic]):
                self._logs[partition].messages.clear()

    def messages(self, topic: str) -> list[Delivery]:
        """Everything on ``topic``, partition by partition."""
        with self.changed:
            return [message for p in self.partitions([topic]) for message in self._logs[p].messages]

    def committed(self, group: str) -> dict[Partition, tuple[int, str]]:
        """What ``group`` has committed."""
        with self.changed:
            return dict(self.groups[group].committed) if group in self.groups else {}

    def reset(self, group: str) -> None:
        """Forgets what ``group`` has committed, as an operator's reset to the earliest message does."""
        with self.changed:
            self.groups[group].committed.clear()

    # What producers, consumers and readers ask for, under the lock.

    @property
    def away(self) -> bool:
        """Whether it is unreachable now."""
        return self._away

    def send(self, message: Outbound) -> Future[Position]:
        """Appends now, or once the broker is back."""
        future: Future[Position] = Future()
        with self.changed:
            topic = self._topics.get(message.topic)
            problem: Exception | None = unknown_topic(message.topic) if topic is None else too_large(message, topic)
            if problem is not None:
                future.set_exception(problem)
            elif self._away:
                self._pending.append((message, future))
            else:
                future.set_result(self.append(message))
        return future

    def append(self, message: Outbound) -> Position:
        """Puts ``message`` on its log and wakes who waits."""
        count = self._topics[message.topic].partitions
        number = (murmur2(message.key) & 0x7FFFFFFF) % count
        partition = Partition(message.topic, number)
        log = self._logs[partition]
        stamp = int(self.clock.now().timestamp() * 1000)
        log.messages.append(Delivery(partition, log.end, stamp, message.key, message.value, message.headers))
        position = Position(partition, log.end, stamp)
        log.end += 1
        self.changed.notify_all()
        return position

    def require(self, topics: Iterable[str]) -> None:
        """Raises Transient if one of ``topics`` does not exist."""
        for topic in topics:
            if topic not in self._topics:
                raise unknown_topic(topic)

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        """Of topics that exist."""
        wanted = set(topics)
        return [partition for partition in self._logs if partition.topic in wanted]

    def read(self, partition: Partition, offset: int, count: int) -> list[Delivery]:
        """Up to ``count`` messages from ``offset`` on."""
        return [] if self._away else self._logs[partition].read(offset, count)

    def end(self, partition: Partition) -> int:
        """The offset after the last message."""
        return self._logs[partition].end


class MemoryProducer:
    """See `Producer`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._sent: list[Future[Position]] = []

    def send(self, message: Outbound) -> Future[Position]:
        """See `Producer.send`."""
        future = self._broker.send(message)
        self._sent.append(future)
        return future

    def flush(self, timeout_s: float) -> None:
        """See `Producer.flush`."""
        if not self._sent:
            return
        with self._broker.changed:
            waiting, failed = [f for f in self._sent if not f.done()], [f for f in self._sent if f.done()]
            self._sent = waiting
        errors = [error for future in failed if (error := future.exception()) is not None]
        if waiting:
            raise Transient(f"{_AWAY}, {len(waiting)} messages wait", where=f"flush within {timeout_s} s")
        transient = next((error for error in errors if not isinstance(error, Poison)), None)
        if transient is not None:
            raise transient

    def close(self, timeout_s: float) -> None:
        """See `Producer.close`."""
        self.flush(timeout_s)


class _Positions:
    """Reads some partitions, in turn, from positions it keeps."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.next: dict[Partition, int] = {}
        self.paused: set[Partition] = set()

    def take(self, max_messages: int) -> list[Delivery]:
        """The next messages of every partition that is not paused."""
        taken: list[Delivery] = []
        for partition in sorted(self.next):
            if partition in self.paused:
                continue
            found = self.broker.read(partition, self.next[partition], max_messages - len(taken))
            if found:
                self.next[partition] = found[-1].offset + 1
                taken += found
        return taken

    def behind(self) -> int:
        """Messages from the positions to the ends."""
        return sum(self.broker.end(partition) - offset for partition, offset in self.next.items())


class MemoryConsumer:
    """See `Consumer`."""

    def __init__(
        self,
        broker: MemoryBroker,
        group: _Group,
        topics: Sequence[str],
        on_assigned: Callable[[frozenset[Partition]], None] | None,
        on_revoked: Callable[[frozenset[Partition]], None] | None,
    ) -> None:
        self.topics = frozenset(topics)
        self._broker = broker
        self._group = group
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._held = _Positions(broker)
        self._name = uuid.uuid4().hex
        group.members[self._name] = self

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """See `Consumer.poll`."""
        deadline = time.monotonic() + timeout_s
        with self._broker.changed:
            while True:
                self._rebalance()
                taken = self._held.take(max_messages)
                left = deadline - time.monotonic()
                if taken or left <= 0:
                    return taken
                self._broker.changed.wait(left)

    def assignment(self) -> frozenset[Partition]:
        """See `Consumer.assignment`."""
        return frozenset(self._held.next)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """See `Consumer.pause`."""
        self._held.paused |= set(partitions) & set(self._held.next)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """See `Consumer.resume`."""
        self._held.paused -= set(partitions)

    def seek(self, partition: Partition, offset: int) -> None:
        """See `Consumer.seek`."""
        if partition in self._held.next:
            self._held.next[partition] = offset

    def commit(self, offsets: Mapping[Partition, tuple[int, str]]) -> bool:
        """See `Consumer.commit`."""
        with self._broker.changed:
            if self._broker.away:
                raise Transient(_AWAY, where="commit")
            if self._name not in self._group.members or not set(offsets) <= set(self._held.next):
                return False
            self._group.committed.update(offsets)
            return True

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """See `Consumer.committed`."""
        with self._broker.changed:
            return self._group.committed.get(partition)

    def lag(self) -> int:
        """See `Consumer.lag`."""
        with self._broker.changed:
            return self._held.behind()

    def undelivered(self) -> int:
        """See `Consumer.undelivered`."""
        with self._broker.changed:
            open_ = {p: offset for p, offset in self._held.next.items() if p not in self._held.paused}
            return sum(self._broker.end(partition) - offset for partition, offset in open_.items())

    def close(self) -> None:
        """See `Consumer.close`."""
        with self._broker.changed:
            self._group.members.pop(self._name, None)
            self._held.next.clear()
            self._broker.changed.notify_all()

    def _rebalance(self) -> None:
        wanted = self._group.wanted(self._name, self._broker.partitions(self.topics))
        held = self.assignment()
        revoked = held - wanted
        if revoked:
            for partition in revoked:
                del self._held.next[partition]
                self._held.paused.discard(partition)
            self._broker.changed.notify_all()
            if self._on_revoked:
                self._on_revoked(revoked)
        others = (m for name, m in self._group.members.items() if name != self._name)
        free = wanted - held - {partition for other in others for partition in other.assignment()}
        if free:
            for partition in free:
                self._held.next[partition] = self._group.committed.get(partition, (0, ""))[0]
            if self._on_assigned:
                self._on_assigned(free)


class MemoryReader:
    """See `Reader`."""

    def __init__(self, broker: MemoryBroker, topics: Sequence[str], from_end: bool) -> None:
        self._broker = broker
        self._held = _Positions(broker)
        with broker.changed:
            broker.require(topics)
            for partition in broker.partitions(topics):
                self._held.next[partition] = broker.end(partition) if from_end else 0

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """See `Reader.poll`."""
        deadline = time.monotonic() + timeout_s
        with self._broker.changed:
            while True:
                taken = self._held.take(max_messages)
                left = deadline - time.monotonic()
                if taken or left <= 0:
                    return taken
                self._broker.changed.wait(left)

    def caught_up(self) -> bool:
        """See `Reader.caught_up`."""
        with self._broker.changed:
            if self._broker.away:
                raise Transient(_AWAY, where="end of topics")
            # What compaction took from the end of a log will never be delivered.
            return all(not self._broker.read(partition, offset, 1) for partition, offset in self._held.next.items())

    def close(self) -> None:
        """See `Reader.close`."""
        self._held.next.clear()
