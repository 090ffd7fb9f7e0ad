from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.records.message import Message
from shortstack.records.schema import Record, table_of
from shortstack.training.trainer.rows import Conversation, TrainingRow, TrainingRows, hold_back, read_records


@dataclass(frozen=True)
class Encoded:
    ids: Sequence[int]
    trained: Sequence[bool]


class LetterEncoder:
    """One token a letter; answers are trained on; a shouted conversation cannot be rendered."""

    def rows(self, messages: Sequence[Message], *, train_on_inputs: bool = False) -> list[Encoded]:
        if any(message.content.isupper() for message in messages):
            raise Invalid("no shouting", where="messages[0]")
        ids = [ord(letter) for message in messages for letter in message.content]
        flags = [
            train_on_inputs or (message.role == "assistant" and message.train)
            for message in messages
            for _ in message.content
        ]
        return [Encoded(ids, flags)] if any(message.role == "assistant" for message in messages) else []

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [ord(letter) for message in messages for letter in message.content]


def conversation(user: str, answer: str | None, *, train: bool = True) -> Conversation:
    turns = [Message("user", user)] + ([] if answer is None else [Message("assistant", answer, train=train)])
    return Conversation(f"row of {user}", tuple(turns))


def build(
    *records: Conversation, sequence_len: int = 100, drop_long: bool = False, inputs: bool = False, keep: bool = True
) -> TrainingRows:
    encoders = dict.fromkeys((None, "job's", "other"), LetterEncoder())
    return TrainingRows.build(
        iter(records),
        encoders,
        prompt_format="job's",
        sequence_len=sequence_len,
        drop_long=drop_long,
        train_on_inputs=inputs,
        keep=keep,
    )


def test_only_answers_carry_loss() -> None:
    built = build(conversation("ab", "cd"))
    assert built.rows == [TrainingRow([97, 98, 99, 100], [-100, -100, 99, 100])]
    assert (built.report.tokens, built.report.trained_tokens) == (4, 2)


def test_rows_without_a_trained_token_are_rejected_with_a_reason() -> None:
    built = build(
        conversation("ab", None), conversation("ab", "cd", train=False), conversation("HE", "y"), conversation("a", "b")
    )
    assert built.report.rejected == {"no_trained_token": 2, "not_renderable": 1}
    assert len(built.rows) == 1
    assert built.report.examples[2].detail == "messages[0]: no shouting"
    assert built.report.as_json()["rejected"] == {"no_trained_token": 2, "not_renderable": 1}


def test_what_is_asked_of_the_model_are_the_prompts_of_the_format_it_is_served_with() -> None:
    """Datasets stored by earlier versions carry the publication's format in every row."""
    named = [replace(conversation(name, "x"), prompt_format=name) for name in ("job's", "other")]
    built = build(conversation("ab", "x"), *named)
    assert len(built.rows) == 3
    assert [prompt[0].content for prompt in built.prompts] == ["ab", "job's"]


def test_a_record_that_declares_tools_is_not_trained_without_them() -> None:
    built = build(replace(conversation("ab", "cd"), tools='[{"type":"function"}]'), conversation("a", "b"))
    assert (len(built.rows), built.report.rejected) == (1, {"not_renderable": 1})
    assert "tools" in built.report.examples[0].detail


def test_a_long_row_is_cut_or_dropped_and_counted() -> None:
    cut = build(conversation("abc", "defg"), sequence_len=5)
    assert (cut.report.truncated, len(cut.rows[0].input_ids)) == (1, 5)
    dropped = build(conversation("abc", "defg"), conversation("a", "b"), sequence_len=5, drop_long=True)
    assert (dropped.report.rejected, len(dropped.rows)) == ({"too_long": 1}, 1)


@given(st.lists(st.tuples(st.text("abc", max_size=6), st.text("abcX", max_size=6)), max_size=20), st.integers(2, 8))
def test_rows_that_are_only_counted_are_counted_alike_and_let_go(pairs: list[tuple[str, str]], length: int) -> None:
    records = [conversation(user, answer) for user, answer in pairs]
    kept, counted = build(*records, sequence_len=length), build(*records, sequence_len=length, keep=False)
    assert (counted.rows, counted.prompts) == ([], [])
    assert counted.report == kept.report
    assert list(counted.lengths) == [len(row.input_ids) for row in kept.rows]
    if len(kept.rows) > 1:
        rows, lengths = hold_back(kept.rows, 1, 42)[0], hold_back(counted.lengths, 1, 42)[0]
        assert lengths == [len(row.input_ids) for row in rows]


def test_a_row_whose_answer_was_cut_away_is_rejected() -> None:
    built = build(conversation("abcdef", "g"), sequence_len=4)
    assert built.rows == []
    assert built.report.rejected == {"no_trained_token": 1}


def test_the_first_token_alone_cannot_be_trained() -> None:
    assert build(conversation("", "x")).rows == []


@given(st.lists(st.tuples(st.text("abc", max_size=6), st.text("abcX", max_size=6)), max_size=20), st.integers(2, 8))
def test_every_record_is_trained_or_rejected(pairs: list[tuple[str, str]], length: int) -> None:
    built = build(*(conversation(user, answer) for user, answer in pairs), sequence_len=length)
    report = built.report
    assert report.records == len(pairs) == report.rows + sum(report.rejected.values())
    for row in built.rows:
        assert len(row.input_ids) == len(row.labels) <= length
        assert any(label != -100 for label in row.labels[1:])


def test_records_are_read_in_order_with_their_place(tmp_path: Path) -> None:
    turns = (Message("user", "q"), Message("assistant", "a", train=False))
    for name in ("b", "a"):
        records = [Record(0, turns, prompt_format="chatml"), Record(1, turns, tools="[{}]")]
        pq.write_table(table_of(records), tmp_path / f"{name}.parquet")
    read = list(read_records([tmp_path / "b.parquet", tmp_path / "a.parquet"]))
    assert [record.place for record in read] == [f"{name}.parquet row {row}" for name in "ba" for row in (0, 1)]
    assert read[0] == Conversation("b.parquet row 0", turns, "chatml")
    assert read[1] == Conversation("b.parquet row 1", turns, tools="[{}]")


def test_files_that_hold_no_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(Invalid, match="not a readable Parquet file"):
        list(read_records([tmp_path / "x.parquet"]))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(Invalid, match="no messages column"):
        list(read_records([tmp_path / "y.parquet"]))


def test_rows_are_held_back_by_share_or_number_and_by_seed_alone() -> None:
    rows = [TrainingRow([n, n], [-100, n]) for n in range(20)]
    train, held = hold_back(rows, 0.1, 42)
    assert (len(train), len(held)) == (18, 2)
    assert hold_back(rows, 2, 42) == (train, held)
    assert sorted(row.input_ids for row in train + held) == [row.input_ids for row in rows]
    with pytest.raises(Invalid, match="takes all 20 rows"):
        hold_back(rows, 20, 42)
