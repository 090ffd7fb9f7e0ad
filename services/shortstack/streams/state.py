"""State topics: the system of record. One writer with an epoch, whole snapshots, any number of readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Invalid, Transient
from shortstack.core.lifecycle import Background
from shortstack.messages.v1.state_pb2 import StateEnvelope
from shortstack.streams.broker import Broker, Delivery, Position, Producer, Reader
from shortstack.streams.envelope import outbound
from shortstack.streams.fold import WRITER_KEY, Fate, StateFold
from shortstack.streams.topics import Topic

__all__ = ["StateReader", "StateWriter"]

M = TypeVar("M", bound=Message)

_POLL_S: Final = 0.25
_ASKED_POLL_S: Final = 0.02
"""While somebody waits to know whether everything is read."""
_CLAIMS: Final = 5
"""Epochs a writer tries before it says that another one is at work."""


class StateWriter(Generic[M]):
    """The one writer of a state topic. Used from one thread.

    It reads its own topic behind every write: only then does it know that no newer writer stood before it.

    Args:
        broker: where the topic is.
        topic: a declared state topic.
        message_type: of its snapshots.
        clock: gives the time in the headers.
        source: name of the service, for the headers.
        timeout_s: for one write to be acknowledged, and again for it to be read back.
    """

    def __init__(
        self,
        broker: Broker,
        topic: Topic,
        message_type: type[M],
        clock: Clock,
        *,
        source: str = "controller",
        timeout_s: float = 30.0,
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._clock = clock
        self._source = source
        self._timeout_s = timeout_s
        self._fold: StateFold[M] = StateFold(message_type)
        self._producer: Producer | None = None
        self._reader: Reader | None = None
        self._read_to = -1
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Its epoch; 0 before `open`."""
        return self._epoch

    @property
    def latest(self) -> dict[str, M]:
        """Key → newest snapshot, without deleted keys. Copy a message before you change it."""
        return self._fold.live()

    def open(self) -> dict[str, M]:
        """Reads the topic to its end, claims the next epoch, writes void keys again; the snapshots.

        Raises:
            Transient: the broker is away. It may be called again.
            Fatal: another writer claims at the same time, again and again.
        """
        self.close()
        self._fold, self._read_to, self._epoch = StateFold(self._fold.message_type), -1, 0
        self._producer = self._broker.producer()
        self._reader = self._broker.reader([self._topic.name])
        while not self._reader.caught_up():
            self._take(self._reader.poll(_ASKED_POLL_S))
        for _ in range(_CLAIMS):
            if self._claim():
                self._repair()
                return self.latest
        raise Fatal("another writer keeps claiming", where=self._topic.name, remedy="Run one replica of its service.")

    def put(self, key: str, message: M) -> bool:
        """Writes a snapshot if it differs from the last; True if it did. Acknowledged, and checked for a newer writer.

        Raises:
            Transient: not acknowledged in time; whether it was written is unknown, so put it again.
            Fatal: a newer writer is at work; this process must end.
        """
        return self.put_all({key: message})

    def put_all(self, messages: Mapping[str, M]) -> bool:
        """As `put`, for several keys with one wait; True if any differed."""
        changed: dict[str, StateEnvelope] = {}
        for key, message in messages.items():
            payload = message.SerializeToString(deterministic=True)
            found = self._fold.snapshots.get(key)
            if found is None or found.message is None or found.payload != payload:
                changed[key] = StateEnvelope(payload=payload)
        self._write(changed)
        return bool(changed)

    def delete(self, key: str) -> bool:
        """Writes a snapshot ``deleted``; False if the key has no value anyway. Errors as `put`."""
        if self._fold.get(key) is None:
            return False
        self._write({key: StateEnvelope(deleted=True)})
        return True

    def check(self) -> None:
        """Looks for a newer writer and for void keys without a `put`; for a controller that is idle for long.

        Raises:
            Transient, Fatal: as `put`.
        """
        self._write({})

    def revision(self, key: str) -> int:
        """Revision of the newest snapshot of ``key``; 0 if there is none."""
        found = self._fold.snapshots.get(key)
        return found.revision if found else 0

    def close(self, timeout_s: float = 5.0) -> None:
        """Lets go of its connections. Every `put` that returned is on the topic already."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._drop_producer(timeout_s)

    def _drop_producer(self, timeout_s: float) -> None:
        if self._producer is not None:
            with suppress(Transient):  # what could not be sent was reported by the call that sent it
                self._producer.close(timeout_s)
            self._producer = None

    def _source_of_truth(self) -> Reader:
        if self._reader is None:
            raise Fatal("the state writer is closed", where=self._topic.name, remedy="Call open() first.")
        return self._reader

    def _claim(self) -> bool:
        """Claims the next epoch; False if someone else's claim of it, or a higher one, stands before ours."""
        self._epoch = self._fold.epoch + 1
        (position,) = self._acknowledged({WRITER_KEY: StateEnvelope(epoch=self._epoch)})
        mine = True
        for delivery in self._read_until(position.offset):
            if delivery.offset < position.offset:
                mine = mine and self._fold.epoch < self._epoch
        return mine and self._fold.epoch == self._epoch

    def _write(self, changed: Mapping[str, StateEnvelope]) -> None:
        if self._epoch == 0:
            raise Fatal("the state writer is not open", where=self._topic.name, remedy="Call open() first.")
        if WRITER_KEY in changed:
            raise Invalid(f"{WRITER_KEY} cannot be the key of a snapshot", where=self._topic.name)
        if not changed:
            self._take(self._source_of_truth().poll(0))
            self._require_newest()
        left = dict(changed)
        while left:
            self._send_and_read(left)
            # What an earlier call gave up on may have come in between, and made this revision no longer rise.
            left = {key: envelope for key, envelope in left.items() if not self._stands(key, envelope)}
        self._repair()

    def _stands(self, key: str, envelope: StateEnvelope) -> bool:
        found = self._fold.snapshots.get(key)
        return found is not None and (found.message is None, found.payload) == (envelope.deleted, envelope.payload)

    def _repair(self) -> None:
        """Writes every key again whose last value is void: its newest valid snapshot, else that it is deleted."""
        while self._fold.void:
            again: dict[str, StateEnvelope] = {}
            for key in self._fold.void:
                good = self._fold.snapshots.get(key)
                alive = good is not None and good.message is not None
                again[key] = StateEnvelope(payload=good.payload if good else b"", deleted=not alive)
            if WRITER_KEY in again:
                again[WRITER_KEY] = StateEnvelope()
            self._send_and_read(again)

    def _send_and_read(self, envelopes: Mapping[str, StateEnvelope]) -> None:
        for key, envelope in envelopes.items():
            envelope.epoch = self._epoch
            envelope.revision = self._fold.next_revision(key)
        positions = self._acknowledged(envelopes)
        for _ in self._read_until(max(position.offset for position in positions)):
            self._require_newest()

    def _require_newest(self) -> None:
        if self._fold.epoch > self._epoch:
            raise Fatal(
                f"a newer writer has epoch {self._fold.epoch}, this one {self._epoch}",
                where=self._topic.name,
                remedy="Run one replica of its service; this process ends so that the newer one goes on alone.",
            )

    def _acknowledged(self, envelopes: Mapping[str, StateEnvelope]) -> list[Position]:
        if self._producer is None:
            self._producer = self._broker.producer()
        sent: list[Future[Position]] = []
        for key, envelope in envelopes.items():
            message = outbound(
                self._topic,
                key,
                envelope.SerializeToString(),
                type=f"shortstack.{self._topic.name}",
                source=self._source,
                clock=self._clock,
            )
            sent.append(self._producer.send(message))
        try:
            self._producer.flush(self._timeout_s)
            return [future.result(0) for future in sent]
        except Transient:
            self._drop_producer(0.0)  # an idempotent producer that gave a message up may refuse all later ones
            raise

    def _read_until(self, offset: int) -> Iterator[Delivery]:
        """Takes in everything up to ``offset``, one message after another."""
        reader = self._source_of_truth()
        for _ in range(int(self._timeout_s / _POLL_S)):
            for delivery in reader.poll(_POLL_S):
                self._take([delivery])
                yield delivery
            if self._read_to >= offset:
                return
        raise Transient(f"offset {offset} was acknowledged but not read back", where=self._topic.name)

    def _take(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._fold.apply(delivery)
            self._read_to = delivery.offset


@dataclass(slots=True)
class _Watcher(Generic[M]):
    """What one watcher has not seen yet; a newer value of a key replaces an unseen older one."""

    unseen: dict[str, M | None] = field(default_factory=dict)


class StateReader(Background, Generic[M]):
    """Follows a state topic in a thread of its own. A component; its questions may be asked from any thread.

    Args:
        broker: where the topic is.
        topic: a declared state topic.
        message_type: of its snapshots.
    """

    def __init__(self, broker: Broker, topic: Topic, message_type: type[M]) -> None:
        super().__init__(f"state {topic.name}")
        self._broker, self._topic = broker, topic
        self._fold: StateFold[M] = StateFold(message_type)
        self._changed = threading.Condition()
        self._asked = 1  # the first question is its own: is the beginning read?
        self._answered = 0
        self._watchers: list[_Watcher[M]] = []
        self._newcomers: list[Callable[[str, M | None], None]] = []
        self._subscribers: list[Callable[[str, M | None], None]] = []

    def stop(self, deadline_s: float) -> None:
        """Ends the thread and every `watch`."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self.join(deadline_s)

    def get(self, key: str) -> M | None:
        """The snapshot of ``key``, as far as read; None if there is none or it is deleted. Do not change it."""
        with self._changed:
            return self._fold.get(key)

    def values(self) -> list[M]:
        """Every snapshot, as far as read, without deleted keys."""
        return list(self.items().values())

    def items(self) -> dict[str, M]:
        """Key → snapshot, as far as read, without deleted keys."""
        with self._changed:
            return self._fold.live()

    def wait_caught_up(self, timeout_s: float) -> None:
        """Returns once everything is read that stood on the topic when this was called.

        Raises:
            Transient: that takes longer than ``timeout_s``.
        """
        with self._changed:
            self._asked += 1
            ticket = self._asked
            done = self._changed.wait_for(lambda: self._answered >= ticket or self._stopping.is_set(), timeout_s)
            if not done or self._answered < ticket:
                raise Transient(
                    f"state is not read to its end within {timeout_s} s",
                    where=self._topic.name,
                    remedy="Kafka is away or slow; try again.",
                )

    def watch(self, active: Callable[[], bool] = lambda: True) -> Iterator[tuple[str, M | None]]:
        """Every snapshot, then each change; None for a deleted key.

        Begins once the topic is read to its end. A slow watcher misses intermediate values, never the last one.

        Args:
            active: asked about twice a second; the iterator ends when it says no (a gRPC context's ``is_active``).
        """
        watcher: _Watcher[M] = _Watcher()
        with self._changed:
            if self._answered:
                watcher.unseen.update(self._fold.live())
            self._watchers.append(watcher)
        try:
            while active() and not self._stopping.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: bool(watcher.unseen) or self._stopping.is_set(), 0.5)
                    news, watcher.unseen = watcher.unseen, {}
                yield from news.items()
        finally:
            with self._changed:
                self._watchers.remove(watcher)

    def subscribe(self, callback: Callable[[str, M | None], None]) -> None:
        """Calls ``callback`` in the reader's thread: with every snapshot once caught up, then with each change."""
        with self._changed:
            self._newcomers.append(callback)

    def _run(self) -> None:
        reader = self._connected()
        if reader is None:
            return
        try:
            while not self._stopping.is_set():
                self._step(reader)
        finally:
            reader.close()

    def _connected(self) -> Reader | None:
        while not self._stopping.is_set():
            with suppress(Transient):  # the broker is away, or the topic not created yet
                return self._broker.reader([self._topic.name])
            self._stopping.wait(1.0)
        return None

    def _step(self, reader: Reader) -> None:
        """Takes in what there is, answers who asked for the end, tells who listens."""
        asked, at_end = self._asked, False
        deliveries: list[Delivery] = []
        try:
            deliveries = reader.poll(_ASKED_POLL_S if asked > self._answered else _POLL_S)
            at_end = asked > self._answered and reader.caught_up()
        except Transient:
            self._stopping.wait(_POLL_S)  # what was read before that does not come again, and is taken in
        with self._changed:
            changes = self._take(deliveries)
            if at_end and self._answered == 0:
                changes = self._fold.live() | changes  # nothing was told before the first end
            if at_end:
                self._answered = asked
            caught_up = self._answered > 0
            if caught_up:
                for watcher in self._watchers:
                    watcher.unseen.update(changes)
            self._changed.notify_all()
        if caught_up:
            self._tell(changes)

    def _take(self, deliveries: list[Delivery]) -> dict[str, M | None]:
        changes: dict[str, M | None] = {}
        for delivery in deliveries:
            key, fate = self._fold.apply(delivery)
            if fate is Fate.SNAPSHOT:
                changes[key] = self._fold.get(key)
        return changes

    def _tell(self, changes: Mapping[str, M | None]) -> None:
        for callback in self._subscribers:
            for key, message in changes.items():
                callback(key, message)
        with self._changed:
            newcomers, self._newcomers = self._newcomers, []
            present = self._fold.live()
        for callback in newcomers:
            for key, message in present.items():
                callback(key, message)
            self._subscribers.append(callback)
