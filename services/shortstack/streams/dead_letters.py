"""Poison, set aside with everything needed to find, understand and send it again."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal, Poison
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.envelope import outbound
from shortstack.streams.limits import size_of
from shortstack.streams.topics import TOPICS, Topic, dead_letters

__all__ = ["HEADERS", "LEFT_OUT", "DeadLetterLimit", "Fates", "dead_letter", "letter_id"]

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

LEFT_OUT: Final = "dlq-left-out"
"""Header that says what a letter lacks of its message, because that would not fit."""

_TEXT: Final = 2000
"""Characters of an error that a header carries."""


def dead_letter(delivery: Delivery, error: Poison, attempts: int, *, group: str, clock: Clock) -> Outbound:
    """``delivery`` as a message for its topic's dead letters; key and value as they were, if they fit.

    A topic bounds what a batch has on the wire, compressed; a letter that holds it unpacked may be beyond that. Then it
    has the message's place, size and digest, and `LEFT_OUT` says so.
    """
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
    whole = Outbound(topic.name, delivery.key or b"", delivery.value, made.headers + theirs)
    return whole if size_of(whole) <= topic.max_bytes else _without_content(whole, made.headers)


def _without_content(whole: Outbound, ours: tuple[tuple[str, bytes], ...]) -> Outbound:
    value = whole.value or b""
    lacks = f"value of {len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
    lacks += f", and {len(whole.headers) - len(ours)} headers"
    key = whole.key
    if len(key) > _TEXT:
        lacks += f", and the end of a key of {len(key)} bytes"
        key = key[:_TEXT]
    return replace(whole, key=key, value=None, headers=(*ours, (LEFT_OUT, lacks.encode())))


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
        origins: whose newest message is poison, if they are more than ``share`` of the newest origins, four times as
            many. One origin's poison is its own fault, however much it is; that of many is not.
    """

    run: int = 100
    share: float = 0.5
    window: int = 400
    origins: int = 5


class Fates:
    """What became of the newest messages, held against a limit.

    Args:
        limit: None for no limit.
    """

    def __init__(self, limit: DeadLetterLimit | None) -> None:
        self._limit = limit or DeadLetterLimit()
        self._limited = limit is not None
        self._newest: deque[bool] = deque(maxlen=self._limit.window)
        self._origins: dict[str, bool] = {}  # fate of the newest message of each, oldest first

    def add(self, poison: bool, origin: str | None) -> None:
        """Notes one more; poison that has an origin counts for that alone."""
        if origin is None or not poison:
            self._newest.append(poison)
        if origin is not None:
            self._origins.pop(origin, None)
            self._origins[origin] = poison
        if len(self._origins) > 4 * self._limit.origins:
            del self._origins[next(iter(self._origins))]

    def excess(self, origin: str | None) -> str | None:
        """What is too much if the next is poison; None if that is normal."""
        if not self._limited:
            return None
        return self._excess_of_messages() if origin is None else self._excess_of_origins(origin)

    def _excess_of_messages(self) -> str | None:
        fates = [*self._newest, True][-self._limit.window :]
        newest = fates[-self._limit.run :]
        if len(newest) == self._limit.run and all(newest):
            return f"{self._limit.run} messages in a row are poison"
        if len(fates) >= self._limit.window and sum(fates) > self._limit.share * len(fates):
            return f"{sum(fates)} of the last {len(fates)} messages are poison"
        return None

    def _excess_of_origins(self, origin: str) -> str | None:
        others = [poison for other, poison in self._origins.items() if other != origin][1 - 4 * self._limit.origins :]
        bad, all_ = sum(others) + 1, len(others) + 1
        if bad >= self._limit.origins and bad > self._limit.share * all_:
            return f"the newest messages of {bad} of {all_} origins are poison"
        return None
