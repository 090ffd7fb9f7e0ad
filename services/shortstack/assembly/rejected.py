"""Where each record that is not in the version went: a query over segments and what ingestion set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import zstandard

from shortstack.assembly.v1.assembly_pb2 import RejectedRecord
from shortstack.core.errors import NotFound
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.records.schema import RECORD_SCHEMA, SEGMENT_SCHEMA, read_table
from shortstack.storage.blobs import BlobStore

__all__ = ["rejected_records"]

_CONTENT = [name for name in RECORD_SCHEMA.names if name not in ("seq", "scores")]


def rejected_records(
    blobs: BlobStore, snapshot: DatasetSnapshot, segments: Sequence[tuple[str, int]], malformed: Sequence[str]
) -> Iterator[RejectedRecord]:
    """Malformed items first, then what steps refused, then duplicates; all in (source, seq) order.

    Args:
        segments: (object key, source ordinal) in order.
        malformed: objects with malformed items, as ingestion wrote them: zstd over JSON lines.
    """
    for key in malformed:
        yield from _malformed(blobs, key)
    for key, source in segments:
        yield from _refused(blobs, key, source)
    if snapshot.duplicates:
        yield from _duplicates(blobs, snapshot.duplicates)


def _malformed(blobs: BlobStore, key: str) -> Iterator[RejectedRecord]:
    text = zstandard.ZstdDecompressor().decompressobj().decompress(blobs.get(key))
    for line in text.splitlines():
        item: dict[str, Any] = orjson.loads(line)
        yield RejectedRecord(
            source=int(item.get("source", 0)),
            seq=int(item.get("item", item.get("line", 0)) or 0),
            fate="malformed",
            step="ingestion",
            reason=str(item.get("reason", "")),
            place=str(item.get("place", "")),
            record_json=str(item.get("text", "")),
        )


def _refused(blobs: BlobStore, key: str, source: int) -> Iterator[RejectedRecord]:
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
            place=f"source {source} record {row['seq']}",
            record_json=orjson.dumps({name: row[name] for name in _CONTENT if row[name] is not None}).decode(),
        )


def _duplicates(blobs: BlobStore, key: str) -> Iterator[RejectedRecord]:
    try:
        pairs = orjson.loads(blobs.get(key))
    except NotFound:
        return
    for record, earlier in pairs:
        source, seq = record.split("/")
        yield RejectedRecord(
            source=int(source),
            seq=int(seq),
            fate="duplicate",
            step="assembly",
            reason="duplicate",
            evidence=f"repeats record {earlier}",
            place=f"source {source} record {seq}",
        )
