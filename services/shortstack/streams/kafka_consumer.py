"""Reading from Apache Kafka: as a member of a group, or whole topics without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kafka.consumer.group import KafkaConsumer as RawConsumer
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata, TopicPartition

from shortstack.core.errors import Transient
from shortstack.streams.broker import Delivery, Partition
from shortstack.streams.kafka_errors import CALL_MS, LOST, translated
from shortstack.streams.limits import unknown_topic

__all__ = ["KafkaConsumer", "KafkaReader"]

_MIB: Final = 1024 * 1024
_CLOSE_MS: Final = 3000
_JOIN_MS: Final = 3000
_READER_WAIT_MS: Final = 500
"""A question for the end of the topic waits behind the fetch under way, on the same connection."""
_SILENCE_S: Final = 5.0
"""A reader that is given nothing for so long asks whether the broker is there."""
_ASK_MS: Final = 3000

_COMMON: Final[dict[str, Any]] = {
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "allow_auto_create_topics": False,
    "max_partition_fetch_bytes": 2 * _MIB,
    "fetch_max_bytes": 16 * _MIB,
}

_Callback = Callable[[frozenset[Partition]], None]


class KafkaConsumer:
    """See `Consumer`.

    Args:
        settings: see `client_settings`.
        group: consumer group.
        topics: names.
        on_assigned: called within `poll`, in its thread.
        on_revoked: called within `poll`, in its thread, when the partitions are gone already.
        forget: told when it is closed.

    Raises:
        Transient: a topic does not exist.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        group: str,
        topics: Sequence[str],
        on_assigned: _Callback | None,
        on_revoked: _Callback | None,
        forget: Callable[[KafkaConsumer], None],
    ) -> None:
        self._raw = RawConsumer(
            **settings,
            **_COMMON,
            group_id=group,
            partition_assignment_strategy=[CooperativeStickyAssignor()],
            # A member that was killed is replaced after the session; a join or leave takes one heartbeat.
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
        )
        self._forget = forget
        self._listener = _Listener(on_assigned, on_revoked)
        try:
            # Joining before it knows the topics, the client is given nothing, and may not notice when it learns them.
            for topic in topics:
                _partitions_of(self._raw, topic)
        except BaseException:
            self._raw.close(autocommit=False, timeout_ms=_CLOSE_MS)
            raise
        self._raw.subscribe(topics=list(topics), listener=self._listener)
        self._next: dict[Partition, int] = {}

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """See `Consumer.poll`."""
        coordinator = self._raw._coordinator
        with translated("poll"):
            if coordinator.need_rejoin():
                # A join that ends between two polls is forgotten and begun anew, for ever on a slow machine, and no
                # heartbeat is sent meanwhile. So one poll waits for it.
                coordinator.poll(timeout_ms=_JOIN_MS)
            found = self._raw.poll(timeout_ms=int(timeout_s * 1000), max_records=max_messages)
        self._listener.dispatch()
        deliveries = _deliveries(found)
        for delivery in deliveries:
            self._next[delivery.partition] = delivery.offset + 1
        return deliveries

    def assignment(self) -> frozenset[Partition]:
        """See `Consumer.assignment`."""
        return frozenset(Partition(topic, number) for topic, number in self._raw.assignment())

    def pause(self, partitions: Iterable[Partition]) -> None:
        """See `Consumer.pause`."""
        self._raw.pause(*_raw(self.assignment() & set(partitions)))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """See `Consumer.resume`."""
        self._raw.resume(*_raw(self.assignment() & set(partitions)))

    def seek(self, partition: Partition, offset: int) -> None:
        """See `Consumer.seek`."""
        if partition in self.assignment():
            self._raw.seek(*_raw([partition]), offset)
            self._next[partition] = offset

    def commit(self, offsets: Mapping[Partition, tuple[int, str]]) -> bool:
        """See `Consumer.commit`."""
        if not set(offsets) <= self.assignment():
            return False
        wanted = {
            TopicPartition(p.topic, p.number): OffsetAndMetadata(offset, metadata, -1)
            for p, (offset, metadata) in offsets.items()
        }
        try:
            with translated("commit"):
                try:
                    self._raw.commit(wanted, timeout_ms=CALL_MS)
                except LOST as error:
                    if not self._raw._coordinator.need_rejoin():
                        raise _out_of_group(error) from error
                    return False
        finally:
            self._listener.dispatch()
        return True

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """See `Consumer.committed`."""
        with translated(f"committed offset of {partition}"):
            (raw,) = _raw([partition])
            found = self._raw.committed(raw, metadata=True, timeout_ms=CALL_MS)
        return None if found is None or found.offset < 0 else (found.offset, found.metadata or "")

    def lag(self) -> int:
        """See `Consumer.lag`; as of the last fetch, and without partitions that nothing was read from yet."""
        total = 0
        for partition in self.assignment() & set(self._next):
            end = self._raw.highwater(*_raw([partition]))
            total += max(0, (end or 0) - self._next[partition])
        return total

    def undelivered(self) -> int:
        """See `Consumer.undelivered`. A position that the client has not settled counts as the beginning."""
        partitions = sorted(self._raw.assignment() - self._raw.paused())
        if not partitions:
            return 0
        with translated("end of topics"):
            ends = self._raw.end_offsets(partitions, timeout_ms=CALL_MS)
            positions = {p: self._raw.position(p, timeout_ms=CALL_MS) or 0 for p in partitions}
        return sum(max(0, ends[p] - positions[p]) for p in partitions)

    def close(self) -> None:
        """See `Consumer.close`."""
        self._forget(self)
        with translated("close"):
            self._raw.close(autocommit=False, timeout_ms=_CLOSE_MS)


