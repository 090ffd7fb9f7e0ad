"""record/1: what goes in comes out, two equal records have one digest, and damage is named."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.core.errors import Invalid, Poison
from shortstack.records.message import ROLES, Message
from shortstack.records.schema import (
    RECORD_SCHEMA,
    SEGMENT_SCHEMA,
    Record,
    content_digests,
    read_table,
    records_of,
    table_of,
    write_table,
)

TEXT = st.text(max_size=20)
MAYBE = st.none() | TEXT
MESSAGES = st.builds(
    Message, role=st.sampled_from(ROLES), content=TEXT, name=MAYBE, train=st.booleans(), tool_calls=MAYBE
)
RECORDS = st.builds(
    Record,
    seq=st.integers(0, 2**62),
    messages=st.lists(MESSAGES, max_size=4).map(tuple),
    tools=MAYBE,
    parents=st.lists(st.integers(0, 2**62), max_size=3).map(tuple),
    prompt_format=MAYBE,
    category=MAYBE,
    tags=st.lists(TEXT, max_size=3).map(tuple),
    language=MAYBE,
    source=MAYBE,
    license=MAYBE,
    metadata=st.dictionaries(TEXT, st.integers().filter(lambda n: abs(n) < 2**53) | TEXT | st.none(), max_size=3),
    scores=st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(records=st.lists(RECORDS, max_size=5))
def test_records_survive_the_wire(records: list[Record]) -> None:
    assert records_of(read_table(write_table(table_of(records)))) == records


@settings(max_examples=40, deadline=None)
@given(records=st.lists(RECORDS, max_size=5), data=st.data())
def test_digests_of_columns_are_those_of_records_wherever_the_table_is_cut(
    records: list[Record], data: st.DataObject
) -> None:
    table = table_of(records)
    start = data.draw(st.integers(0, len(records)))
    cut = pa.concat_tables([table.slice(0, start), table.slice(start)])
    assert content_digests(cut) == [record.digest() for record in records]
    assert content_digests(table.slice(start)) == [record.digest() for record in records[start:]]


@settings(max_examples=40, deadline=None)
@given(record=RECORDS, other=RECORDS)
def test_only_content_makes_a_digest(record: Record, other: Record) -> None:
    def content(one: Record) -> tuple[object, ...]:
        return one.messages, one.tools, one.prompt_format, one.license

    assert (record.digest() == other.digest()) == (content(record) == content(other))


def test_a_segment_is_read_as_records_with_verdicts() -> None:
    table = read_table(write_table(table_of([Record(0, (Message("user", "hi"),))])), SEGMENT_SCHEMA)
    assert table.schema == SEGMENT_SCHEMA
    assert records_of(table) == [Record(0, (Message("user", "hi"),))]


def test_a_column_that_is_newer_than_the_writer_is_null() -> None:
    table = table_of([Record(0, (Message("user", "hi"),), tags=("t",))]).drop_columns(["tags"])
    (record,) = records_of(read_table(write_table(table)))
    assert record.tags == ()


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200))
def test_junk_is_poison(data: bytes) -> None:
    with pytest.raises(Poison):
        read_table(data)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 1000))
def test_a_cut_off_stream_is_poison_or_whole(cut: int) -> None:
    whole = write_table(table_of([Record(0, (Message("user", "hi" * 500),))]))
    cut_off = whole[: max(0, len(whole) - cut)]
    if whole[len(cut_off) :].strip(b"\x00\xff"):  # not just the mark of the end, which Arrow lets be absent
        with pytest.raises(Poison):
            read_table(cut_off)


def test_another_schema_is_named() -> None:
    other = pa.table({"x": [1]}, schema=pa.schema([pa.field("x", pa.int64())], metadata={"schema": "other/1"}))
    with pytest.raises(Poison, match="other/1"):
        read_table(write_table(other))


def test_a_column_of_another_type_is_poison() -> None:
    wrong = pa.table({"seq": ["a"]}, schema=pa.schema([pa.field("seq", pa.string())], metadata=RECORD_SCHEMA.metadata))
    with pytest.raises(Poison, match="record/1"):
        read_table(write_table(wrong))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("text", "not str"),
        ({"role": "asistant", "content": "x"}, 'Did you mean "assistant"'),
        ({"role": "user", "content": 3}, "content is int"),
        ({"role": "user"}, "content is NoneType"),
    ],
)
def test_a_bad_message_is_named_with_its_place(value: object, said: str) -> None:
    with pytest.raises(Invalid, match=said) as raised:
        Message.parse(value, where="line 3")
    assert str(raised.value).startswith("line 3: ")


def test_an_answer_of_calls_alone_has_no_text() -> None:
    assert Message.parse({"role": "assistant", "content": None, "tool_calls": "[]"}, where="x").content == ""
