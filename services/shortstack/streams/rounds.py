"""What a worker keeps in mind: the partitions it holds, and what it has handled since its last commit."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from shortstack.streams.broker import Delivery, Partition, Position

__all__ = ["Held", "Round"]


@dataclass(slots=True)
class Held:
    """How a partition that this member holds gets on.

    Attributes:
        failures: transient errors in a row.
        resume_at: on the clock; None while it is not paused for them.
    """

    failures: int = 0
    resume_at: float | None = None


@dataclass(slots=True)
class Round:
    """What was handled since the last commit.

    Attributes:
        first: the first offset of each partition.
        next: the offset after the last, which is what is committed.
        sent: outputs, each with the message it came from.
    """

    first: dict[Partition, int] = field(default_factory=dict)
    next: dict[Partition, int] = field(default_factory=dict)
    sent: list[tuple[Delivery, Future[Position]]] = field(default_factory=list)

    def add(self, delivery: Delivery) -> None:
        """Notes that ``delivery`` is handled."""
        self.first.setdefault(delivery.partition, delivery.offset)
        self.next[delivery.partition] = delivery.offset + 1
