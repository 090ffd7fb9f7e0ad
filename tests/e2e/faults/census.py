"""Where every record of a dataset went, read from the object store: the other half of the ledger test."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tests.e2e.faults.faulty import FaultyStack, Ledger

from shortstack.core.digest import sha256_hex
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.records.schema import SEGMENT_SCHEMA, read_table
from shortstack.storage.blobs import BlobStore

__all__ = ["Census", "assert_whole"]

_ID = re.compile(r"id (\d+)")


@dataclass(frozen=True, slots=True)
class Census:
    """Places (source, seq) of one publication's records by fate, and the ids that their questions carry.

    Attributes:
        verdicts: kept, rejected or failed, of every row of every segment.
        chosen: what the shards hold, in any order, doubles included.
        duplicates: what assembly left out.
        ids: the number after the word "id" in a record's question, by place.
    """

    verdicts: dict[tuple[int, int], str]
    chosen: list[tuple[int, int]]
    duplicates: list[tuple[int, int]]
    ids: dict[tuple[int, int], int]

    @classmethod
    def take(cls, stack: FaultyStack, ledger: Ledger, snapshot: ds.DatasetSnapshot) -> Census:
        """Reads the segments that the ledger names and the shards that the manifest names; checks each digest."""
        blobs = BlobStore.open(f"file://{stack.settings.root / 'blobs'}")
        verdicts: dict[tuple[int, int], str] = {}
        ids: dict[tuple[int, int], int] = {}
        for (source, _), entry in ledger.first.items():
            data = blobs.get(entry.segment)
            assert sha256_hex(data) == entry.sha256
            rows = read_table(data, SEGMENT_SCHEMA).select(["seq", "verdict", "messages"]).to_pylist()
            assert len(rows) == entry.count
            for row in rows:
                place = (source, row["seq"])
                assert place not in verdicts, f"{place} stands in two segments"
                verdicts[place] = row["verdict"]
                found = _ID.search(row["messages"][0]["content"])
                if found:
                    ids[place] = int(found[1])
        manifest = orjson.loads(blobs.get(snapshot.manifest))
        chosen = []
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                data = blobs.get(shard["key"])
                assert sha256_hex(data) == shard["sha256"]
                chosen += [_place(record) for record in pq.read_table(pa.BufferReader(data))["record"].to_pylist()]
        duplicates = [_place(record) for record, _ in json.loads(blobs.get(snapshot.duplicates))]
        return cls(verdicts, chosen, duplicates, ids)


def _place(record: str) -> tuple[int, int]:
    source, seq = record.split("/")
    return int(source), int(seq)


def assert_whole(stack: FaultyStack, name: str) -> tuple[ds.DatasetSnapshot, Census]:
    """One publication, one attempt, a ledger that tiles, every record with one fate, one version, announced once."""
    snapshot = stack.ended_dataset(name)
    assert snapshot.state == ds.DATASET_STATE_READY, snapshot
    publication = snapshot.publication.publication
    ledger = stack.ledger(name)
    assert set(ledger.accepted) == {(publication, 1)}
    assert not ledger.repeated
    assert ledger.gaps() == []
    assert not ledger.others, "a batch that came twice came with other content"
    census = Census.take(stack, ledger, snapshot)
    fates = Counter(census.verdicts.values())
    counts = snapshot.counts
    assert (counts.kept, counts.rejected, counts.failed) == (fates["kept"], fates["rejected"], fates["failed"])
    assert counts.records == len(census.verdicts)
    assert counts.items == counts.malformed + sum(told.used for told in ledger.announced.values())
    kept = {place for place, verdict in census.verdicts.items() if verdict == "kept"}
    assert len(census.chosen) == len(set(census.chosen)) == counts.chosen == counts.written
    assert len(census.duplicates) == len(set(census.duplicates)) == counts.duplicates
    assert not set(census.chosen) & set(census.duplicates)
    assert set(census.chosen) | set(census.duplicates) == kept
    assert stack.notices("datasets.ready", publication) == 1
    versions = stack.settings.root / "blobs" / "publications" / "default" / publication / "versions"
    assert [folder.name for folder in versions.iterdir()] == [snapshot.version]
    return snapshot, census
