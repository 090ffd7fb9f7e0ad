"""From a message to a plan: what each kind of message means, and where its records are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from shortstack.core.errors import NotFound
from shortstack.declarations.publication import (
    AnyMessage,
    CompleteMessage,
    PartMessage,
    PointerMessage,
    RetryMessage,
    WholeMessage,
    parse_publication,
)
from shortstack.ingestion.publishing.attempts import Decision, decide, decide_retry
from shortstack.ingestion.publishing.publisher import Plan, plan_again, plan_of
from shortstack.ingestion.publishing.upload_watch import UPLOAD_SCHEME
from shortstack.ingestion.publishing.wishes import Wish, WishChecker
from shortstack.ingestion.reading.items import Limits
from shortstack.ingestion.sources.pinning import Pinned, Pins
from shortstack.ingestion.sources.policy import Address, SourcePolicy
from shortstack.ingestion.sources.uploads import Uploads, json_lines
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot, Publication
from shortstack.streams.state import StateReader

__all__ = ["Order", "Requests"]

_WHOLE_URI = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done about a message: a plan, and how much of it."""

    plan: Plan
    decision: Decision


class Requests:
    """Reads messages of the ingest topics.

    Args:
        checker: for what a message wishes.
        policy: for the addresses that it names.
        pins: takes sources into the object store.
        uploads: keeps parts.
        state: of the datasets, for attempts.
        limits: for readers.
        log: told of uploads that are not whole yet.
        waiting: told of them too, as (owner, dataset, upload), each time.
        wait_s: for the state to be read to its end.
    """

    def __init__(
        self,
        checker: WishChecker,
        policy: SourcePolicy,
        pins: Pins,
        uploads: Uploads,
        state: StateReader[DatasetSnapshot],
        limits: Limits,
        log: structlog.stdlib.BoundLogger,
        waiting: Callable[[str, str, str], None],
        *,
        wait_s: float = 30.0,
    ) -> None:
        self._checker, self._policy, self._pins, self._uploads = checker, policy, pins, uploads
        self._state, self._limits, self._wait_s = state, limits, wait_s
        self._log, self._waiting = log, waiting

    def check(self, value: bytes, owner: str) -> AnyMessage:
        """Everything about a message that can be refused before its records are touched.

        Raises:
            Poison: the message is wrong, or names what it may not.
        """
        message = parse_publication(value)
        match message:
            case PointerMessage():
                self._wish(message, owner)
                self._addresses(message, owner)
            case WholeMessage() | CompleteMessage():
                self._wish(message, owner)
            case PartMessage() | RetryMessage():
                pass
        return message

    def order(self, value: bytes, owner: str, requested_at: datetime) -> Order | None:
        """Pins the records of a message; None if it only adds to an upload that is not whole yet.

        Raises:
            Poison: the message is wrong, names what it may not, or contradicts one before it.
            Transient: the object store is away, or the state cannot be read.
        """
        message = parse_publication(value)
        match message:
            case RetryMessage():
                return self._retry(message, owner, requested_at)
            case PartMessage():
                return self._part(message, owner, requested_at)
            case CompleteMessage():
                return self._complete(message, owner, requested_at)
            case WholeMessage():
                wish = self._wish(message, owner)
                pinned = [self._pins.pin_bytes(json_lines(message.records), owner, uri=_WHOLE_URI)]
                return self._order(wish, pinned, requested_at)
            case PointerMessage():
                wish = self._wish(message, owner)
                pinned = [self._pins.pin(address, owner) for address in self._addresses(message, owner)]
                return self._order(wish, pinned, requested_at)

    def _wish(self, message: PointerMessage | WholeMessage | CompleteMessage, owner: str) -> Wish:
        file_format = message.source.file_format if isinstance(message, PointerMessage) else "jsonl"
        return self._checker.check(message, owner, file_format=file_format)

    def _addresses(self, message: PointerMessage, owner: str) -> list[Address]:
        return [address for uri in message.source.addresses for address in self._policy.resolve(uri, owner)]

    def _order(self, wish: Wish, pinned: list[Pinned], requested_at: datetime) -> Order:
        plan = plan_of(wish, pinned, requested_at, self._limits, self._checker.prompt_formats)
        self._state.wait_caught_up(self._wait_s)
        snapshot = self._state.get(plan.publication.publication)
        return Order(plan, decide(snapshot, requested_at))

    def _retry(self, message: RetryMessage, owner: str, requested_at: datetime) -> Order:
        self._state.wait_caught_up(self._wait_s)
        snapshot = self._state.get(message.retry)
        if snapshot is None or snapshot.publication.owner != owner or snapshot.publication.dataset != message.dataset:
            raise NotFound(
                f'there is no publication "{message.retry}" of dataset "{message.dataset}"',
                where=f"dataset {message.dataset}",
                remedy="See the publications with: shortstack datasets list",
                param="retry",
            )
        decision = decide_retry(snapshot, requested_at)
        publication = Publication()
        publication.CopyFrom(snapshot.publication)  # the reader's own must stay as it is: the next decision is by it
        if decision.attempt != publication.attempt:
            publication.accepted_at.FromDatetime(requested_at)
        return Order(plan_again(publication, self._limits, self._checker.prompt_formats), decision)

    def _part(self, message: PartMessage, owner: str, requested_at: datetime) -> Order | None:
        where = f"dataset {message.dataset}, upload {message.upload}"
        self._uploads.add(owner, message.upload, message.seq, message.records, where=where)
        closing = self._uploads.closing(owner, message.upload)
        if closing is None:
            self._waiting(owner, message.dataset, message.upload)
            return None
        # When it was closed is when it was asked for, whichever part completes it and however often it is read.
        return self._whole_upload(CompleteMessage.model_validate(closing.message), owner, closing.at)

    def _complete(self, message: CompleteMessage, owner: str, requested_at: datetime) -> Order | None:
        self._wish(message, owner)
        given = message.model_dump(mode="json", exclude_none=True)
        where = f"dataset {message.dataset}, upload {message.upload}"
        self._uploads.close(owner, message.upload, given, at=requested_at, where=where)
        return self._whole_upload(message, owner, requested_at)

    def _whole_upload(self, message: CompleteMessage, owner: str, requested_at: datetime) -> Order | None:
        """The order of an upload whose parts are all there; whoever finds it whole goes on."""
        missing = self._uploads.missing(owner, message.upload, message.records)
        if missing:
            self._log.info("upload waits", dataset=message.dataset, upload=message.upload, missing=missing)
            self._waiting(owner, message.dataset, message.upload)
            return None
        uri = f"{UPLOAD_SCHEME}{message.upload}"
        source = Address(uri, lambda: self._uploads.joined(owner, message.upload, message.records))
        return self._order(self._wish(message, owner), [self._pins.pin(source, owner)], requested_at)
