"""Uploads that stay incomplete fail, naming what is missing.

Whoever stores a part of an upload that is not whole says so on ``datasets.publications``; its acceptance and its
failure stand there too. So what still waits is what the topic says, after a restart as before it.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from shortstack.core.clock import Clock
from shortstack.core.digest import identity
from shortstack.core.errors import Poison, Transient
from shortstack.ingestion.sources.uploads import Uploads
from shortstack.messages.v1.dataset_pb2 import PublicationEvent, PublicationFailed, UploadWaiting
from shortstack.streams.broker import Broker, Delivery, Producer, Reader
from shortstack.streams.envelope import SUBJECT, outbound
from shortstack.streams.following import Following
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.topics import DATASETS_PUBLICATIONS

__all__ = ["UPLOAD_SCHEME", "UploadWatch", "upload_publication"]

UPLOAD_SCHEME: Final = "upload://"
_POLL_S: Final = 0.5
_ACK_S: Final = 30.0
_REFRESHES: Final = 24
"""How often, within the time to fail, an upload whose parts keep coming is said to be alive."""


def upload_publication(owner: str, upload: str) -> str:
    """The id under which an upload fails: without all its records it has none of a publication's."""
    return identity("upload", owner, upload)


class UploadWatch(Following):
    """A component with one thread. `waiting` may be called from any.

    Args:
        after: from the last sign of life (to a 24th of this) to the failure.
    """

    def __init__(
        self, broker: Broker, uploads: Uploads, clock: Clock, log: structlog.stdlib.BoundLogger, *, after: timedelta
    ) -> None:
        super().__init__(broker, DATASETS_PUBLICATIONS.name, self._look)
        self._uploads, self._clock, self._log, self._after = uploads, clock, log, after
        self._producer: Producer = LateProducer(broker.producer)
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], tuple[str, datetime]] = {}
        self._by_id: dict[str, tuple[str, str]] = {}
        self.looks = 0
        """How often it has looked for overdue uploads; rises while it works."""

    def waiting(self, owner: str, dataset: str, upload: str) -> None:
        """Says that an upload is not whole, unless that was said just now; returns once Kafka has it.

        Raises:
            Transient: Kafka is away.
        """
        with self._lock:
            known = self._waiting.get((owner, upload))
        if known is not None and self._clock.now() - known[1] < self._after / _REFRESHES:
            return
        event = UploadWaiting(owner=owner, dataset=dataset, upload=upload)
        self._send(PublicationEvent(waiting=event), upload_publication(owner, upload), "waiting")

    def _send(self, event: PublicationEvent, key: str, name: str) -> None:
        message = outbound(
            DATASETS_PUBLICATIONS,
            key,
            event.SerializeToString(deterministic=True),
            type=f"shortstack.upload.{name}",
            source="ingestion",
            clock=self._clock,
            id=f"{key}.{name}",
            extra={SUBJECT: key},
        )
        sent = self._producer.send(message)
        self._producer.flush(_ACK_S)
        sent.result(0)

    def _look(self, reader: Reader) -> None:
        try:
            for delivery in reader.poll(_POLL_S):
                self._take(delivery)
            if reader.caught_up():  # until then an upload's acceptance may still be to come
                self._fail_overdue()
                self.looks += 1
        except Transient as error:
            self._log.warning("uploads are looked at again", error=str(error))
            raise

    def _take(self, delivery: Delivery) -> None:
        try:
            event = PublicationEvent.FromString(delivery.value or b"")
        except DecodeError:
            return  # assembly, the topic's reader, sets it aside
        with self._lock:
            match event.WhichOneof("event"):
                case "waiting":
                    key = event.waiting.owner, event.waiting.upload
                    at = datetime.fromtimestamp(delivery.timestamp_ms / 1000, UTC)
                    self._waiting[key] = (event.waiting.dataset, at)
                    self._by_id[upload_publication(*key)] = key
                case "accepted":
                    for source in event.accepted.sources:
                        if source.uri.startswith(UPLOAD_SCHEME):
                            self._forget(event.accepted.owner, source.uri.removeprefix(UPLOAD_SCHEME))
                case "failed" if event.failed.publication in self._by_id:
                    self._forget(*self._by_id[event.failed.publication])

    def _forget(self, owner: str, upload: str) -> None:
        self._waiting.pop((owner, upload), None)
        self._by_id.pop(upload_publication(owner, upload), None)

    def _fail_overdue(self) -> None:
        now = self._clock.now()
        with self._lock:
            overdue = [(*key, dataset) for key, (dataset, at) in self._waiting.items() if now - at >= self._after]
        for owner, upload, dataset in overdue:
            missing = self._missing(owner, upload)
            if missing is not None:
                self._fail_upload(owner, upload, dataset, missing)
            with self._lock:
                self._forget(owner, upload)

    def _missing(self, owner: str, upload: str) -> str | None:
        try:
            return self._uploads.incomplete(owner, upload)
        except Poison as error:  # the parts contradict the closing message
            return str(error)

    def _fail_upload(self, owner: str, upload: str, dataset: str, missing: str) -> None:
        """No part is taken any more, then it is said; a crash between the two says it at the next start."""
        self._uploads.fail(owner, upload)
        hours = self._after / timedelta(hours=1)
        failed = PublicationFailed(
            publication=upload_publication(owner, upload),
            attempt=1,
            owner=owner,
            dataset=dataset,
            error=f"upload {upload} is still incomplete after {hours:g} h; missing: {missing}",
            remedy="Start a new upload under another name.",
            code="upload_incomplete",
        )
        self._send(PublicationEvent(failed=failed), failed.publication, "failed")
        self._log.warning("upload failed", owner=owner, upload=upload, missing=missing)
