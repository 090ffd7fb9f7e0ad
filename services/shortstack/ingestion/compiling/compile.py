"""Compiling a pinned source: items in, record batches and malformed items out. Pure but for reading one file.

The same file, file format, family and columns give the same batches, always: they are cut by size of content alone.
Law: items = used + rejected.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.ingestion.families.family import Family
from shortstack.ingestion.families.registry import FAMILIES, UNKNOWN_FAMILY, detect_family, rename
from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable
from shortstack.ingestion.reading.readers import detect_file_format, read_items
from shortstack.records.schema import MAX_RECORD_BYTES, Record, table_of

__all__ = ["BATCH_BYTES", "BATCH_RECORDS", "CompileJob", "Cut", "Done", "Opened", "compile_source", "inspect_source"]

BATCH_BYTES: Final = 448 * 1024
"""A batch is closed before it would hold more canonical JSON than this; a longer record is a batch of its own."""

BATCH_RECORDS: Final = 4096
"""Most records of a batch, so that many tiny ones stay one short piece of work."""

_SAMPLE: Final = 50
"""Objects that are looked at to tell the family."""

_SAMPLED: Final = 10_000
"""Items among which they are looked for: broken ones may come first."""


@dataclass(frozen=True, slots=True)
class CompileJob:
    """How one pinned source is to be read.

    Attributes:
        name: of the file, as people know it; its suffix helps to tell the file format.
        file_format: reader by name; empty to detect.
        family: family by name; empty to detect.
        columns: column given → column meant.
        prompt_format: of the publication. A record carries only a format that its own row names: what the publication
            says is the job's to say, and another dataset that mixes the record in says something else.
        prompt_formats: names that a row may give as its own; empty where any may stand.
        license: of the publication; a record's own column wins.
        fail_on_malformed: stop at the first malformed item (recipe field ``malformed: fail``).
    """

    name: str
    file_format: str = ""
    family: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt_format: str = ""
    prompt_formats: Sequence[str] = ()
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

    def settled(self, opened: Opened) -> CompileJob:
        """The same job with nothing left to detect."""
        return replace(self, file_format=opened.file_format, family=opened.family)

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


def inspect_source(path: Path, job: CompileJob) -> Opened:
    """What a source is: its file format and family, as given or told from its first items.

    Raises:
        Unreadable: neither its name nor its bytes tell, or its first items look like no family.
    """
    file_format = job.file_format or detect_file_format(path, job.name, job.limits)
    if job.family:
        return Opened(file_format, job.family)
    head = itertools.islice(read_items(path, file_format, job.limits, positional=job.positional), _SAMPLED)
    objects = (item.value for item in head if isinstance(item, Item) and isinstance(item.value, dict))
    sample = [rename(value, job.columns) for value in itertools.islice(objects, _SAMPLE)]
    return Opened(file_format, detect_family(sample))


def compile_source(path: Path, job: CompileJob) -> Iterator[Opened | Cut | Malformed | Done]:
    """Compiles ``path``: `Opened`, then batches and malformed items as they come, then `Done`.

    Raises, while iterating:
        Unreadable: the file cannot be read to its end, its family cannot be told, or, where the job says so, an item
            is malformed.
    """
    opened = inspect_source(path, job)
    yield opened
    family = FAMILIES.get(opened.family)
    cutter = _Cutter()
    counts = {"items": 0, "rejected": 0}
    for item in read_items(path, opened.file_format, job.limits, positional=job.positional):
        counts["items"] += 1
        compiled = _compile(item, family, job, cutter.records)
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


def _compile(
    item: Item | Malformed, family: Family | None, job: CompileJob, seq: int
) -> tuple[Record, int] | Malformed:
    """One record and its size in bytes, or why there is none."""
    if isinstance(item, Malformed):
        return item
    try:
        record = _record(item.value, family, job, seq)
        size = _size(record, job)
        if size > MAX_RECORD_BYTES:
            raise Invalid(f"is {size} bytes as a record; at most {MAX_RECORD_BYTES}")
    except Invalid as error:
        return Malformed(item.place, str(error), _raw(item.value))
    except TypeError as error:
        # Of what orjson cannot write, lone surrogates stand for bytes that are no UTF-8.
        wrong = "is not valid Unicode" if "surrogate" in str(error) else "cannot be kept"
        return Malformed(item.place, f"{wrong}: {error}", _raw(item.value))
    return record, size


def _record(value: Any, family: Family | None, job: CompileJob, seq: int) -> Record:
    if not isinstance(value, dict):
        raise Invalid(f"is {type(value).__name__}, not an object")
    if family is None:
        raise Invalid(f"belongs to no family ({UNKNOWN_FAMILY})")
    draft = family.compile(rename(value, job.columns))
    if draft.prompt_format and job.prompt_formats and draft.prompt_format not in job.prompt_formats:
        raise Invalid(
            f'names the prompt format "{draft.prompt_format}", which is not known here',
            remedy=did_you_mean(draft.prompt_format, job.prompt_formats),
            param="prompt_format",
        )
    return Record(
        seq=seq,
        messages=draft.messages,
        tools=draft.tools,
        prompt_format=draft.prompt_format or None,
        category=draft.category,
        tags=draft.tags,
        source=draft.source or job.name,
        license=draft.license or job.license or None,
        metadata=draft.metadata,
    )


def _size(record: Record, job: CompileJob) -> int:
    """Bytes of the record as JSON, with the publication's format where it has none of its own.

    Batches are cut by it, and every record once carried that format: so a publication is cut now as it was then.
    """
    return len(orjson.dumps({**record.row(), "prompt_format": record.prompt_format or job.prompt_format or None}))


_RAW: Final = 2000


def _as_json(value: Any) -> str:
    """``value`` as JSON, as far as it can be written."""
    try:
        return orjson.dumps(value, default=repr).decode()
    except TypeError:
        return repr(value)


def _raw(value: Any) -> str:
    return _as_json(value)[:_RAW].encode("utf-8", "replace").decode()


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
