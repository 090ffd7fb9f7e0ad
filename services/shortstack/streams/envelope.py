"""Messages in CloudEvents 1.0 binary mode, with the trace they belong to.

Source of the header names: CloudEvents' Kafka protocol binding 1.0, section 3.2.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.tracing import TRACEPARENT, inject
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.topics import Topic

__all__ = ["SUBJECT", "header", "outbound"]

SUBJECT: Final = "ce_subject"
"""Header that names what the event is about, such as a publication."""

_NO_HEADERS: Final[Mapping[str, str]] = {}


def outbound(
    topic: Topic,
    key: str,
    value: bytes,
    *,
    type: str,
    source: str,
    clock: Clock,
    id: str | None = None,
    extra: Mapping[str, str] = _NO_HEADERS,
) -> Outbound:
    """A message for ``topic``.

    Args:
        topic: where to; gives the content type too.
        key: of the message.
        value: its bytes.
        type: what happened, for example ``shortstack.batch.formatted``.
        source: the service that says so, for example ``formatting``.
        clock: gives ``ce_time``.
        id: same id, same event; a random one unless given.
        extra: more headers, by their full names.
    """
    headers = {
        "ce_specversion": "1.0",
        "ce_id": id or uuid.uuid4().hex,
        "ce_source": source,
        "ce_type": type,
        "ce_time": clock.now().isoformat().replace("+00:00", "Z"),
        "content-type": topic.content_type,
        TRACEPARENT: inject(),
        **extra,
    }
    return Outbound(topic.name, key.encode(), value, tuple((name, text.encode()) for name, text in headers.items()))


def header(delivery: Delivery, name: str) -> str | None:
    """The first header of that name; None if there is none. Bytes that are no UTF-8 come as replacement signs."""
    for found, value in delivery.headers:
        if found == name:
            return value.decode(errors="replace")
    return None
