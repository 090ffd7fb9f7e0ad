"""Versions: same records, same version; laws of the counts; where each record went."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.assembly.ledgers import publication, segment

from shortstack.assembly.assemble import assemble
from shortstack.assembly.plan import AssemblyPlan, MixIn, Segment
from shortstack.records.schema import records_of
from shortstack.storage.blobs import BlobStore, MemoryBlobStore

Answers = st.lists(st.sampled_from(["a", "b", "c", "d", "e", ""]), min_size=1, max_size=30)


def plan(
    blobs: BlobStore,
    batches: list[tuple[int, int, list[str]]],
    columns: dict[str, str] | None = None,
    licences: Sequence[str] = (),
    **settings: object,
) -> AssemblyPlan:
    entries = [
        segment(blobs, publication(), source, first, answers, licences, **(columns or {}))
        for source, first, answers in batches
    ]
    return AssemblyPlan(
        storage_url="memory://",
        prefix="publications/default/pub-faq",
        segments=[Segment(e.segment, e.sha256, e.source) for e in entries],
        **settings,
    )


def answers_of(blobs: BlobStore, manifest: str, split: str = "train") -> list[str]:
    shards = orjson.loads(blobs.get(manifest))["splits"][split]["shards"]
    tables = [pq.read_table(blobs.stream(shard["key"])) for shard in shards]
    return [record.messages[-1].content for table in tables for record in records_of(table)]


@settings(max_examples=25, deadline=None)
@given(answers=Answers, cut=st.integers(1, 30))
def test_the_version_does_not_depend_on_how_records_were_batched(answers: list[str], cut: int) -> None:
    whole, parts = MemoryBlobStore(), MemoryBlobStore()
    one = assemble(plan(whole, [(0, 0, answers)]), whole)
    batches = [(0, first, answers[first : first + cut]) for first in range(0, len(answers), cut)]
    several = assemble(plan(parts, batches), parts)

    assert one.version == several.version
    assert answers_of(whole, one.manifest) == answers_of(parts, several.manifest)


@settings(max_examples=25, deadline=None)
@given(answers=Answers, validation=st.sampled_from([0.0, 0.3, 2.0]))
def test_kept_is_chosen_and_duplicates_and_splits_are_disjoint(answers: list[str], validation: float) -> None:
    blobs = MemoryBlobStore()
    version = assemble(plan(blobs, [(0, 0, answers)], validation=validation), blobs)

    assert version.kept == version.chosen + version.duplicates
    assert version.written == version.chosen == version.train + version.validation
    train = answers_of(blobs, version.manifest, "train")
    held = answers_of(blobs, version.manifest, "validation")
    assert sorted(train + held) == sorted(set(answers) - {""})


def test_doing_it_twice_writes_the_same_objects() -> None:
    blobs = MemoryBlobStore()
    made = plan(blobs, [(0, 0, ["a", "b", "a"]), (1, 0, ["c"])])

    assert assemble(made, blobs) == assemble(made, blobs)


def test_the_first_of_equal_records_stays_and_the_others_are_named() -> None:
    blobs = MemoryBlobStore()
    version = assemble(plan(blobs, [(0, 0, ["a", "b"]), (1, 0, ["b", "a"])]), blobs)

    assert orjson.loads(blobs.get(version.duplicates_object)) == [["1/0", "0/1"], ["1/1", "0/0"]]


def test_verbatim_keeps_order_and_duplicates() -> None:
    blobs = MemoryBlobStore()
    version = assemble(plan(blobs, [(0, 0, ["b", "a", "b"])], deduplicate="none", order="source"), blobs)

    assert answers_of(blobs, version.manifest) == ["b", "a", "b"]


def test_a_seed_changes_the_order_and_nothing_else() -> None:
    blobs, letters = MemoryBlobStore(), [chr(97 + n) for n in range(26)]
    one = assemble(plan(blobs, [(0, 0, letters)], seed=1), blobs)
    two = assemble(plan(blobs, [(0, 0, letters)], seed=2), blobs)

    assert answers_of(blobs, one.manifest) != answers_of(blobs, two.manifest)
    assert sorted(answers_of(blobs, one.manifest)) == sorted(answers_of(blobs, two.manifest))


def test_mixing_in_by_factor() -> None:
    blobs = MemoryBlobStore()
    other = assemble(plan(blobs, [(0, 0, ["x", "y"])]), blobs)
    mixed = assemble(
        plan(blobs, [(0, 0, ["a"])], mix=[MixIn("other", other.version, other.manifest, 3.0)], seed=7), blobs
    )

    assert sorted(answers_of(blobs, mixed.manifest)) == ["a", *"xxx", *"yyy"]
    assert (mixed.chosen, mixed.mixed_in, mixed.written) == (1, 6, 7)


def test_the_manifest_names_the_licence_of_every_record_and_of_what_is_mixed_in() -> None:
    """What the publisher typed is one field; what the records say is another, and travels with them."""
    blobs = MemoryBlobStore()
    a = assemble(plan(blobs, [(0, 0, ["x", "y"])], licences=["CC-BY-NC-4.0", "MIT"]), blobs)
    b = assemble(plan(blobs, [(0, 0, ["b"])], mix=[MixIn("a", a.version, a.manifest, 2.0)]), blobs)
    head = {"license": "Apache-2.0"}
    c = assemble(
        plan(blobs, [(0, 0, ["c"])], mix=[MixIn("b", b.version, b.manifest, 1.0)], licences=["Apache-2.0"], head=head),
        blobs,
    )

    manifest = orjson.loads(blobs.get(c.manifest))
    assert manifest["license"] == "Apache-2.0"
    assert {entry["license"]: entry["records"] for entry in manifest["licenses"]} == {
        "CC-BY-NC-4.0": 2, "MIT": 2, "Apache-2.0": 1, "": 1,
    }  # fmt: skip
    (mixed,) = manifest["mixed_in"]
    assert (mixed["dataset"], mixed["manifest"], mixed["records"]) == ("b", b.manifest, 5)
    assert {entry["license"]: entry["records"] for entry in mixed["licenses"]} == {"CC-BY-NC-4.0": 2, "MIT": 2, "": 1}


def records_in(blobs: BlobStore, manifest: str) -> list[tuple[str | None, str]]:
    """Own format and digest of the training records."""
    shards = orjson.loads(blobs.get(manifest))["splits"]["train"]["shards"]
    tables = [pq.read_table(blobs.stream(shard["key"])) for shard in shards]
    return [pair for t in tables for pair in zip(t["prompt_format"].to_pylist(), t["digest"].to_pylist(), strict=True)]


def test_a_version_says_which_formats_its_records_name_and_how_many_declare_tools() -> None:
    blobs = MemoryBlobStore()
    tools = '[{"function":{"name":"w"},"type":"function"}]'
    version = assemble(plan(blobs, [(0, 0, ["a", "b"])], {"prompt_format": "human_bot", "tools": tools}), blobs)
    plain = assemble(plan(blobs, [(0, 0, ["a", "b"])]), blobs)

    assert (list(version.row_formats), version.with_tools) == (["human_bot"], 2)
    assert (list(plain.row_formats), plain.with_tools) == ([], 0)
    assert orjson.loads(blobs.get(version.manifest))["row_formats"] == ["human_bot"]


def test_a_format_that_a_row_names_itself_goes_along_when_it_is_mixed_in() -> None:
    blobs = MemoryBlobStore()
    made = plan(blobs, [(0, 0, ["x"])], {"prompt_format": "human_bot"}, head={"prompt_format": "human_bot"})
    other = assemble(made, blobs)
    mixed = assemble(plan(blobs, [(0, 0, ["a"])], mix=[MixIn("other", other.version, other.manifest, 1.0)]), blobs)

    assert list(mixed.row_formats) == ["human_bot"]


def test_a_format_that_older_rows_have_from_their_publication_stays_behind_when_they_are_mixed_in() -> None:
    """Before manifests named the rows' formats, ingestion wrote the publication's into every row."""
    blobs = MemoryBlobStore()
    made = plan(blobs, [(0, 0, ["x"])], {"prompt_format": "human_bot"}, head={"prompt_format": "human_bot"})
    stored = orjson.loads(blobs.get(assemble(made, blobs).manifest))
    del stored["row_formats"]
    blobs.put("older.json", orjson.dumps(stored))
    mixed = assemble(plan(blobs, [(0, 0, ["a"])], mix=[MixIn("other", stored["version"], "older.json", 1.0)]), blobs)
    bare = assemble(plan(blobs, [(0, 0, ["x", "a"])]), blobs)

    assert list(mixed.row_formats) == []
    assert sorted(records_in(blobs, mixed.manifest)) == sorted(records_in(blobs, bare.manifest))


def test_another_attempt_makes_the_same_version_beside_the_first() -> None:
    """Objects never change, and the second manifest is another than the first."""
    blobs = MemoryBlobStore()
    first = assemble(plan(blobs, [(0, 0, ["a", "b"])], head={"attempt": 1}), blobs)
    second = assemble(plan(blobs, [(0, 0, ["a", "b"])], head={"attempt": 2}), blobs)

    assert first.version == second.version
    assert [orjson.loads(blobs.get(v.manifest))["attempt"] for v in (first, second)] == [1, 2]


def test_a_shard_is_bounded_in_bytes_too_and_the_version_does_not_notice() -> None:
    """Arrow's text columns end at 2 GiB, and a record may have a megabyte."""
    answers = [letter * 50_000 for letter in "abcdef"]
    blobs = MemoryBlobStore()
    batches = [(0, place, [answer]) for place, answer in enumerate(answers)]
    one = assemble(plan(blobs, batches), blobs)
    cut = assemble(plan(blobs, batches, shard_bytes=250_000), blobs)

    assert one.version == cut.version
    assert answers_of(blobs, one.manifest) == answers_of(blobs, cut.manifest)
    shards = orjson.loads(blobs.get(cut.manifest))["splits"]["train"]["shards"]
    assert len(shards) == 3
    assert sum(shard["records"] for shard in shards) == 6
