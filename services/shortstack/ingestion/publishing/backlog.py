"""Back-pressure: no more batches under way than formatting is about to take.

Counted by what this process sent and has not yet seen on the ledger, so no other group's offsets are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from shortstack.core.errors import Transient
from shortstack.core.identity import BatchId
from shortstack.ingestion.publishing.publisher import Abandoned, Throttle
from shortstack.messages.v1.dataset_pb2 import BatchEntry
from shortstack.streams.broker import Broker, Reader
from shortstack.streams.topics import RECORDS_FORMATTED

__all__ = ["Backlog"]

_POLL_S = 0.1


class Backlog(Throttle):
    """A component that follows ``records.formatted`` from its end on.

    Args:
        broker: where the topic is.
        limit: batches that may be under way.
    """

    def __init__(self, broker: Broker, limit: int) -> None:
        self._broker, self._limit = broker, limit
        self._changed = threading.Condition()
        self._under_way: set[str] = set()
        self._following = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
        self.failed: Exception | None = None

    def start(self) -> None:
        """Begins to follow the ledger."""
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Lets go; whoever waits is sent away by its own ``abandoned``."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)

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

    def _run(self) -> None:
        try:
            reader = self._connected()
            if reader is None:
                return
            try:
                while not self._stopping.is_set():
                    self._follow(reader)
            finally:
                reader.close()
        except Exception as error:  # noqa: BLE001 - `run_until_signal` ends the process with it
            self.failed = error

    def _connected(self) -> Reader | None:
        while not self._stopping.is_set():
            with suppress(Transient):
                return self._broker.reader([RECORDS_FORMATTED.name], from_end=True)
            self._stopping.wait(1.0)
        return None

    def _follow(self, reader: Reader) -> None:
        try:
            deliveries = reader.poll(_POLL_S)
        except Transient:
            self._stopping.wait(_POLL_S)
            return
        seen = set()
        for delivery in deliveries:
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
