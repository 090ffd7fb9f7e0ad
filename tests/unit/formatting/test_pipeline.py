"""Laws of the pipeline: every row has one fate, and it does not depend on the batch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.core.errors import Poison
from shortstack.declarations.recipe import parse_recipe
from shortstack.formatting import pipeline as pipeline_module
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.pipeline import Pipeline
from shortstack.formatting.steps.step import Outcome, Rejection
from shortstack.records.message import ROLES, Message
from shortstack.records.schema import (
    SEGMENT_SCHEMA,
    Record,
    content_digests,
    read_table,
    records_of,
    table_of,
    write_table,
)

RECIPE = parse_recipe(
    {
        "steps": [
            {"step": "normalise"},
            {"step": "empty"},
            {"step": "length", "min_answer": 2, "max_turn": 60},
            {"step": "refusal", "phrases": ["one\nmore", "is  it"]},
            {"step": "regex", "pattern": "secret", "reason": "secret"},
            {"step": "normalise", "unicode": "NFKC"},
        ]
    }
)
TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "I'm sorry, I can't help with that.",
            "a secret",
            "",
            " ",
            "Paris.\n",
            "one",
            "more",
            "is it one\nmore",
            "is",
            "ﬁne\r\n",
            "x" * 61,
        ]
    ),
)
MESSAGE = st.builds(Message, st.sampled_from(ROLES), TEXT, st.none(), st.booleans())
CONVERSATION = st.lists(MESSAGE, min_size=0, max_size=4).map(tuple)
CONVERSATIONS = st.lists(CONVERSATION, min_size=0, max_size=8)


def table(conversations: Sequence[tuple[Message, ...]]) -> pa.Table:
    return table_of(Record(seq, messages) for seq, messages in enumerate(conversations))


@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS, st.data())
def test_the_verdicts_are_the_same_however_records_are_batched(
    conversations: list[tuple[Message, ...]], data: st.DataObject
) -> None:
    whole = table(conversations)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(conversations)), max_size=4)) | {0, len(conversations)})
    pipeline = Pipeline(RECIPE)
    together = pipeline.run(whole).segment
    apart = [pipeline.run(whole.slice(first, last - first)).segment for first, last in itertools.pairwise(cuts)]
    assert pa.concat_tables([together.slice(0, 0), *apart]).to_pylist() == together.to_pylist()


@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS)
def test_every_row_that_goes_in_comes_out_with_one_fate(conversations: list[tuple[Message, ...]]) -> None:
    formatted = Pipeline(RECIPE).run(table(conversations))
    segment = read_table(write_table(formatted.segment), SEGMENT_SCHEMA)
    assert segment.column("seq").to_pylist() == list(range(len(conversations)))
    counts = Counter(segment.column("verdict").to_pylist())
    assert (counts["kept"], counts["rejected"], counts["failed"]) == (
        formatted.kept,
        formatted.rejected,
        formatted.failed,
    )
    assert len(conversations) == formatted.kept + formatted.rejected + formatted.failed
    assert sum(formatted.reasons.values()) == formatted.rejected + formatted.failed
    assert segment.column("digest").to_pylist() == [record.digest() for record in records_of(segment)]


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS)
def test_formatting_what_was_kept_again_changes_nothing(conversations: list[tuple[Message, ...]]) -> None:
    recipe = parse_recipe({"steps": [{"step": "normalise"}, {"step": "empty"}, {"step": "refusal"}]})
    first = [r for r in Pipeline(recipe).run(table(conversations)).segment.to_pylist() if r["verdict"] == "kept"]
    kept = [Record(seq, tuple(Message(**m) for m in row["messages"])) for seq, row in enumerate(first)]
    again = Pipeline(recipe).run(table_of(kept))
    assert again.kept == len(kept)
    assert [r["messages"] for r in again.segment.to_pylist()] == [row["messages"] for row in first]


def test_verbatim_keeps_every_byte() -> None:
    given_table = table([(Message("user", " a\r\n"), Message("assistant", "I can't help with that.", train=False))])
    segment = Pipeline(parse_recipe("verbatim")).run(given_table).segment
    assert segment.column("messages").to_pylist() == given_table.column("messages").to_pylist()
    assert segment.column("digest").to_pylist() == content_digests(given_table)


@dataclass
class Fragile:
    """A step whose library cannot take one word."""

    def __call__(self, batch: Conversations) -> Outcome:
        if any("bomb" in content for content in batch.contents):
            raise ValueError("cannot take bomb")
        rejected = {row: Rejection("short") for row in range(len(batch)) if len(batch.contents[batch.offsets[row]]) < 3}
        return Outcome(rejected, [content.upper() for content in batch.contents])


def test_a_record_that_breaks_a_step_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "build_step", lambda _settings: Fragile())
    recipe = parse_recipe({"steps": [{"step": "empty"}]})
    conversations = [(Message("user", text), Message("assistant", "x")) for text in ("good", "a bomb", "no")]
    formatted = Pipeline(recipe).run(table(conversations))
    rows = formatted.segment.to_pylist()
    assert [row["verdict"] for row in rows] == ["kept", "failed", "rejected"]
    assert (rows[1]["reason"], rows[1]["evidence"]) == ("ValueError", "cannot take bomb")
    assert [row["messages"][0]["content"] for row in rows] == ["GOOD", "a bomb", "NO"]


def test_a_role_that_is_none_poisons_the_batch() -> None:
    with pytest.raises(Poison, match='role is "asistant"'):
        Pipeline(RECIPE).run(table([(Message("asistant", "x"),)]))
