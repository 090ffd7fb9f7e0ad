"""What the assembling child is asked to do, and what it answers: JSON on its standard input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from shortstack.core.digest import canonical_json

__all__ = ["AssembledVersion", "AssemblyPlan", "FailedBatch", "MixIn", "Segment"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in the object store and the sha256 it must have."""

    key: str
    sha256: str
    source: int


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """Records [first, first + count) of a source that have no segment: formatting gave the whole batch up."""

    source: int
    first: int
    count: int
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class MixIn:
    """Another dataset's version to mix in: each of its training records ``factor`` times.

    A fraction of a time is decided record by record, by a hash of (seed, record).
    """

    dataset: str
    version: str
    manifest: str
    factor: float


@dataclass(frozen=True, slots=True)
class AssemblyPlan:
    """Everything the version follows from.

    Attributes:
        prefix: object prefix of the publication.
        validation: 0 for none, below 1 a share, else a number of records.
        order: ``source`` keeps (source, seq); ``shuffle`` sorts by a hash of (seed, record).
        shard_records, shard_bytes: a shard ends before it would hold more of either.
        head: what the manifest says beside splits and counts.
    """

    storage_url: str
    prefix: str
    segments: Sequence[Segment]
    deduplicate: str = "exact"
    order: str = "shuffle"
    seed: int = 42
    validation: float = 0.0
    mix: Sequence[MixIn] = ()
    shard_records: int = 50_000
    shard_bytes: int = 256 * 1024**2
    head: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """For the child's standard input."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> AssemblyPlan:
        """Reads `to_json`."""
        raw = orjson.loads(data)
        raw["segments"] = [Segment(**segment) for segment in raw["segments"]]
        raw["mix"] = [MixIn(**mix) for mix in raw["mix"]]
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class AssembledVersion:
    """The child's answer; counts are of records. Law: kept = chosen + duplicates; written = chosen + mixed_in.

    Attributes:
        row_formats: prompt formats that written records name as their own, in order.
        with_tools: written records that declare tools.
    """

    version: str
    manifest: str
    duplicates_object: str
    kept: int
    chosen: int
    duplicates: int
    mixed_in: int
    written: int
    train: int
    validation: int
    row_formats: Sequence[str] = ()
    with_tools: int = 0

    def to_json(self) -> bytes:
        """For the parent."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> AssembledVersion:
        """Reads `to_json`."""
        return cls(**orjson.loads(data))
