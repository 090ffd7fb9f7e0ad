"""Reads topics as a member of a group, hands each message on, and commits in the order that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.health import Health
from shortstack.core.lifecycle import Background
from shortstack.core.telemetry import Telemetry
from shortstack.core.tracing import TRACEPARENT, span
from shortstack.streams.attempts import MAX_ATTEMPTS, Attempts, require_readable
from shortstack.streams.broker import Broker, Consumer, Delivery, Outbound, Partition, Position, Producer
from shortstack.streams.dead_letters import Fates, dead_letter
from shortstack.streams.decoding import UNREADABLE
from shortstack.streams.envelope import header
from shortstack.streams.handler import Handler, WorkerLimits
from shortstack.streams.hearing import Hearing
from shortstack.streams.rounds import Held, Round

__all__ = ["BatchWorker", "Handler", "WorkerLimits"]


_CONNECT_TIMEOUT_S: Final = 5.0
_CONNECT_RETRY_S: Final = 1.0
_CLOSE_S: Final = 5.0


class BatchWorker(Background):
    """A member of ``group`` that reads ``topics``. A component with one thread, which alone uses the consumer.

    One round is: read up to ``limits.messages``, handle each in order, flush their outputs, commit. Nothing is
    pending while it polls, so a rebalance takes nothing half-done away.

    Args:
        broker: where the topics are.
        group: consumer group.
        topics: names.
        handler: the work.
        health: told of progress, and of readiness under the group's name.
        telemetry: logs and metrics.
        clock: for back-off; polls wait in real time.
        limits: see `WorkerLimits`.
    """

    def __init__(
        self,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        health: Health,
        telemetry: Telemetry,
        clock: Clock,
        *,
        limits: WorkerLimits | None = None,
    ) -> None:
        super().__init__(group)
        self._broker = broker
        self._group = group
        self._topics = tuple(topics)
        self._handler = handler
        self._health = health
        self._log = telemetry.log.bind(group=group)
        self._metrics = telemetry.metrics
        self._clock = clock
        self._limits = limits = limits or WorkerLimits()
        self._held: dict[Partition, Held] = {}
        self._fates = Fates(limits.dead_letters)
        self._attempts = Attempts(limits.messages)
        self._stalls = 0
        self._waits = self._metrics.waits.labels(group)

    def start(self) -> None:
        """Begins to read as soon as the broker answers."""
        self._health.ready(self._group, False, "waiting for Kafka")
        super().start()

    def stop(self, deadline_s: float) -> None:
        """Finishes the message at hand, commits, leaves the group.

        Raises:
            Transient: that takes longer than ``deadline_s``; the messages come again.
        """
        self._stopping.set()
        if not self.join(deadline_s):
            raise Transient(f"{self._group} did not finish within {deadline_s:.0f} s")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._work()
            except Transient as error:
                self._waits.inc()
                self._health.ready(self._group, False, str(error))
                self._health.progress()  # waiting for Kafka is alive
                self._log.warning("waiting for Kafka", error=str(error))
                self._clock.wait(self._stopping, _CONNECT_RETRY_S)

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._health.ready(self._group, False, str(error))

    def _work(self) -> None:
        """One membership, from joining to leaving."""
        self._broker.ready(_CONNECT_TIMEOUT_S)
        self._held = {}
        with ExitStack() as stack:
            self._consumer: Consumer = self._broker.consumer(
                self._group, self._topics, on_assigned=self._assigned, on_revoked=self._revoked
            )
            stack.callback(self._consumer.close)
            self._attempts.join(self._consumer)
            self._hearing = Hearing(self._consumer, self._clock)
            self._producer: Producer = self._broker.producer()
            stack.callback(self._close_producer)
            self._health.ready(self._group, True)
            self._turn_until_stopped()

    def _turn_until_stopped(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
            self._attempts.give_up()
        except Transient:
            raise
        except Exception:
            self._attempts.give_up()  # whatever it was, these messages had no part in it
            raise

    def _close_producer(self) -> None:
        with suppress(Transient):  # everything that counts was flushed before its offset was committed
            self._producer.close(_CLOSE_S)

    def _turn(self) -> None:
        self._resume_due()
        deliveries = self._consumer.poll(self._limits.poll_s, self._limits.messages)
        if deliveries:
            self._handle_all(deliveries)
        else:
            self._health.progress()
        self._hearing.polled(bool(deliveries))
        self._metrics.consumer_lag.set(self._consumer.lag())

    def _resume_due(self) -> None:
        """Resumes what has waited long enough."""
        now = self._clock.monotonic()
        due = [p for p, held in self._held.items() if held.resume_at is not None and held.resume_at <= now]
        for partition in due:
            self._held[partition].resume_at = None
        self._consumer.resume(due)

    def _handle_all(self, deliveries: Sequence[Delivery]) -> None:
        """Handles in order and commits; a partition that must wait is left out from there on."""
        waiting: set[Partition] = set()
        turn, began = Round(), self._clock.monotonic()
        for delivery in deliveries:
            if self._stopping.is_set():
                break
            if delivery.partition in waiting:
                continue
            if self._attempts.due(delivery.partition):
                waiting |= self._commit(turn)
                turn, began = Round(), self._clock.monotonic()
                if delivery.partition in waiting or not self._attempts.begin(delivery):
                    waiting.add(delivery.partition)
                    continue
            if not self._handle(delivery, turn):
                waiting.add(delivery.partition)
            elif self._clock.monotonic() - began >= self._limits.seconds:
                waiting |= self._commit(turn)
                turn, began = Round(), self._clock.monotonic()
        self._commit(turn)

    def _handle(self, delivery: Delivery, turn: Round) -> bool:
        """Handles one message; False if its partition has to wait."""
        topic = delivery.partition.topic
        attempts = self._attempts.at(delivery)
        try:
            with span(header(delivery, TRACEPARENT)), self._metrics.handle_seconds.labels(topic).time():
                require_readable(delivery, attempts)
                outputs = self._handler.handle(delivery)
            failpoint("worker.handled")
            self._send(delivery, outputs, turn)
        except Transient as error:
            self._wait(delivery.partition, delivery.offset, error)
            return False
        except Poison as error:
            return self._set_aside(delivery, error, attempts, turn)
        except Fatal:
            raise
        except Exception:
            self._commit(turn)
            self._attempts.died(delivery)
            self._log.error("died on a message", place=delivery.place, exc_info=True)
            raise
        self._fates.add(False, self._limits.origin(delivery))
        self._done(delivery, turn, "handled")
        return True

    def _send(self, delivery: Delivery, outputs: Sequence[Outbound], turn: Round) -> None:
        for output in outputs:
            future = self._producer.send(output)
            if future.done() and (error := future.exception()) is not None:
                raise error
            turn.sent.append((delivery, future))

    def _done(self, delivery: Delivery, turn: Round, outcome: str) -> None:
        turn.add(delivery)
        self._held.pop(delivery.partition, None)
        self._metrics.deliveries.labels(delivery.partition.topic, outcome).inc()
        self._metrics.delivery_bytes.labels(delivery.partition.topic).inc(len(delivery.value or b""))

    def _set_aside(self, delivery: Delivery, error: Poison, attempts: int, turn: Round) -> bool:
        """Dead letter first, and confirmed; then what the handler adds; the commit comes with the round."""
        origin = self._limits.origin(delivery)
        if excess := self._fates.excess(origin):
            raise Fatal(excess, where=delivery.place, remedy=f"Look at the newest: {error}") from error
        letter = dead_letter(delivery, error, attempts, group=self._group, clock=self._clock)
        self._send(delivery, [letter], turn)
        self._flush()
        try:
            # Without content there is nothing to answer; and beyond twice the limit, that answer is what kills.
            if attempts <= 2 * MAX_ATTEMPTS and header(delivery, UNREADABLE) is None:
                self._send(delivery, self._handler.poison(delivery, error, attempts), turn)
        except Transient as away:
            self._wait(delivery.partition, delivery.offset, away)
            return False
        self._log.warning("set aside", place=delivery.place, error=str(error), kind=type(error).__name__)
        self._metrics.dead_letters.labels(letter.topic).inc()
        self._fates.add(True, origin)
        self._done(delivery, turn, "poison")
        return True

    def _commit(self, turn: Round) -> set[Partition]:
        """Makes the round durable, in this order; the partitions to leave alone until they are polled again.

        1. outputs   flushed and confirmed by the broker
        2. offsets   last: until here a crash only repeats the round, and what repeats it changes nothing
        """
        if not turn.next:
            return set()
        with self._metrics.commit_seconds.time():
            self._flush()
            for delivery, future in turn.sent:
                self._metrics.produced.labels(_accepted(delivery, future)).inc()
            failpoint("worker.flushed")
            kept = self._consumer.commit({p: (offset, "") for p, offset in turn.next.items()})
            failpoint("worker.committed")
        self._health.progress()
        if not kept:  # a rebalance is under way; what we keep of it is read again
            for partition, offset in turn.first.items():
                self._consumer.seek(partition, offset)
            return set(turn.first)
        self._attempts.committed(turn.next)
        return set()

    def _flush(self) -> None:
        try:
            self._producer.flush(self._limits.flush_s)
        except Transient as error:
            self._stalls += 1
            if self._stalls >= self._limits.stalls:
                raise Fatal(
                    f"{self._stalls} times in a row nothing was acknowledged within {self._limits.flush_s} s",
                    where=self._group,
                    remedy="The broker answers but does not take messages; see its log. This process ends.",
                ) from error
            raise
        self._stalls = 0

    def _wait(self, partition: Partition, offset: int, error: Transient) -> None:
        """Puts a message back and its partition to sleep; the others go on."""
        held = self._held.setdefault(partition, Held())
        held.failures += 1
        delay = min(self._limits.backoff_s * 2 ** (held.failures - 1), self._limits.backoff_max_s)
        held.resume_at = self._clock.monotonic() + delay
        self._consumer.pause([partition])
        self._consumer.seek(partition, offset)
        self._attempts.put_back(partition, offset)
        self._metrics.retries.labels(partition.topic).inc()
        self._log.warning("trying again", partition=str(partition), offset=offset, wait_s=delay, error=str(error))

    def _assigned(self, partitions: frozenset[Partition]) -> None:
        self._metrics.rebalances.inc()
        self._log.info("holds", partitions=sorted(map(str, partitions)))

    def _revoked(self, partitions: frozenset[Partition]) -> None:
        """Called within `poll` and `commit`."""
        for partition in partitions:
            self._held.pop(partition, None)
        self._attempts.lost(partitions)


def _accepted(delivery: Delivery, future: Future[Position]) -> str:
    """Topic of an acknowledged output; the declared size was checked before, so a refusal is no poison.

    Raises:
        Fatal: the broker refused it all the same.
    """
    error = future.exception()
    if error is None:
        return future.result().partition.topic
    raise Fatal(
        f"the broker refused a message: {error}",
        where=delivery.place,
        remedy="Its topic differs from the declared one; run `shortstack topics apply`.",
    ) from error
