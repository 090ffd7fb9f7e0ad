"""Back-pressure: no more batches under way than formatting is about to take.

Counted by what this process sent and has not yet seen on the ledger, so no other group's offsets are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from shortstack.core.identity import BatchId
from shortstack.ingestion.publishing.publisher import Abandoned, Throttle
from shortstack.messages.v1.dataset_pb2 import BatchEntry
from shortstack.streams.broker import Broker, Reader
from shortstack.streams.following import Following
from shortstack.streams.topics import RECORDS_FORMATTED

__all__ = ["Backlog"]

_POLL_S: Final = 0.25


class Backlog(Following, Throttle):
    """A component that follows ``records.formatted`` from its end on.

    Args:
        broker: where the topic is.
        limit: batches that may be under way.
    """

    def __init__(self, broker: Broker, limit: int) -> None:
        super().__init__(broker, RECORDS_FORMATTED.name, self._follow, from_end=True)
        self._limit = limit
        self._changed = threading.Condition()
        self._under_way: set[str] = set()
        self._following = False

    def wait(self, batch: str, abandoned: Callable[[], bool]) -> None:
        """See `Throttle.wait`."""
        with self._changed:
            while not self._following or len(self._under_way) >= self._limit:
                if abandoned():
                    raise Abandoned("left to whoever reads the message next")
                self._changed.wait(_POLL_S)
            self._under_way.add(batch)

    @property
    def under_way(self) -> int:
        """Batches that were sent and not seen on the ledger yet."""
        with self._changed:
            return len(self._under_way)

    def _follow(self, reader: Reader) -> None:
        seen = set()
        for delivery in reader.poll(_POLL_S):
            try:
                entry = BatchEntry.FromString(delivery.value or b"")
            except DecodeError:
                continue  # assembly sets it aside; it is the entry of no batch that was sent here
            seen.add(str(BatchId(entry.publication, entry.attempt, entry.source, entry.first, entry.count)))
        with self._changed:
            # The first poll fixes where "from the end on" begins; only then may batches leave.
            self._following = True
            self._under_way -= seen
            self._changed.notify_all()
