"""What the state tells of a request that was set aside: without it, whoever published waits for a dataset for ever."""

from __future__ import annotations

from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.digest import identity
from shortstack.core.errors import Poison
from shortstack.core.identity import check_name
from shortstack.declarations.publication import REFUSED, PartMessage, RetryMessage, parse_publication
from shortstack.messages.v1.dataset_pb2 import PublicationEvent, PublicationFailed
from shortstack.streams.attempts import MAX_ATTEMPTS
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.dead_letters import letter_id
from shortstack.streams.envelope import SUBJECT, outbound
from shortstack.streams.topics import DATASETS_PUBLICATIONS, ingest_owner

__all__ = ["refusal"]

_TEXT: Final = 4000
"""Characters of an error that the state keeps."""


def refusal(delivery: Delivery, error: Poison, attempts: int, clock: Clock) -> Outbound | None:
    """The event that fails what a request asked for; None where that is not known, or was no dataset of its own.

    Its publication has an id by the message's place: the same each time that is read, and none that a dataset has. So
    what the name stands for stays as it is. A part that is refused fails no upload, and a retry no publication.
    """
    try:
        owner = check_name(ingest_owner(delivery.partition.topic), param="owner")
        dataset, job = _asked_for(delivery, attempts)
    except Poison:
        return None
    if not dataset:
        return None
    failed = PublicationFailed(
        publication=identity(REFUSED, letter_id(delivery)),
        attempt=1,
        owner=owner,
        dataset=dataset,
        error=str(Poison(error.what, where=error.where))[:_TEXT],
        remedy=(error.remedy or "Mend the request and publish it again.")[:_TEXT],
        job=job,
        code=REFUSED,
    )
    return outbound(
        DATASETS_PUBLICATIONS,
        failed.publication,
        PublicationEvent(failed=failed).SerializeToString(deterministic=True),
        type="shortstack.publication.failed",
        source="ingestion",
        clock=clock,
        id=f"{failed.publication}.1.failed",
        extra={SUBJECT: failed.publication},
    )


def _asked_for(delivery: Delivery, attempts: int) -> tuple[str, str]:
    """Dataset and job of a request; of one that kills who reads it, its key, which is the dataset's name by rule."""
    if attempts > MAX_ATTEMPTS:
        return check_name((delivery.key or b"").decode("utf-8", "replace"), param="key"), ""
    message = parse_publication(delivery.value or b"")
    if isinstance(message, PartMessage | RetryMessage):
        return "", ""
    return message.dataset, message.job or ""
