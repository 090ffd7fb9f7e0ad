"""Compiling a pinned source: items in, record batches and malformed items out. Pure but for reading one file.

The same file, file format, family and columns give the same batches, always: they are cut by size of content alone.
Law: items = used + rejected.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa

from shortstack.core.errors import Invalid
from shortstack.ingestion.families.family import Family
from shortstack.ingestion.families.registry import FAMILIES, UNKNOWN_FAMILY, detect_family, rename
from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable
from shortstack.ingestion.reading.readers import detect_file_format, read_items
from shortstack.records.schema import MAX_RECORD_BYTES, Record, table_of

__all__ = ["BATCH_BYTES", "BATCH_RECORDS", "CompileJob", "Cut", "Done", "Opened", "compile_source", "preview_value"]

BATCH_BYTES: Final = 448 * 1024
"""A batch is closed before it would hold more canonical JSON than this; a longer record is a batch of its own."""

BATCH_RECORDS: Final = 4096
"""Most records of a batch, so that many tiny ones stay one short piece of work."""

_SAMPLE: Final = 50
"""Items that are looked at to tell the family."""


@dataclass(frozen=True, slots=True)
class CompileJob:
    """How one pinned source is to be read.

    Attributes:
        name: of the file, as people know it; its suffix helps to tell the file format.
        file_format: reader by name; empty to detect.
        family: family by name; empty to detect.
        columns: column given → column meant.
        prompt_format, license: of the publication; a record's own column wins.
        fail_on_malformed: stop at the first malformed item (recipe field ``malformed: fail``).
    """

    name: str
    file_format: str = ""
    family: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt_format: str = ""
    license: str = ""
    fail_on_malformed: bool = False
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> bytes:
        """For the way into the child process."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> CompileJob:
        """Reads what `to_json` wrote."""
        given = orjson.loads(data)
        return cls(**{**given, "limits": Limits(**given["limits"])})

    @property
    def positional(self) -> bool:
        """Whether the columns of a table are named by their place, so that it has no header."""
        return bool(self.columns) and all(column.isdecimal() for column in self.columns)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the source turned out to be; comes first, once."""

    file_format: str
    family: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch: ``count`` records from ``first``."""

    first: int
    count: int
    table: pa.Table


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the source; comes last, once. ``records`` = ``used``: every used item gives one record."""

    items: int
    used: int
    rejected: int
    records: int
    batches: int


def compile_source(path: Path, job: CompileJob) -> Iterator[Opened | Cut | Malformed | Done]:
    """Compiles ``path``: `Opened`, then batches and malformed items as they come, then `Done`.

    Raises, while iterating:
        Unreadable: the file cannot be read to its end, its family cannot be told, or, where the job says so, an item
            is malformed.
    """
    file_format = job.file_format or detect_file_format(path, job.name, job.limits)
    items = read_items(path, file_format, job.limits, positional=job.positional)
    head = list(itertools.islice(items, _SAMPLE))
    sample = [rename(item.value, job.columns) for item in head if isinstance(item, Item) and isinstance(item.value, dict)]
    family = job.family or detect_family(sample)
    yield Opened(file_format, family)
    cutter = _Cutter()
    counts = {"items": 0, "rejected": 0}
    for item in itertools.chain(head, items):
        counts["items"] += 1
        compiled = _compile(item, FAMILIES.get(family), job, cutter.records)
        if isinstance(compiled, Malformed):
            if job.fail_on_malformed:
                raise _strict(compiled, job)
            counts["rejected"] += 1
            yield compiled
            continue
        yield from cutter.add(*compiled)
    yield from cutter.rest()
    yield Done(counts["items"], cutter.records, counts["rejected"], cutter.records, cutter.batches)


def _strict(malformed: Malformed, job: CompileJob) -> Unreadable:
    return Unreadable(
        malformed.reason,
        code="invalid_training_file",
        where=f"{job.name} {malformed.place}",
        remedy="Mend the line and publish again; this recipe takes a file whole or not at all.",
    )


def _compile(item: Item | Malformed, family: Family | None, job: CompileJob, seq: int) -> tuple[Record, int] | Malformed:
    """One record and its size in bytes, or why there is none."""
    if isinstance(item, Malformed):
        return item
    if not isinstance(item.value, dict):
        return Malformed(item.place, f"is {type(item.value).__name__}, not an object", _raw(item.value))
    if family is None:
        return Malformed(item.place, f"belongs to no family ({UNKNOWN_FAMILY})", _raw(item.value))
    try:
        draft = family.compile(rename(item.value, job.columns))
        record = Record(
            seq=seq,
            messages=draft.messages,
            tools=draft.tools,
            prompt_format=draft.prompt_format or job.prompt_format or None,
            category=draft.category,
            tags=draft.tags,
            source=draft.source or job.name,
            license=draft.license or job.license or None,
            metadata=draft.metadata,
        )
        size = len(orjson.dumps(record.row()))
    except Invalid as error:
        return Malformed(item.place, str(error), _raw(item.value))
    except TypeError as error:  # orjson: lone surrogates, which stand for bytes that are no UTF-8
        return Malformed(item.place, f"is not valid Unicode: {error}", _raw(item.value))
    if size > MAX_RECORD_BYTES:
        return Malformed(item.place, f"is {size} bytes as a record; at most {MAX_RECORD_BYTES}", _raw(item.value))
    return record, size


_RAW: Final = 2000


def preview_value(value: Any) -> str:
    """``value`` as JSON, as far as it can be written."""
    try:
        return orjson.dumps(value, default=repr).decode()
    except TypeError:
        return repr(value)


def _raw(value: Any) -> str:
    return preview_value(value)[:_RAW].encode("utf-8", "replace").decode()


class _Cutter:
    """Gathers records and closes a batch by size."""

    def __init__(self) -> None:
        self._open: list[Record] = []
        self._bytes = 0
        self.records = 0
        self.batches = 0

    def add(self, record: Record, size: int) -> Iterator[Cut]:
        if self._open and (self._bytes + size > BATCH_BYTES or len(self._open) >= BATCH_RECORDS):
            yield from self.rest()
        self._open.append(record)
        self._bytes += size
        self.records += 1

    def rest(self) -> Iterator[Cut]:
        if not self._open:
            return
        self.batches += 1
        yield Cut(self._open[0].seq, len(self._open), table_of(self._open))
        self._open, self._bytes = [], 0
