"""Every record that is not in the version is listed once, with file, place and reason."""

from __future__ import annotations

import orjson
import zstandard
from tests.unit.assembly.ledgers import publication, segment

from shortstack.assembly.assemble import assemble
from shortstack.assembly.plan import AssemblyPlan, Segment
from shortstack.assembly.rejected import rejected_records
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.storage.blobs import MemoryBlobStore


def test_malformed_refused_and_duplicate_records_are_named() -> None:
    blobs = MemoryBlobStore()
    made = publication(sources=2)
    entries = [segment(blobs, made, 0, 0, ["a", ""]), segment(blobs, made, 1, 0, ["a"])]
    plan = AssemblyPlan(
        storage_url="memory://",
        prefix="publications/default/pub-faq",
        segments=[Segment(e.segment, e.sha256, e.source) for e in entries],
    )
    snapshot = DatasetSnapshot(publication=made, duplicates=assemble(plan, blobs).duplicates_object)
    malformed = "publications/default/pub-faq/rejected/1.1.jsonl.zst"
    line = {"file": "faq-1.jsonl", "place": "line 4182", "reason": "not JSON", "raw": "{"}
    blobs.put(malformed, zstandard.ZstdCompressor().compress(orjson.dumps(line) + b"\n"))

    found = list(rejected_records(blobs, snapshot, [(e.segment, e.source) for e in entries], [malformed]))

    assert [(r.fate, r.source, r.place, r.reason) for r in found] == [
        ("malformed", 1, "faq-1.jsonl line 4182", "not JSON"),
        ("rejected", 0, "faq-0.jsonl record 1", "empty_answer"),
        ("duplicate", 1, "faq-1.jsonl record 0", "duplicate"),
    ]
    assert found[2].evidence == "repeats faq-0.jsonl record 0"
