"""How often a message was begun and not ended: what tells a message that kills its reader from bad luck.

The lives that began it stand in the metadata of the group's committed offset, because only that outlives a process that
was killed. The first life at an offset is counted when the partition is taken over, without a commit per message. Who
finds the mark of another life takes messages one at a time, counting each before it begins; one that works on several
partitions at a time works on one message in all meanwhile. So a count above one belongs to exactly one message.

A rebalance that takes a partition from a living member leaves its mark behind, since a client learns of its loss when
it can no longer commit. A mark therefore names lives instead of counting: a partition that goes to and fro between
living members counts each of them once. And whoever puts a message back takes its count back at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Poison, Transient
from shortstack.streams.broker import Consumer, Delivery, Partition
from shortstack.streams.decoding import UNREADABLE
from shortstack.streams.envelope import header

__all__ = ["MAX_ATTEMPTS", "AttemptMark", "Attempts", "require_readable"]

MAX_ATTEMPTS: Final = 5
"""Attempts that ended in death after which a message is set aside unread."""

_PREFIX: Final = "lives="
_KEPT: Final = 32
"""Lives that a mark names at most: Kafka takes 4096 bytes of metadata."""


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """``lives`` began the message at ``offset``, and none of them has ended it."""

    offset: int
    lives: tuple[str, ...] = ()

    @property
    def attempts(self) -> int:
        """How many began it."""
        return len(self.lives)

    @property
    def metadata(self) -> str:
        """For the commit; empty where nothing is under way."""
        return f"{_PREFIX}{','.join(self.lives)}" if self.lives else ""

    def begun(self, life: str) -> AttemptMark:
        """With ``life`` as the newest."""
        return AttemptMark(self.offset, (*self.without(life).lives, life)[-_KEPT:])

    def without(self, life: str) -> AttemptMark:
        """As if ``life`` had not begun it."""
        return AttemptMark(self.offset, tuple(other for other in self.lives if other != life))

    @classmethod
    def read(cls, committed: tuple[int, str] | None) -> AttemptMark | None:
        """The mark in a commit; None if the group never committed. Foreign metadata counts as no attempt."""
        if committed is None:
            return None
        offset, metadata = committed
        names = metadata.removeprefix(_PREFIX) if metadata.startswith(_PREFIX) else ""
        return cls(offset, tuple(filter(None, names.split(","))))


@dataclass(slots=True)
class _Held:
    """A partition of this member: the mark at the message it stands at, None once a commit has passed that.

    ``careful`` deliveries are still to be taken one at a time, each counted before it begins. Without ``counted`` so is
    the next one.
    """

    mark: AttemptMark | None
    careful: int
    counted: bool = False


class Attempts:
    """The counts of one process, over all its memberships. Used from the one thread that has the consumer.

    Args:
        careful: messages of a partition that are taken one at a time after the mark of a death was found on it.
    """

    def __init__(self, careful: int) -> None:
        self._careful = careful
        self._life = uuid.uuid4().hex[:12]
        self._held: dict[Partition, _Held] = {}

    def join(self, consumer: Consumer) -> None:
        """Begins a membership: nothing is held."""
        self._consumer = consumer
        self._held = {}

    def hold(self, partitions: Iterable[Partition]) -> None:
        """Reads the marks of partitions that are new, for `careful`.

        Raises:
            Transient: the broker is away.
        """
        for partition in partitions:
            if partition not in self._held:
                self._held[partition] = self._take_over(partition)

    @property
    def careful(self) -> bool:
        """Whether a partition that is held was left by another life in the middle of a message, not long ago."""
        return any(held.careful for held in self._held.values())

    def trust(self) -> None:
        """To be called once everything that stood on all partitions is done: what a life may have died of is over."""
        for held in self._held.values():
            held.careful = 0

    def due(self, partition: Partition) -> bool:
        """Whether its next message has to be counted by `begin`, and what is under way to be committed before."""
        held = self._held.get(partition)
        return held is None or not held.counted or held.careful > 0

    def begin(self, delivery: Delivery) -> bool:
        """Counts an attempt, in a commit of its own; False if a rebalance took the partition, and it is to be left."""
        partition, offset = delivery.partition, delivery.offset
        self.hold([partition])
        held = self._held[partition]
        held.counted = True
        if held.mark is not None and held.mark.offset == offset and self._life in held.mark.lives:
            return True  # this process began it before, and lives
        held.careful = max(0, held.careful - 1)
        held.mark = AttemptMark(offset, held.mark.lives if held.mark else ()).begun(self._life)
        if self._consumer.commit({partition: (offset, held.mark.metadata)}):
            return True
        self._held.pop(partition, None)  # the commit itself may have told of the loss
        self._consumer.seek(partition, offset)
        return False

    def at(self, delivery: Delivery) -> int:
        """Attempts at a message that has begun, with this one."""
        mark = self._mark(delivery.partition)
        return mark.attempts if mark is not None and mark.offset == delivery.offset else 1

    def metadata(self, partition: Partition, offset: int) -> str:
        """For a commit of ``offset``: the count stays while its message is under way."""
        mark = self._mark(partition)
        return mark.metadata if mark is not None and mark.offset == offset else ""

    def committed(self, offsets: Mapping[Partition, int]) -> None:
        """To be called after a commit: a count that it has passed is over."""
        for partition, offset in offsets.items():
            held = self._held.get(partition)
            if held is not None and held.mark is not None and held.mark.offset < offset:
                held.mark = None

    def put_back(self, partition: Partition, offset: int) -> None:
        """Takes the count of a message back that comes again later, and is counted again then.

        Raises:
            Transient: the broker is away.
        """
        held = self._held.get(partition)
        if held is None or held.mark is None or held.mark.offset != offset or self._life not in held.mark.lives:
            return
        back = held.mark.without(self._life)
        if self._consumer.commit({partition: (offset, back.metadata)}):
            held.mark, held.counted = back, False

    def died(self, delivery: Delivery) -> None:
        """Counts a message that an unexpected error came from, as its killing the process would."""
        mark = self._mark(delivery.partition)
        if mark is None or mark.offset != delivery.offset:
            mark = AttemptMark(delivery.offset).begun(self._life)
            with suppress(Transient):  # the error itself must not be lost
                self._consumer.commit({delivery.partition: (mark.offset, mark.metadata)})
        self._held.pop(delivery.partition, None)

    def give_up(self) -> None:
        """Takes back the counts that did not end in death."""
        held, self._held = self._held, {}
        marks = {partition: one.mark for partition, one in held.items() if one.mark is not None}
        back = {p: (m.offset, m.without(self._life).metadata) for p, m in marks.items() if self._life in m.lives}
        with suppress(Transient):  # then the next to hold it is careful for a while
            if back:
                self._consumer.commit(back)

    def lost(self, partitions: Iterable[Partition]) -> None:
        """To be called when a rebalance took them. Nothing can be taken back any more; see above."""
        for partition in partitions:
            self._held.pop(partition, None)

    def _mark(self, partition: Partition) -> AttemptMark | None:
        held = self._held.get(partition)
        return held.mark if held is not None else None

    def _take_over(self, partition: Partition) -> _Held:
        found = AttemptMark.read(self._consumer.committed(partition))
        others = found is not None and found.without(self._life).lives
        return _Held(found, self._careful if others else 0)


def require_readable(delivery: Delivery, attempts: int) -> None:
    """For what no handler may see.

    Raises:
        Poison: it could not be unpacked or read, or kills who reads it.
    """
    unreadable = header(delivery, UNREADABLE)
    if unreadable is not None:
        raise Poison(unreadable, where=delivery.place)
    if attempts > MAX_ATTEMPTS:
        raise Poison(
            f"{attempts - 1} processes died on this message",
            where=delivery.place,
            remedy="It was set aside unread. Look at its size and content, and at the memory limit of the service.",
        )
