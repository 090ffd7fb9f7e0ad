"""Poison, set aside with everything needed to find, understand and send it again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Poison
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.envelope import outbound
from shortstack.streams.topics import TOPICS, Topic, dead_letters

__all__ = ["HEADERS", "DeadLetterLimit", "dead_letter", "letter_id"]

HEADERS: Final = (
    "dlq-topic",
    "dlq-partition",
    "dlq-offset",
    "dlq-timestamp-ms",
    "dlq-group",
    "dlq-error",
    "dlq-message",
    "dlq-remedy",
    "dlq-attempts",
)
"""Headers of a dead letter, beside the message's own: where it stood, who refused it, why, and what to do."""

_TEXT: Final = 2000
"""Characters of an error that a header carries."""


def dead_letter(delivery: Delivery, error: Poison, attempts: int, *, group: str, clock: Clock) -> Outbound:
    """``delivery`` as a message for its topic's dead letters; key and value as they were."""
    origin = delivery.partition.topic
    topic = TOPICS.get(f"{origin}.dlq") or dead_letters(_undeclared(origin))
    reasons = (
        origin,
        str(delivery.partition.number),
        str(delivery.offset),
        str(delivery.timestamp_ms),
        group,
        type(error).__name__,
        str(error)[:_TEXT],
        error.remedy[:_TEXT],
        str(attempts),
    )
    made = outbound(
        topic,
        "",
        b"",
        type="shortstack.dead-letter",
        source=group,
        clock=clock,
        id=letter_id(delivery),
        extra=dict(zip(HEADERS, reasons, strict=True)),
    )
    ours = {name for name, _ in made.headers}
    theirs = tuple((f"dlq-original-{name}" if name in ours else name, value) for name, value in delivery.headers)
    return Outbound(topic.name, delivery.key or b"", delivery.value, made.headers + theirs)


def letter_id(delivery: Delivery) -> str:
    """Id of the dead letter of a message: where the message stood."""
    return f"{delivery.partition.topic}.{delivery.partition.number}.{delivery.offset}"


def _undeclared(name: str) -> Topic:
    """An ingest topic of an owner, which no list can know."""
    base = next((topic for topic in TOPICS.values() if name.startswith(f"{topic.name}.")), None)
    if base is None:
        raise Fatal(f"topic {name} is not declared", remedy="Declare it in streams/topics.py.")
    return Topic(name, base.key, base.value, base.kind, base.partitions, base.retention_days, base.max_bytes)


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """How much poison is normal. Beyond it something else is wrong (a new schema, a broken codec): stop instead.

    Source: arroyo's ``DlqLimit``, which bounds the ratio and the consecutive count.

    Attributes:
        run: in a row.
        share: of the last ``window`` messages.
        window: messages looked back at; the share counts once so many were seen.
    """

    run: int = 100
    share: float = 0.5
    window: int = 400

    def exceeded(self, fates: deque[bool]) -> str | None:
        """What is too much, given the newest fates (True for poison), oldest first; None if all is normal."""
        newest = list(fates)[-self.run :]
        if len(newest) == self.run and all(newest):
            return f"{self.run} messages in a row are poison"
        if len(fates) >= self.window and sum(fates) > self.share * len(fates):
            return f"{sum(fates)} of the last {len(fates)} messages are poison"
        return None
