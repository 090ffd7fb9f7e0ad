"""Notices of what a controller's snapshots say, each once, also when the process dies between the two.

A snapshot is written first, for it is the truth; then the notice. So at its start a controller tells again whatever
its snapshots hold, and what stands on the topic already is not told twice: a notice is known by its id.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from shortstack.core.clock import Clock
from shortstack.streams.broker import Broker
from shortstack.streams.envelope import header, outbound
from shortstack.streams.outbox import Outbox
from shortstack.streams.topics import Topic

__all__ = ["Notices"]

_POLL_S: Final = 0.1
_NEWS: Final = timedelta(days=1)
"""Older than this is no news: its notice may have stood on the topic and be past its retention."""


class Notices:
    """The notices on one topic. Reads it whole when it is made; used from one thread.

    Args:
        source: name of the controller, in the headers.
    """

    def __init__(self, broker: Broker, topic: Topic, source: str, clock: Clock) -> None:
        self._topic, self._source, self._clock = topic, source, clock
        self._known: set[str | None] = set()
        self._outbox = Outbox(broker)
        reader = broker.reader([topic.name])
        try:
            while not reader.caught_up():
                self._known |= {header(notice, "ce_id") for notice in reader.poll(_POLL_S)}
        finally:
            reader.close()

    def told(self, name: str) -> bool:
        """Whether a notice of that id stands on the topic or is on its way."""
        return name in self._known

    def tell(self, name: str, key: str, value: bytes, at: Timestamp) -> None:
        """Sends a notice, unless it was told before or is a day old.

        Args:
            name: its id: same id, same notice.
            at: when it became true.
        """
        if name in self._known or at.ToDatetime(tzinfo=UTC) < self._oldest():
            return
        self._known.add(name)
        kind = f"shortstack.{self._topic.name}"
        self._outbox.send(outbound(self._topic, key, value, type=kind, source=self._source, clock=self._clock, id=name))

    def _oldest(self) -> datetime:
        return self._clock.now().astimezone(UTC) - _NEWS

    def close(self, timeout_s: float) -> None:
        """Sends what is under way.

        Raises:
            Transient: the broker is away.
        """
        self._outbox.close(timeout_s)
