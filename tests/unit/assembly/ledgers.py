"""Publications, entries and segments as the other services would write them, small."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow as pa

from shortstack.core.digest import sha256_hex
from shortstack.messages.v1.dataset_pb2 import (
    BatchEntry,
    PinnedSource,
    Publication,
    PublicationEvent,
    ReasonCount,
    SourceAnnounced,
)
from shortstack.records.message import Message
from shortstack.records.schema import SEGMENT_SCHEMA, Record, write_table
from shortstack.storage.blobs import BlobStore

RECIPE = {"name": "default", "deduplicate": "exact", "order": "shuffle", "seed": 42, "validation": 0}


def publication(
    *, sources: int = 1, attempt: int = 1, name: str = "faq", recipe: dict | None = None, id: str = "", **more: object
):
    """An accepted publication of ``sources`` sources."""
    return Publication(
        publication=id or f"pub-{name}",
        attempt=attempt,
        owner="default",
        dataset=name,
        sources=[PinnedSource(ordinal=i, uri=f"{name}-{i}.jsonl") for i in range(sources)],
        recipe_json=orjson.dumps(recipe or RECIPE).decode(),
        **more,
    )


def accepted(publication: Publication) -> PublicationEvent:
    return PublicationEvent(accepted=publication)


def announced(publication: Publication, source: int, records: int, malformed: Sequence[str] = ()) -> PublicationEvent:
    return PublicationEvent(
        announced=SourceAnnounced(
            publication=publication.publication,
            attempt=publication.attempt,
            source=source,
            items=records + len(malformed),
            used=records,
            rejected=len(malformed),
            records=records,
            samples=list(malformed),
        )
    )


def segment(
    blobs: BlobStore,
    publication: Publication,
    source: int,
    first: int,
    answers: Sequence[str],
    licences: Sequence[str] = (),
    **more: str,
) -> BatchEntry:
    """A segment in the store, an answer a record; an empty answer is a rejected record. Licences go round; ``more``
    stands in each."""
    rows = []
    for place, answer in enumerate(answers):
        license_ = licences[place % len(licences)] if licences else None
        turns = (Message("user", f"question {answer}"), Message("assistant", answer))
        record = Record(first + place, turns, license=license_, **more)
        kept = bool(answer)
        rows.append(
            {
                **record.row(),
                "verdict": "kept" if kept else "rejected",
                "step": None if kept else "empty",
                "reason": None if kept else "empty_answer",
                "evidence": None,
                "digest": record.digest(),
            }
        )
    data = write_table(pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA))
    key = f"publications/default/{publication.publication}/segments/{source}.{first}-{sha256_hex(data)}.arrow"
    blobs.put(key, data)
    rejected = sum(not answer for answer in answers)
    return BatchEntry(
        publication=publication.publication,
        attempt=publication.attempt,
        source=source,
        first=first,
        count=len(answers),
        segment=key,
        sha256=sha256_hex(data),
        kept=len(answers) - rejected,
        rejected=rejected,
        reasons=[ReasonCount(step="empty", reason="empty_answer", records=rejected)] if rejected else [],
    )
