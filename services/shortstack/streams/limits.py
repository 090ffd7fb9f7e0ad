"""Refusals that both brokers share, and the bound on what one message may unpack to."""

from __future__ import annotations

from typing import Final

from shortstack.core.errors import Poison, Transient
from shortstack.streams.broker import Outbound
from shortstack.streams.topics import DATASETS_INGEST, Topic

__all__ = ["MAX_UNPACKED", "size_of", "too_large", "unknown_topic"]

MAX_UNPACKED: Final = 64 * 1024 * 1024
"""Bytes that one compressed batch of a topic may unpack to; a bomb of zeros cost 1.2 GB without it."""

_OVERHEAD: Final = 128
"""Bytes that Kafka's format adds to a batch of one message: 61 of the batch, the rest lengths and deltas."""


def size_of(message: Outbound) -> int:
    """An upper bound of the bytes of ``message`` on the wire, as a batch of its own."""
    headers = sum(len(name) * 4 + len(value) + 10 for name, value in message.headers)
    return _OVERHEAD + len(message.key) + len(message.value or b"") + headers


def too_large(message: Outbound, topic: Topic) -> Poison | None:
    """The error of a message that its topic would refuse; None if it fits."""
    size = size_of(message)
    if size <= topic.max_bytes:
        return None
    return Poison(
        f"message of {size} bytes, {topic.name} takes {topic.max_bytes}",
        where=f"topic {topic.name}, key {message.key.decode(errors='replace')}",
        remedy="Put the content in the object store and send its key, size and sha256.",
    )


def unknown_topic(name: str) -> Transient:
    """The error of a topic that does not exist, yet."""
    owner = name.removeprefix(f"{DATASETS_INGEST.name}.")
    command = "shortstack topics apply" if owner in (name, "dlq") else f"shortstack topics apply {owner}"
    return Transient(f"there is no topic {name}", remedy=f"Create the topics with `{command}`.")
