"""How often a message was begun and not ended: what tells a message that kills its reader from bad luck.

The count stands in the metadata of the group's committed offset, because only that outlives a process that was
killed. The first life at an offset is counted when the partition is taken over, without a commit per message. Who
finds such a mark takes the messages one at a time, counting each before it begins; so a count above one belongs to
exactly one message.

A count must not stand while nobody is at work on the message: a rebalance would hand it on as a death, since a client
learns of its loss when it can no longer commit. So whoever puts a message back takes its count back at once.
"""

from __future__ import annotations

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

_PREFIX: Final = "attempt="


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """``attempts`` began at ``offset``, and none of them has ended."""

    offset: int
    attempts: int = 0

    @property
    def metadata(self) -> str:
        """For the commit; empty where nothing is under way."""
        return f"{_PREFIX}{self.attempts}" if self.attempts else ""

    def begun(self) -> AttemptMark:
        """One attempt more."""
        return AttemptMark(self.offset, self.attempts + 1)

    @classmethod
    def read(cls, committed: tuple[int, str] | None) -> AttemptMark | None:
        """The mark in a commit; None if the group never committed. Foreign metadata counts as no attempt."""
        if committed is None:
            return None
        offset, metadata = committed
        text = metadata.removeprefix(_PREFIX)
        return cls(offset, int(text) if metadata.startswith(_PREFIX) and text.isdecimal() else 0)


@dataclass(slots=True)
class _Held:
    """A partition of this member: the mark at the message it stands at, None once a commit has passed that.

    ``careful`` deliveries are still to be taken one at a time, each counted before it begins.
    """

    mark: AttemptMark | None
    careful: int


class Attempts:
    """The counts of one process, over all its memberships. Used from the one thread that has the consumer.

    Args:
        careful: messages of a partition that are taken one at a time after the mark of a death was found on it.
    """

    def __init__(self, careful: int) -> None:
        self._careful = careful
        self._held: dict[Partition, _Held] = {}
        self._own: dict[Partition, AttemptMark] = {}  # counted by this process, which did not die of it

    def join(self, consumer: Consumer) -> None:
        """Begins a membership: nothing is held."""
        self._consumer = consumer
        self._held = {}

    def due(self, partition: Partition) -> bool:
        """Whether its next message has to be counted by `begin`, and what is under way to be committed before."""
        held = self._held.get(partition)
        return held is None or held.careful > 0

    def begin(self, delivery: Delivery) -> bool:
        """Counts an attempt, in a commit of its own; False if a rebalance took the partition, and it is to be left."""
        partition, offset = delivery.partition, delivery.offset
        held = self._held.get(partition)
        if held is None:
            held = self._held[partition] = self._take_over(partition)
        mark = AttemptMark(offset, held.mark.attempts if held.mark else 0)
        if self._own.get(partition) == mark:
            held.mark = mark
            return True  # this process began it before, and lives
        held.careful = max(0, held.careful - 1)
        held.mark = self._own[partition] = mark.begun()
        if self._consumer.commit({partition: (offset, held.mark.metadata)}):
            return True
        self._held.pop(partition, None)  # the commit itself may have told of the loss
        self._own.pop(partition, None)
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
            if held is not None and (held.mark is None or held.mark.offset < offset):
                held.mark = None
                self._own.pop(partition, None)

    def put_back(self, partition: Partition, offset: int) -> None:
        """Takes the count of a message back that comes again later, and is counted again then.

        Raises:
            Transient: the broker is away.
        """
        held = self._held.get(partition)
        if held is None or held.mark is None or held.mark.offset != offset or self._own.get(partition) != held.mark:
            return
        back = AttemptMark(offset, held.mark.attempts - 1)
        if self._consumer.commit({partition: (offset, back.metadata)}):
            held.mark, held.careful = back, max(1, held.careful)
            self._own.pop(partition, None)

    def died(self, delivery: Delivery) -> None:
        """Counts a message that an unexpected error came from, as its killing the process would."""
        mark = self._mark(delivery.partition)
        if mark is None or mark.offset != delivery.offset:
            mark = AttemptMark(delivery.offset).begun()
            with suppress(Transient):  # the error itself must not be lost
                self._consumer.commit({delivery.partition: (mark.offset, mark.metadata)})
        self._held.pop(delivery.partition, None)

    def give_up(self, partitions: Iterable[Partition] | None = None) -> None:
        """Takes back the counts that did not end in death; of all partitions unless told which."""
        back: dict[Partition, tuple[int, str]] = {}
        for partition in list(self._held) if partitions is None else partitions:
            held, own = self._held.pop(partition, None), self._own.get(partition)
            if held is not None and own is not None and held.mark == own:
                back[partition] = (own.offset, AttemptMark(own.offset, own.attempts - 1).metadata)
        with suppress(Transient):  # then the next to hold it is careful for a while
            if back and self._consumer.commit(back):
                for partition in back:
                    del self._own[partition]

    def _mark(self, partition: Partition) -> AttemptMark | None:
        held = self._held.get(partition)
        return held.mark if held is not None else None

    def _take_over(self, partition: Partition) -> _Held:
        found = AttemptMark.read(self._consumer.committed(partition))
        ours = found is not None and found == self._own.get(partition)
        return _Held(found, 0 if found is None or ours or not found.attempts else self._careful)


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
