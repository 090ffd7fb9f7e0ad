"""Ingestion's consumer: several publications at a time, each in a thread, offsets in order.

A worker that handles one message after another would let a dataset of gigabytes hold up all that come behind it. Here
up to ``workers`` publications are under way, their batches interleaved; a partition's offset is committed up to the
first message that is not done, so that a crash repeats all that was unfinished, and repeating changes nothing.
What a process died of is counted (see `streams.attempts`), and set aside after the fifth death. Whoever takes over
from a life that was cut short has one publication under way in all, until it is past what that life may have died of.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.core.health import Health
from shortstack.core.identity import check_name
from shortstack.core.lifecycle import Background
from shortstack.core.telemetry import Telemetry
from shortstack.core.tracing import TRACEPARENT, span
from shortstack.ingestion.publishing.publisher import Abandoned, Publisher
from shortstack.ingestion.publishing.refusals import refusal
from shortstack.ingestion.publishing.requests import Requests
from shortstack.streams.attempts import Attempts, require_readable
from shortstack.streams.broker import Broker, Consumer, Delivery, Partition, Producer
from shortstack.streams.dead_letters import dead_letter
from shortstack.streams.envelope import header
from shortstack.streams.hearing import Hearing
from shortstack.streams.topics import ingest_owner

__all__ = ["GROUP", "IngestionWorker"]

GROUP: Final = "ingestion"
_POLL_S: Final = 0.2
_RECONNECT_S: Final = 1.0
_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_FLUSH_S: Final = 30.0
_CAREFUL: Final = 64
"""Messages of a partition that are taken one at a time after a death was found on it."""


@dataclass(slots=True)
class _Held:
    """A partition that is held: which of its messages are under way, and which done beyond the first that is not."""

    under_way: dict[int, Delivery] = field(default_factory=dict)
    next: int | None = None
    committed: int | None = None
    lost: threading.Event = field(default_factory=threading.Event)

    def begin(self, delivery: Delivery) -> None:
        self.under_way[delivery.offset] = delivery
        self.next = delivery.offset + 1

    def end(self, offset: int) -> None:
        self.under_way.pop(offset, None)

    def due(self) -> int | None:
        """The offset to commit; None if nothing is new."""
        offset = min(self.under_way) if self.under_way else self.next
        return offset if offset is not None and offset != self.committed else None


class IngestionWorker(Background):
    """A member of the group ``ingestion``. A component: one thread polls, a pool works.

    Args:
        topics: ingest topics; the owner of a message is its topic's.
        requests: what a message means.
        publisher: carries it out.
        producer: for dead letters, and what the state is told of them.
        workers: publications under way at most.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Sequence[str],
        requests: Requests,
        publisher: Publisher,
        producer: Producer,
        health: Health,
        telemetry: Telemetry,
        clock: Clock,
        *,
        workers: int = 8,
    ) -> None:
        super().__init__(GROUP)
        self._broker, self._topics = broker, tuple(topics)
        self._requests, self._publisher, self._producer = requests, publisher, producer
        self._health, self._telemetry, self._clock = health, telemetry, clock
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="publication")
        self._lock = threading.Lock()
        self._held: dict[Partition, _Held] = {}
        self._attempts = Attempts(_CAREFUL)
        self._died: tuple[Delivery, Exception] | None = None
        self._waits = telemetry.metrics.waits.labels(GROUP)
        health.ready(GROUP, False, "waiting for Kafka")

    def stop(self, deadline_s: float) -> None:
        """Leaves what is under way to whoever reads it next, commits what is done, leaves the group."""
        super().stop(deadline_s)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._session()
            except Transient as error:
                self._waits.inc()
                self._health.ready(GROUP, False, str(error))
                self._telemetry.log.warning("waiting for Kafka", group=GROUP, error=str(error))
                self._clock.wait(self._stopping, _RECONNECT_S)
            self._health.progress()

    def _session(self) -> None:
        """One membership in the group."""
        self._broker.ready(_FLUSH_S)
        with self._lock:
            self._held = {}
        consumer = self._broker.consumer(GROUP, self._topics, on_revoked=self._revoked)
        self._attempts.join(consumer)
        self._health.ready(GROUP, True)
        hearing = Hearing(consumer, self._clock)
        paused: frozenset[Partition] = frozenset()
        try:
            while not self._stopping.is_set():
                paused = self._turn(consumer, hearing, paused)
            self._commit(consumer)
        finally:
            self._attempts.give_up()  # what is left undone ended no process
            self._revoked(consumer.assignment())
            consumer.close()

    def _turn(self, consumer: Consumer, hearing: Hearing, paused: frozenset[Partition]) -> frozenset[Partition]:
        """Polls, even where nothing can be taken: membership is kept by polling."""
        self._end_if_died(consumer)
        room = self._room()
        held = consumer.assignment()
        wait = held if room <= 0 else frozenset()
        consumer.resume((paused & held) - wait)
        consumer.pause(wait)
        deliveries = consumer.poll(_POLL_S, max(1, room))
        self._attempts.hold(consumer.assignment())
        left: set[Partition] = set()
        for delivery in deliveries:
            if delivery.partition not in left and not self._begin(consumer, delivery):
                left.add(delivery.partition)
        committed = self._commit(consumer)
        if committed and not (deliveries or wait or self._busy()):
            self._trust_again(consumer)
        hearing.polled(bool(deliveries))
        self._telemetry.metrics.consumer_lag.set(consumer.lag())
        self._health.progress()
        return wait

    def _room(self) -> int:
        """Publications that may begin now; one alone is under way while it is not known what a life died of."""
        return (1 if self._attempts.careful else self._workers) - self._busy()

    def _trust_again(self, consumer: Consumer) -> None:
        """Ends the care once nothing is left that stood there when a life ended."""
        if self._attempts.careful and not consumer.undelivered():
            self._attempts.trust()

    def _busy(self) -> int:
        with self._lock:
            return sum(len(held.under_way) for held in self._held.values())

    def _begin(self, consumer: Consumer, delivery: Delivery) -> bool:
        """Hands a message to the pool; False if it, and what follows it on its partition, has to come again."""
        partition = delivery.partition
        # The poll may have brought a partition that asks for care. A count that is over must be gone before the next.
        if self._room() <= 0 or (self._attempts.due(partition) and not self._commit(consumer)):
            consumer.seek(partition, delivery.offset)
            return False
        if self._attempts.due(partition) and not self._attempts.begin(delivery):
            return False
        with self._lock:
            held = self._held.setdefault(partition, _Held())
            held.begin(delivery)
        self._pool.submit(self._work, delivery, held, self._attempts.at(delivery))
        return True

    def _end_if_died(self, consumer: Consumer) -> None:
        """Ends the process with what a message brought up, and counts that as its death."""
        if self._died is None:
            return
        delivery, error = self._died
        self._telemetry.log.error("died on a message", place=delivery.place, exc_info=error)
        with self._lock:
            held = self._held.get(delivery.partition)
            # Nothing beyond the first that is under way can be committed; who finds its mark takes each by itself.
            first = held.under_way[min(held.under_way)] if held is not None and held.under_way else None
        if first is not None and not isinstance(error, Fatal):
            with suppress(Transient):
                self._commit(consumer)
            self._attempts.died(first)
        raise error

    def _commit(self, consumer: Consumer) -> bool:
        """Commits what is done; False if a rebalance is under way."""
        with self._lock:
            due = {p: offset for p, held in self._held.items() if (offset := held.due()) is not None}
        marked = {p: (offset, self._attempts.metadata(p, offset)) for p, offset in due.items()}
        if not due:
            return True
        if not consumer.commit(marked):
            return False
        self._attempts.committed(due)
        with self._lock:
            for partition, offset in due.items():
                if partition in self._held:
                    self._held[partition].committed = offset
        return True

    def _revoked(self, partitions: frozenset[Partition]) -> None:
        """Another member has them now; it repeats what is under way here, so that may stop."""
        with self._lock:
            for partition in partitions:
                held = self._held.pop(partition, None)
                if held is not None:
                    held.lost.set()
        self._attempts.lost(partitions)

    def _work(self, delivery: Delivery, held: _Held, attempts: int) -> None:
        try:
            with span(header(delivery, TRACEPARENT)):
                self._until_done(delivery, held, attempts)
        except Abandoned:
            return
        except Exception as error:  # noqa: BLE001 - the thread that polls ends the process with it
            self._died = self._died or (delivery, error)
            return
        with self._lock:
            held.end(delivery.offset)

    def _until_done(self, delivery: Delivery, held: _Held, attempts: int) -> None:
        """Handles a message; what is transient is tried again here, in its own thread."""
        pause = _BACKOFF_S
        while True:
            try:
                self._handle(delivery, held, attempts)
                return
            except Abandoned:
                raise
            except Transient as error:
                self._telemetry.log.warning("trying again", place=delivery.place, error=str(error))
                self._telemetry.metrics.retries.labels(delivery.partition.topic).inc()
            self._clock.wait(held.lost, pause)
            if self._abandoned(held):
                raise Abandoned("left to whoever reads the message next")
            pause = min(2 * pause, _BACKOFF_MAX_S)

    def _handle(self, delivery: Delivery, held: _Held, attempts: int) -> None:
        topic = delivery.partition.topic
        outcome = "handled"
        try:
            require_readable(delivery, attempts)
            owner = check_name(ingest_owner(topic), param="owner")
            requested_at = datetime.fromtimestamp(delivery.timestamp_ms / 1000, UTC)
            order = self._requests.order(delivery.value or b"", owner, requested_at)
            if order is not None:
                self._publisher.run(order.plan, order.decision, lambda: self._abandoned(held))
        except Poison as error:
            outcome = "poison"
            self._set_aside(delivery, error, attempts)
        self._telemetry.metrics.deliveries.labels(topic, outcome).inc()

    def _set_aside(self, delivery: Delivery, error: Poison, attempts: int) -> None:
        letter = dead_letter(delivery, error, attempts, group=GROUP, clock=self._clock)
        event = refusal(delivery, error, attempts, self._clock)
        sent = [self._producer.send(message) for message in (event, letter) if message is not None]
        self._producer.flush(_FLUSH_S)
        for one in sent:
            one.result(0)  # a flush tells a failure once, and another thread may have heard it
        self._telemetry.log.warning("set aside", place=delivery.place, error=str(error), kind=type(error).__name__)
        self._telemetry.metrics.dead_letters.labels(letter.topic).inc()
        self._telemetry.metrics.publications.labels("refused").inc()

    def _abandoned(self, held: _Held) -> bool:
        return self._stopping.is_set() or held.lost.is_set()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._health.ready(GROUP, False, str(error))
        with suppress(RuntimeError):  # the pool may be going down already
            self._pool.shutdown(wait=False, cancel_futures=True)
