"""Where each record that is not in the version went: a query over segments and what ingestion set aside."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import orjson
import zstandard

from shortstack.assembly.plan import FailedBatch
from shortstack.assembly.v1.assembly_pb2 import RejectedRecord
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.records.schema import RECORD_SCHEMA, SEGMENT_SCHEMA, read_table
from shortstack.storage.blobs import BlobStore

__all__ = ["rejected_records"]

_CONTENT = [name for name in RECORD_SCHEMA.names if name not in ("seq", "scores")]


def rejected_records(
    blobs: BlobStore,
    snapshot: DatasetSnapshot,
    segments: Sequence[tuple[str, int]],
    malformed: Sequence[str],
    failed: Sequence[FailedBatch] = (),
) -> Iterator[RejectedRecord]:
    """Malformed items first, then batches that failed whole, what steps refused, and duplicates; each in order.

    Args:
        segments: (object key, source ordinal) in order.
        malformed: objects with malformed items, as ingestion wrote them: zstd over JSON lines.
        failed: batches without a segment; each is one entry, which names its first and last record.
    """
    names = {s.ordinal: PurePosixPath(s.uri).name for s in snapshot.publication.sources}
    for key in malformed:
        yield from _malformed(blobs, key)
    for batch in failed:
        yield _failed(batch, names.get(batch.source, f"source {batch.source}"))
    for key, source in segments:
        yield from _refused(blobs, key, source, names.get(source, f"source {source}"))
    if snapshot.duplicates:
        yield from _duplicates(blobs, snapshot.duplicates, names)


def _malformed(blobs: BlobStore, key: str) -> Iterator[RejectedRecord]:
    source = int(key.rsplit("/", 1)[-1].split(".", maxsplit=1)[0])  # …/rejected/SOURCE.ATTEMPT.jsonl.zst
    # Line by line: a source of gigabytes may be malformed from one end to the other, and few lines are asked for.
    with blobs.stream(key) as raw, zstandard.ZstdDecompressor().stream_reader(raw) as unpacked:
        for line in io.BufferedReader(unpacked):
            yield _malformed_record(source, orjson.loads(line))


def _malformed_record(source: int, item: Mapping[str, Any]) -> RejectedRecord:
    return RejectedRecord(
        source=source,
        fate="malformed",
        step="ingestion",
        reason=item["reason"],
        place=f"{item['file']} {item['place']}",
        record_json=item["raw"],
    )


def _failed(batch: FailedBatch, name: str) -> RejectedRecord:
    return RejectedRecord(
        source=batch.source,
        seq=batch.first,
        fate="failed",
        step="batch",
        reason=batch.reason,
        evidence=batch.error,
        place=f"{name} records {batch.first}-{batch.first + batch.count - 1}",
    )


def _refused(blobs: BlobStore, key: str, source: int, name: str) -> Iterator[RejectedRecord]:
    table = read_table(blobs.get(key), SEGMENT_SCHEMA)
    for row in table.select([*_CONTENT, "seq", "verdict", "step", "reason", "evidence"]).to_pylist():
        if row["verdict"] == "kept":
            continue
        yield RejectedRecord(
            source=source,
            seq=row["seq"],
            fate=row["verdict"],
            step=row["step"] or "",
            reason=row["reason"] or "",
            evidence=row["evidence"] or "",
            place=f"{name} record {row['seq']}",
            record_json=orjson.dumps({column: row[column] for column in _CONTENT if row[column] is not None}).decode(),
        )


def _duplicates(blobs: BlobStore, key: str, names: Mapping[int, str]) -> Iterator[RejectedRecord]:
    for record, earlier in orjson.loads(blobs.get(key)):
        source, seq = (int(part) for part in record.split("/"))
        first, first_seq = (int(part) for part in earlier.split("/"))
        yield RejectedRecord(
            source=source,
            seq=seq,
            fate="duplicate",
            step="assembly",
            reason="duplicate",
            evidence=f"repeats {names[first]} record {first_seq}",
            place=f"{names[source]} record {seq}",
        )