class KafkaReader:
    """See `Reader`. Assigned, not subscribed: no group, no rebalance.

    Args:
        settings: see `client_settings`.
        topics: names.
        from_end: begin after what is there now.
        forget: told when it is closed.

    Raises:
        Transient: a topic does not exist.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        topics: Sequence[str],
        from_end: bool,
        forget: Callable[[KafkaReader], None],
    ) -> None:
        self._forget = forget
        self._heard_at = time.monotonic()
        self._raw = RawConsumer(**settings, **_COMMON, group_id=None, fetch_max_wait_ms=_READER_WAIT_MS)
        try:
            self._partitions = [p for topic in topics for p in _partitions_of(self._raw, topic)]
            self._raw.assign(self._partitions)
            if from_end:
                self._raw.seek_to_end(*self._partitions)
                self.caught_up()  # settles the positions now, not at the first poll
            else:
                self._raw.seek_to_beginning(*self._partitions)
        except BaseException:
            self._raw.close(autocommit=False, timeout_ms=_CLOSE_MS)
            raise

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """See `Reader.poll`."""
        with translated("poll"):
            found = self._raw.poll(timeout_ms=int(timeout_s * 1000), max_records=max_messages)
        if found:
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at >= _SILENCE_S:
            self._ends(_ASK_MS)  # polling alone never says that the broker is away
            self._heard_at = time.monotonic()
        return _deliveries(found)

    def caught_up(self) -> bool:
        """See `Reader.caught_up`."""
        ends = self._ends(CALL_MS)
        with translated("end of topics"):
            positions = {p: self._raw.position(p, timeout_ms=CALL_MS) for p in self._partitions}
        return all(positions[p] is not None and positions[p] >= ends[p] for p in self._partitions)

    def _ends(self, timeout_ms: int) -> dict[TopicPartition, int]:
        with translated("end of topics"):
            return dict(self._raw.end_offsets(self._partitions, timeout_ms=timeout_ms))

    def close(self) -> None:
        """See `Reader.close`."""
        self._forget(self)
        with translated("close"):
            self._raw.close(autocommit=False, timeout_ms=_CLOSE_MS)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Carries rebalances from the client's IO thread, which must not block, to the thread that polls."""

    def __init__(self, on_assigned: _Callback | None, on_revoked: _Callback | None) -> None:
        self._callbacks = {"assigned": on_assigned, "revoked": on_revoked}
        self._lock = threading.Lock()
        self._events: list[tuple[str, frozenset[Partition]]] = []

    def on_partitions_assigned(self, assigned: Iterable[tuple[str, int]]) -> None:
        self._note("assigned", assigned)

    def on_partitions_revoked(self, revoked: Iterable[tuple[str, int]]) -> None:
        self._note("revoked", revoked)

    def on_partitions_lost(self, lost: Iterable[tuple[str, int]]) -> None:
        self._note("revoked", lost)

    def dispatch(self) -> None:
        """Calls back about everything since the last time."""
        with self._lock:
            events, self._events = self._events, []
        for kind, partitions in events:
            callback = self._callbacks[kind]
            if callback is not None:
                callback(partitions)

    def _note(self, kind: str, partitions: Iterable[tuple[str, int]]) -> None:
        with self._lock:
            self._events.append((kind, frozenset(Partition(topic, number) for topic, number in partitions)))


def _out_of_group(error: Exception) -> Transient:
    """For a commit that is refused although the client knows of nothing that it has to join: it would be, for ever."""
    return Transient(
        f"{type(error).__name__}: {error}", where="commit", remedy="It is no member any more, and joins its group anew."
    )


def _partitions_of(raw: RawConsumer, topic: str) -> list[TopicPartition]:
    with translated(f"partitions of {topic}"):
        numbers = raw.partitions_for_topic(topic)
    if not numbers:
        raise unknown_topic(topic)
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def _raw(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(p.topic, p.number) for p in partitions]


def _deliveries(found: Mapping[TopicPartition, Sequence[Any]]) -> list[Delivery]:
    deliveries = []
    for (topic, number), records in found.items():
        partition = Partition(topic, number)
        for record in records:
            headers = tuple((name, value or b"") for name, value in record.headers)
            deliveries.append(Delivery(partition, record.offset, record.timestamp, record.key, record.value, headers))
    return deliveries
