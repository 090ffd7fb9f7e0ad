"""record/1: the Arrow schema of a record, and segments, which are records with their verdicts.

Columns are only ever added; readers take this version and the one before. Readers of what crossed a process
validate fully.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pyarrow as pa

from shortstack.core.digest import canonical_json, sha256_hex
from shortstack.core.errors import Poison
from shortstack.records.message import Message

__all__ = [
    "MAX_RECORD_BYTES",
    "RECORD_SCHEMA",
    "SEGMENT_SCHEMA",
    "Record",
    "content_digests",
    "read_table",
    "records_of",
    "table_of",
    "write_table",
]

MAX_RECORD_BYTES: Final = 1024 * 1024
"""A record whose canonical JSON is longer is rejected by ingestion as too large."""

_TEXT_COLUMNS: Final = ("tools", "prompt_format", "category", "language", "source", "license")
_SCHEMA_KEY: Final = b"schema"
_RECORD_1: Final = b"record/1"

_MESSAGE: Final = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("train", pa.bool_(), nullable=False),
        pa.field("tool_calls", pa.string()),
    ]
)

RECORD_SCHEMA: Final = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("messages", pa.list_(_MESSAGE), nullable=False),
        pa.field("tools", pa.string()),
        pa.field("parents", pa.list_(pa.int64())),
        pa.field("prompt_format", pa.string()),
        pa.field("category", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("language", pa.string()),
        pa.field("source", pa.string()),
        pa.field("license", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
    ],
    metadata={_SCHEMA_KEY: _RECORD_1},
)

SEGMENT_SCHEMA: Final = pa.schema(
    [
        *RECORD_SCHEMA,
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("step", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("evidence", pa.string()),
        # Digest of the record's content, for exact de-duplication and the version (see `content_digests`).
        pa.field("digest", pa.string()),
    ],
    metadata={_SCHEMA_KEY: _RECORD_1},
)
"""Every input row of a batch with its fate; ``verdict`` is kept, rejected or failed."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as the domain sees it.

    Attributes:
        seq: place in its source, from 0, without gaps.
        messages: the conversation.
        tools: JSON array of tool declarations, in OpenAI's shape.
        parents: places of the items it was derived from, where not just ``seq``.
        metadata: bounded JSON object that travels along.
    """

    seq: int
    messages: tuple[Message, ...]
    tools: str | None = None
    parents: tuple[int, ...] = ()
    prompt_format: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    language: str | None = None
    source: str | None = None
    license: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The record as a row of `RECORD_SCHEMA`."""
        return {
            "seq": self.seq,
            "messages": [
                {
                    "role": m.role,
                    "content": m.content,
                    "name": m.name,
                    "train": m.train,
                    "tool_calls": m.tool_calls,
                }
                for m in self.messages
            ],
            "tools": self.tools,
            "parents": list(self.parents) or None,
            "prompt_format": self.prompt_format,
            "category": self.category,
            "tags": list(self.tags) or None,
            "language": self.language,
            "source": self.source,
            "license": self.license,
            "metadata": _metadata(self),
            "scores": list(self.scores.items()) or None,
        }

    def digest(self) -> str:
        """What makes two records the same: see `content_digests`."""
        turns = [(m.role, m.content, m.name, m.train, m.tool_calls) for m in self.messages]
        return _digest(turns, self.tools, self.prompt_format, self.license)


def content_digests(table: pa.Table) -> list[str]:
    """One digest a row: sha256 over the canonical JSON of [messages, tools, prompt_format, license].

    A message stands there as [role, content, name, train, tool_calls]; place, tags, scores and metadata do not count.
    Columns are taken apart flat, which is some ten times as fast as row by row.
    """
    column = table.column("messages").combine_chunks()
    offsets = column.offsets.to_pylist()
    turns = list(zip(*(flat.to_pylist() for flat in column.values.flatten()), strict=True))
    beside = (table.column(name).to_pylist() for name in ("tools", "prompt_format", "license"))
    return [
        _digest(turns[first:last], tools, prompt_format, license_)
        for first, last, tools, prompt_format, license_ in zip(offsets, offsets[1:], *beside, strict=False)
    ]


def _digest(
    turns: Sequence[tuple[Any, ...]], tools: str | None, prompt_format: str | None, license_: str | None
) -> str:
    return sha256_hex(canonical_json([turns, tools, prompt_format, license_]))


def _record(row: Mapping[str, Any]) -> Record:
    return Record(
        seq=row["seq"],
        messages=tuple(Message(**message) for message in row["messages"]),
        tools=row["tools"],
        parents=tuple(row["parents"] or ()),
        prompt_format=row["prompt_format"],
        category=row["category"],
        tags=tuple(row["tags"] or ()),
        language=row["language"],
        source=row["source"],
        license=row["license"],
        metadata=orjson.loads(row["metadata"]) if row["metadata"] else {},
        scores=dict(row["scores"] or ()),
    )


def table_of(records: Iterable[Record]) -> pa.Table:
    """Records as a table of `RECORD_SCHEMA`."""
    rows = list(records)
    turns = [message for record in rows for message in record.messages]
    flat = [pa.array([getattr(message, field.name) for message in turns], type=field.type) for field in _MESSAGE]
    offsets = pa.array(itertools.accumulate((len(record.messages) for record in rows), initial=0), type=pa.int32())
    columns = {
        "seq": [record.seq for record in rows],
        "messages": pa.ListArray.from_arrays(
            offsets, pa.StructArray.from_arrays(flat, fields=list(_MESSAGE)), type=RECORD_SCHEMA.field("messages").type
        ),
        "parents": [list(record.parents) or None for record in rows],
        "tags": [list(record.tags) or None for record in rows],
        "metadata": [_metadata(record) for record in rows],
        "scores": [list(record.scores.items()) or None for record in rows],
    } | {name: [getattr(record, name) for record in rows] for name in _TEXT_COLUMNS}
    return pa.table([pa.array(columns[f.name], type=f.type) for f in RECORD_SCHEMA], schema=RECORD_SCHEMA)


def _metadata(record: Record) -> str | None:
    return orjson.dumps(record.metadata, option=orjson.OPT_SORT_KEYS).decode() if record.metadata else None


def records_of(table: pa.Table) -> list[Record]:
    """Rows of a table that holds at least `RECORD_SCHEMA`'s columns, in order."""
    return [_record(row) for row in table.select(RECORD_SCHEMA.names).to_pylist()]


def write_table(table: pa.Table) -> bytes:
    """An Arrow stream with zstd inside, for a message (uncompressed in Kafka) or a segment."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read_table(data: bytes, schema: pa.Schema = RECORD_SCHEMA) -> pa.Table:
    """Reads what `write_table` wrote; absent newer columns are filled with nulls.

    Raises:
        Poison: the bytes are no Arrow stream, of another schema, or do not validate.
    """
    try:
        with pa.ipc.open_stream(data) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowException, OSError, EOFError) as error:
        raise Poison(f"not a valid Arrow stream: {error}") from error
    kind = (table.schema.metadata or {}).get(_SCHEMA_KEY)
    if kind != _RECORD_1:
        raise Poison(f"schema is {kind!r}", remedy="This version reads record/1.")
    return _conformed(table, schema)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns: Sequence[pa.ChunkedArray] = [
        table.column(f.name) if f.name in table.column_names else pa.chunked_array([pa.nulls(len(table), f.type)])
        for f in schema
    ]
    try:
        return pa.Table.from_arrays(list(columns), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise Poison(f"columns do not fit record/1: {error}") from error
