"""Makes a version from segments: de-duplicates, orders, splits, mixes in, writes shards and, last, the manifest.

Run as a child of the controller (``python -m shortstack.assembly.assemble``): a plan on standard input, the version
on standard output. Memory is bounded by the de-duplication index and the order (about 100 bytes a kept record);
record text is read segment by segment, twice: once to choose, once to write.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from shortstack.assembly.plan import AssembledVersion, AssemblyPlan, MixIn, Segment
from shortstack.core.digest import canonical_json, file_sha256, sha256_hex
from shortstack.core.errors import Fatal
from shortstack.core.lifecycle import run_service
from shortstack.records.schema import RECORD_SCHEMA, SEGMENT_SCHEMA, content_digests, read_table
from shortstack.storage.blobs import BlobStore

__all__ = ["SHARD_SCHEMA", "assemble", "main"]

SHARD_SCHEMA = pa.schema(
    [*RECORD_SCHEMA, pa.field("record", pa.string(), nullable=False), pa.field("digest", pa.string(), nullable=False)],
    metadata=RECORD_SCHEMA.metadata,
)
"""record/1, the record's id (``SOURCE/SEQ``, or ``DATASET@VERSION/…`` if mixed in) and its content's digest."""

_MAX_DUPLICATES_LISTED = 100_000


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A record that goes into the version, by where its text stands; ``size`` is its table's mean, in bytes."""

    record: str
    digest: str
    table: int
    row: int
    size: int
    repeat: int = 0


@dataclass(slots=True)
class _Selection:
    chosen: list[_Chosen]
    duplicates: list[tuple[str, str]]
    kept: int


_Licences = Counter[tuple[str, str]]
"""How many records were written, by (what they were mixed in from, licence); empty: its own, none named."""


@dataclass(slots=True)
class _Written:
    """What stands in the version beside its messages, and a job has to know of."""

    formats: set[str] = field(default_factory=set)
    with_tools: int = 0
    licences: _Licences = field(default_factory=Counter)

    def take(self, table: pa.Table) -> None:
        """Takes a table of `SHARD_SCHEMA` in."""
        self.formats.update(name for name in table["prompt_format"].unique().to_pylist() if name)
        self.with_tools += len(table) - table["tools"].null_count
        named = zip(table["record"].to_pylist(), table["license"].to_pylist(), strict=True)
        self.licences.update((_origin(record), licence or "") for record, licence in named)


def _chance(seed: int, purpose: str, record: str) -> int:
    """64 bits that depend on the seed and the record alone."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{purpose}\0{record}".encode())


class _Tables:
    """Segments and mixed-in shards by number, read when asked for; the last one is kept."""

    def __init__(self, blobs: BlobStore, segments: Sequence[Segment]) -> None:
        self._blobs = blobs
        self._keys: list[tuple[str, str, str]] = [(s.key, s.sha256, "") for s in segments]
        self._held: tuple[int, pa.Table] | None = None

    def add_shard(self, key: str, sha256: str, inherited: str) -> int:
        self._keys.append((key, sha256, inherited))
        return len(self._keys) - 1

    def read(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            key, sha256, inherited = self._keys[number]
            data = self._blobs.get(key)
            if sha256_hex(data) != sha256:
                raise Fatal(
                    "object does not have the sha256 that the ledger names",
                    where=key,
                    remedy="The object store changed or lost bytes; restore it, then: shortstack datasets retry NAME",
                )
            table = (
                pq.read_table(pa.BufferReader(data)) if key.endswith(".parquet") else read_table(data, SEGMENT_SCHEMA)
            )
            self._held = (number, _disinherited(table, inherited) if inherited else table)
        return self._held[1]


def _disinherited(table: pa.Table, inherited: str) -> pa.Table:
    """The table without the format that its rows have from their publication, and with digests to match."""
    column = table["prompt_format"]
    own = pc.if_else(pc.equal(column, inherited), pa.scalar(None, pa.string()), column)
    table = table.set_column(table.schema.get_field_index("prompt_format"), table.schema.field("prompt_format"), own)
    digests = pa.array(content_digests(table), pa.string())
    return table.set_column(table.schema.get_field_index("digest"), table.schema.field("digest"), digests)


def _select(plan: AssemblyPlan, tables: _Tables) -> _Selection:
    """Kept records in (source, seq) order, the first of equals chosen."""
    selection = _Selection([], [], 0)
    first_of: dict[bytes, str] = {}
    for number, segment in enumerate(plan.segments):
        table = tables.read(number)
        kept = pc.equal(table["verdict"], "kept").to_pylist()
        size = _mean_bytes(table)
        digests, seqs = table["digest"].to_pylist(), table["seq"].to_pylist()
        for row, keep in enumerate(kept):
            if not keep:
                continue
            record = f"{segment.source}/{seqs[row]}"
            selection.kept += 1
            if plan.deduplicate == "exact":
                earlier = first_of.setdefault(bytes.fromhex(digests[row])[:16], record)
                if earlier is not record:
                    selection.duplicates.append((record, earlier))
                    continue
            selection.chosen.append(_Chosen(record, digests[row], number, row, size))
    return selection


def _mean_bytes(table: pa.Table) -> int:
    return int(table.nbytes) // max(1, len(table))


def _mixed_in(plan: AssemblyPlan, blobs: BlobStore, tables: _Tables) -> list[_Chosen]:
    """Records of other versions' training splits, each floor(factor) times and once more by chance."""
    added: list[_Chosen] = []
    for mix in plan.mix:
        manifest = orjson.loads(blobs.get(mix.manifest))
        # Before manifests said which formats rows name themselves, every row carried its publication's format.
        inherited = "" if "row_formats" in manifest else manifest.get("prompt_format", "")
        for shard in manifest["splits"]["train"]["shards"]:
            number = tables.add_shard(shard["key"], shard["sha256"], inherited)
            table = tables.read(number)
            size = _mean_bytes(table)
            pairs = zip(table["record"].to_pylist(), table["digest"].to_pylist(), strict=True)
            for row, (name, digest) in enumerate(pairs):
                record = f"{_mixed_name(mix)}/{name}"
                added.extend(
                    _Chosen(record, digest, number, row, size, repeat)
                    for repeat in range(_times(plan.seed, mix, record))
                )
    return added


