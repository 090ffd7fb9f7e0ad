"""What a service gives to a `BatchWorker`: the work, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shortstack.core.errors import Poison
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.dead_letters import DeadLetterLimit

__all__ = ["Handler", "WorkerLimits"]


class Handler(Protocol):
    """What a service does with a message. Called from the worker's thread alone."""

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        """Does the work; the messages to send before the offset is committed.

        It may be called again for the same message, after a crash or a rebalance: what it does must then change
        nothing.

        Raises:
            Transient: the partition waits, and the message comes again.
            Poison: the message is set aside, `poison` is asked, and the next one comes.
            Fatal: the process ends. So it does on any other exception; the message is then tried four times more.
        """
        ...

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        """Messages to send after the dead letter, such as an entry that says what is missing."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Bounds of one round: read, handle, flush, commit.

    Attributes:
        messages: handled before a commit at most.
        seconds: after which a commit is due, however few were handled.
        poll_s: waits so long for messages.
        flush_s: for outputs to be acknowledged.
        stalls: flushes in a row without acknowledgement, after which the process ends; a library's sender may hang.
        backoff_s: first pause after a transient error; doubles up to ``backoff_max_s``.
        dead_letters: how much poison is normal; None where any stranger may send it.
        origin: what a message comes from, if that is known; much poison of one origin is its own fault, so
            ``dead_letters`` then counts origins.
    """

    messages: int = 64
    seconds: float = 1.0
    poll_s: float = 0.2
    flush_s: float = 30.0
    stalls: int = 3
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    dead_letters: DeadLetterLimit | None = field(default_factory=DeadLetterLimit)
    origin: Callable[[Delivery], str | None] = lambda delivery: None
