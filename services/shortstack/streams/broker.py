"""What the stack asks of a broker. `KafkaBroker` and `MemoryBroker` pass the same contract tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from shortstack.streams.topics import Topic

__all__ = ["Broker", "Consumer", "Delivery", "Outbound", "Partition", "Position", "Producer", "Reader"]


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message was appended."""

    partition: Partition
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message to send. Build it with `envelope.outbound`, which sets the CloudEvents headers."""

    topic: str
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it was read; ``timestamp_ms`` is its append time."""

    partition: Partition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = field(default=())

    @property
    def place(self) -> str:
        """``topic[partition]@offset``, for logs and errors."""
        return f"{self.partition}@{self.offset}"


class Producer(Protocol):
    """Sends in order per key. Idempotent, acknowledged by all replicas. Safe to share between threads."""

    def send(self, message: Outbound) -> Future[Position]:
        """Queues ``message``; the future fails with `Transient` or `Poison` (too large)."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Waits until everything queued so far is acknowledged.

        Raises:
            Transient: it is not within ``timeout_s``, or a send failed.
        """
        ...

    def close(self, timeout_s: float) -> None:
        """Flushes, then lets go of connections."""
        ...


class Consumer(Protocol):
    """A member of a consumer group; offsets are committed by hand. Used from one thread."""

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """The next messages, in order per partition; empty after ``timeout_s``."""
        ...

    def assignment(self) -> frozenset[Partition]:
        """What this member holds now."""
        ...

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Stops delivery from ``partitions`` while polling (and so membership) goes on."""
        ...

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Takes a pause back."""
        ...

    def seek(self, partition: Partition, offset: int) -> None:
        """Makes ``offset`` the next to be delivered."""
        ...

    def commit(self, offsets: Mapping[Partition, tuple[int, str]]) -> bool:
        """Commits next offsets with metadata; False if a rebalance took the partition (keep polling).

        Raises:
            Transient: the broker does not answer, or refuses although no rebalance is under way: close, and join anew.
        """
        ...

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """(next offset, metadata) last committed by the group."""
        ...

    def lag(self) -> int:
        """Messages behind the end, over all held partitions."""
        ...

    def undelivered(self) -> int:
        """Messages that stand on held partitions, those not paused, and were not delivered; the broker is asked."""
        ...

    def close(self) -> None:
        """Leaves the group without committing."""
        ...


class Reader(Protocol):
    """Reads whole topics from a place on: all partitions assigned, no group, nothing committed. One thread."""

    def poll(self, timeout_s: float, max_messages: int = 500) -> list[Delivery]:
        """The next messages, in order per partition; empty after ``timeout_s``.

        Raises:
            Transient: the broker is away, and was for some seconds; polling may go on.
        """
        ...

    def caught_up(self) -> bool:
        """Whether everything that stood on the topics when this was asked has been delivered."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...


class Broker(Protocol):
    """A connection to the broker; makes the rest."""

    def producer(self) -> Producer:
        """A new producer."""
        ...

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callable[[frozenset[Partition]], None] | None = None,
        on_revoked: Callable[[frozenset[Partition]], None] | None = None,
    ) -> Consumer:
        """A new member of ``group``, from the earliest message where nothing is committed.

        Both callbacks come within `poll` or `commit`; when ``on_revoked`` comes, the partitions are gone already.

        Raises:
            Transient: the broker is away, or a topic does not exist.
        """
        ...

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> Reader:
        """A new reader of ``topics``, from their beginning unless ``from_end``.

        Raises:
            Transient: the broker is away, or a topic does not exist.
        """
        ...

    def apply(self, topics: Iterable[Topic], *, replication: int = 1) -> list[str]:
        """Creates what is missing and sets the declared configs; one line for each change made.

        Raises:
            Fatal: a state topic has more than one partition.
        """
        ...

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Messages of ``topics`` that ``group`` has not committed yet, whoever its members are; for back-pressure.

        Raises:
            Transient: the broker is away, or a topic does not exist.
        """
        ...

    def ready(self, timeout_s: float) -> None:
        """Returns once the broker answers.

        Raises:
            Transient: it does not within ``timeout_s``; names address and likely cause.
        """
        ...

    def close(self) -> None:
        """Closes what it made."""
        ...