def _times(seed: int, mix: MixIn, record: str) -> int:
    whole = int(mix.factor)
    return whole + (_chance(seed, "mix", record) < (mix.factor - whole) * 2**64)


def _split(plan: AssemblyPlan, chosen: list[_Chosen]) -> tuple[list[_Chosen], list[_Chosen]]:
    """(train, validation) of the dataset's own records."""
    if not plan.validation:
        return chosen, []
    if plan.validation < 1:
        limit = plan.validation * 2**64
        held = {c.record for c in chosen if _chance(plan.seed, "validation", c.record) < limit}
    else:
        ranked = sorted(chosen, key=lambda c: (_chance(plan.seed, "validation", c.record), c.record))
        held = {c.record for c in ranked[: int(plan.validation)]}
    return [c for c in chosen if c.record not in held], [c for c in chosen if c.record in held]


def _ordered(plan: AssemblyPlan, records: list[_Chosen]) -> list[_Chosen]:
    if plan.order == "source":
        return records
    return sorted(records, key=lambda c: (_chance(plan.seed, f"order {c.repeat}", c.record), c.record, c.repeat))


def _version(splits: dict[str, list[_Chosen]]) -> str:
    """Digest of the output: record digests in final order, split by split."""
    digest = hashlib.sha256()
    for name, records in splits.items():
        digest.update(f"{name}:{len(records)}\n".encode())
        for record in records:
            digest.update(bytes.fromhex(record.digest))
    return digest.hexdigest()[:32]


def _rows(tables: _Tables, records: Sequence[_Chosen]) -> pa.Table:
    """The records' rows as one table of `SHARD_SCHEMA`, in their order; each table is read once."""
    by_table: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        by_table.setdefault(record.table, []).append(place)
    parts, places = [], []
    for number in sorted(by_table):
        rows = [records[place].row for place in by_table[number]]
        parts.append(tables.read(number).select(RECORD_SCHEMA.names).take(rows))
        places.extend(by_table[number])
    joined = pa.concat_tables(parts) if parts else RECORD_SCHEMA.empty_table()
    positions = {place: position for position, place in enumerate(places)}
    ordered = joined.take([positions[place] for place in range(len(records))])
    columns = [*ordered.columns, pa.array([r.record for r in records]), pa.array([r.digest for r in records])]
    return pa.Table.from_arrays(columns, schema=SHARD_SCHEMA)


def _parts(plan: AssemblyPlan, records: Sequence[_Chosen]) -> Iterator[Sequence[_Chosen]]:
    """The records shard by shard: of ``shard_records``, or fewer where these would hold more than ``shard_bytes``."""
    start = held = 0
    for place, record in enumerate(records):
        if place > start and (place - start >= plan.shard_records or held + record.size > plan.shard_bytes):
            yield records[start:place]
            start, held = place, 0
        held += record.size
    if start < len(records):
        yield records[start:]


def _shards(
    plan: AssemblyPlan,
    blobs: BlobStore,
    tables: _Tables,
    prefix: str,
    split: str,
    records: list[_Chosen],
    content: _Written,
) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        for number, part in enumerate(_parts(plan, records)):
            path = Path(folder) / f"{split}-{number:05d}.parquet"
            table = _rows(tables, part)
            content.take(table)
            pq.write_table(table, path, compression="zstd", row_group_size=5_000)
            sha256 = file_sha256(path)
            key = f"{prefix}/{path.stem}-{sha256[:16]}.parquet"
            blobs.put_file(key, path)
            yield {"key": key, "sha256": sha256, "bytes": path.stat().st_size, "records": len(part)}
            path.unlink()


def _mixed_name(mix: MixIn) -> str:
    return f"{mix.dataset}@{mix.version[:12]}"


def _origin(record: str) -> str:
    """``DATASET@VERSION`` of a mixed-in record, by its id; empty for the dataset's own."""
    first = record.partition("/")[0]
    return first if "@" in first else ""


def assemble(plan: AssemblyPlan, blobs: BlobStore) -> AssembledVersion:
    """Makes the version; the same plan gives the same objects, so that doing it twice is harmless.

    Raises:
        Fatal: an object is missing or not what the ledger names.
    """
    tables = _Tables(blobs, plan.segments)
    selection = _select(plan, tables)
    train, validation = _split(plan, selection.chosen)
    mixed = _mixed_in(plan, blobs, tables)
    splits = {"train": _ordered(plan, train + mixed), "validation": _ordered(plan, validation)}
    version = _version(splits)
    prefix, content = f"{plan.prefix}/versions/{version}", _Written()
    written = {
        name: {"records": len(records), "shards": list(_shards(plan, blobs, tables, prefix, name, records, content))}
        for name, records in splits.items()
    }
    listed = canonical_json(selection.duplicates[:_MAX_DUPLICATES_LISTED])
    result = AssembledVersion(
        version=version,
        manifest="",
        duplicates_object=_put_named(blobs, f"{prefix}/duplicates", listed),
        kept=selection.kept,
        chosen=len(selection.chosen),
        duplicates=len(selection.duplicates),
        mixed_in=len(mixed),
        written=len(splits["train"]) + len(splits["validation"]),
        train=len(splits["train"]),
        validation=len(splits["validation"]),
        row_formats=sorted(content.formats),
        with_tools=content.with_tools,
    )
    manifest = _manifest(plan, result, written, content.licences)
    return replace(result, manifest=_put_named(blobs, f"{prefix}/manifest", manifest))


def _put_named(blobs: BlobStore, name: str, data: bytes) -> str:
    """Stores JSON under a key with its digest. A version says what it holds, not how: another attempt, or a newer
    Parquet writer, makes the same version of other bytes, and objects never change."""
    key = f"{name}-{sha256_hex(data)[:16]}.json"
    blobs.put(key, data)
    return key


def _manifest(plan: AssemblyPlan, result: AssembledVersion, written: dict[str, Any], licences: _Licences) -> bytes:
    counts = {name: getattr(result, name) for name in ("kept", "chosen", "duplicates", "mixed_in", "written")}
    head = dict(plan.head)
    head["counts"] = {**head.get("counts", {}), **counts, "train": result.train, "validation": result.validation}
    return canonical_json(
        {
            **head,
            "schema": "dataset-manifest/1",
            "version": result.version,
            "splits": written,
            "row_formats": result.row_formats,
            "with_tools": result.with_tools,
            "segments": [{"key": s.key, "sha256": s.sha256, "source": s.source} for s in plan.segments],
            "licenses": _listed(licences),
            "mixed_in": [_mixed_version(mix, licences) for mix in plan.mix],
        }
    )


def _mixed_version(mix: MixIn, licences: _Licences) -> dict[str, Any]:
    own = Counter({key: records for key, records in licences.items() if key[0] == _mixed_name(mix)})
    return {
        "dataset": mix.dataset,
        "version": mix.version,
        "manifest": mix.manifest,
        "factor": mix.factor,
        "records": own.total(),
        "licenses": _listed(own),
    }


def _listed(licences: _Licences) -> list[dict[str, Any]]:
    """Licences of the records as written, the most frequent first; an empty one is of records that name none."""
    sums: Counter[str] = Counter()
    for (_, licence), records in licences.items():
        sums[licence] += records
    ranked = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return [{"license": licence, "records": records} for licence, records in ranked]


def main() -> int:
    """Standard input to standard output; an error goes to standard error as one line, its kind is the exit code."""
    plan = AssemblyPlan.from_json(sys.stdin.buffer.read())
    sys.stdout.buffer.write(assemble(plan, BlobStore.open(plan.storage_url)).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(run_service(main))
