"""Compiling: items = used + rejected, records tile, and the same file gives the same batches."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.ingestion.compiling import compile as compile_module
from shortstack.ingestion.compiling.compile import CompileJob, Cut, Done, Opened, compile_source
from shortstack.ingestion.compiling.process import CompileOrder, RawBatch, SourceDone, SourceOpened, compiling
from shortstack.ingestion.reading.items import Limits, Malformed, Unreadable
from shortstack.records.schema import MAX_RECORD_BYTES, read_table, records_of, write_table

LINE = st.one_of(
    st.builds(lambda q, a: orjson.dumps({"prompt": q, "completion": a}), st.text(max_size=30), st.text(max_size=80)),
    st.sampled_from([b"{broken", b"[1]", b"7", b'{"prompt": ["x"], "completion": ""}', b'"\xff"', b'{"text": "x"}']),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINE, max_size=60), st.integers(100, 2000))
def test_every_line_is_used_or_rejected_and_batches_tile(lines: list[bytes], batch_bytes: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "BATCH_BYTES", batch_bytes)
        path = Path(folder) / "lines.jsonl"
        path.write_bytes(b"\n".join(lines))
        job = CompileJob("lines.jsonl", family="prompt_completion")
        events = list(compile_source(path, job))
        again = [write_table(event.table) for event in compile_source(path, job) if isinstance(event, Cut)]
    cuts = [event for event in events if isinstance(event, Cut)]
    done = events[-1]
    assert isinstance(done, Done)
    assert done.items == len(lines) == done.used + done.rejected
    assert done.rejected == sum(isinstance(event, Malformed) for event in events)
    seqs = [record.seq for cut in cuts for record in records_of(cut.table)]
    assert seqs == list(range(done.records))
    assert [(cut.first, cut.count) for cut in cuts] == [
        (cut.table.column("seq")[0].as_py(), len(cut.table)) for cut in cuts
    ]
    for cut in cuts:
        sizes = [len(orjson.dumps(record.row())) for record in records_of(cut.table)]
        assert len(sizes) == 1 or sum(sizes) <= batch_bytes
    assert again == [write_table(cut.table) for cut in cuts]


def test_a_record_above_one_mebibyte_is_rejected_by_size(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    items = [{"prompt": "q", "completion": "x" * MAX_RECORD_BYTES}, {"prompt": "q", "completion": "a"}]
    path.write_bytes(b"\n".join(orjson.dumps(item) for item in items))
    events = list(compile_source(path, CompileJob("big.jsonl")))
    (bad,) = [event for event in events if isinstance(event, Malformed)]
    assert bad.place == "line 1"
    assert str(MAX_RECORD_BYTES) in bad.reason
    assert events[0] == Opened("jsonl", "prompt_completion")


def test_text_that_is_no_unicode_is_rejected_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("prompt,completion\nq,caf\xe9\nq,fine\n".encode("latin-1"))
    events = list(compile_source(path, CompileJob("latin.csv")))
    (bad,) = [event for event in events if isinstance(event, Malformed)]
    assert "not valid Unicode" in bad.reason
    assert isinstance(events[-1], Done)
    assert (events[-1].used, events[-1].rejected) == (1, 1)


def test_a_file_of_nothing_but_garbage_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "garbage.jsonl"
    path.write_bytes(b"a\nb\nc\n")
    done = list(compile_source(path, CompileJob("garbage.jsonl")))[-1]
    assert done == Done(items=3, used=0, rejected=3, records=0, batches=0)


def test_a_strict_recipe_stops_at_the_first_malformed_line(tmp_path: Path) -> None:
    path = tmp_path / "strict.jsonl"
    path.write_bytes(b'{"prompt": "q", "completion": "a"}\n{"prompt"\n')
    with pytest.raises(Unreadable) as stopped:
        list(compile_source(path, CompileJob("strict.jsonl", fail_on_malformed=True)))
    assert (stopped.value.code, stopped.value.where) == ("invalid_training_file", "strict.jsonl line 2")


def test_the_child_gives_what_compiling_here_gives(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [orjson.dumps({"prompt": f"q{number}", "completion": "a" * 300}) for number in range(3000)]
    path.write_bytes(b"\n".join([*lines, b"{broken"]))
    job = CompileJob("pairs.jsonl", license="MIT")
    here = [write_table(event.table) for event in compile_source(path, job) if isinstance(event, Cut)]
    with compiling([CompileOrder(path, tmp_path / "rejected", job)], memory_bytes=1024**3) as events:
        there = list(events)
    assert isinstance(there[0], SourceOpened)
    assert [event.data for event in there if isinstance(event, RawBatch)] == here
    assert len(here) > 1
    end = there[-1]
    assert isinstance(end, SourceDone)
    assert (end.done.items, end.done.rejected) == (3001, 1)
    assert end.samples[0].startswith("pairs.jsonl line 3001: not JSON")
    (record, *_) = records_of(read_table(here[0]))
    assert (record.license, record.source) == ("MIT", "pairs.jsonl")


def test_a_reader_that_takes_too_much_memory_is_a_reasoned_failure(tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    # Eight million empty lists: 24 MB of text, half a gigabyte as Python objects.
    path.write_bytes(b"[[" + b"[]," * 8_000_000 + b"[]]]")
    job = CompileJob("wide.json", "json", "messages", limits=Limits(item_bytes=1024**3))
    order = CompileOrder(path, tmp_path / "rejected", job)
    with (
        compiling([order], memory_bytes=384 * 1024**2) as events,
        pytest.raises(Unreadable, match=r"wide\.json") as failed,
    ):
        list(events)
    assert failed.value.code == "source_too_large"


def test_a_reader_that_dies_is_a_reasoned_failure(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "q", "completion": "a"}\n')
    order = CompileOrder(path, tmp_path / "absent" / "rejected", CompileJob("pairs.jsonl"))
    with (
        compiling([order], memory_bytes=1024**3) as events,
        pytest.raises(Unreadable, match="the process that read it died") as failed,
    ):
        list(events)
    assert (failed.value.code, failed.value.where) == ("reader_died", "pairs.jsonl")


@pytest.mark.parametrize(
    ("broken", "family"), [(60, "prompt_completion"), (9_000, "prompt_completion"), (10_001, "unknown")]
)
def test_broken_lines_at_the_top_do_not_hide_what_the_others_are(tmp_path: Path, broken: int, family: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"# note\n" * broken + b'{"prompt": "q", "completion": "a"}\n' * 100)
    opened, *_, done = compile_source(path, CompileJob("notes.jsonl"))
    used = 0 if family == "unknown" else 100
    assert opened == Opened("jsonl", family)
    assert isinstance(done, Done)
    assert (done.used, done.rejected) == (used, broken + 100 - used)


def malformed_of(path: Path) -> tuple[Malformed, int]:
    """The one malformed item of a file of three, and how many were used."""
    events = list(compile_source(path, CompileJob(path.name)))
    (bad,) = [event for event in events if isinstance(event, Malformed)]
    assert isinstance(events[-1], Done)
    return bad, events[-1].used


@pytest.mark.parametrize(
    ("number", "reason"),
    [("1" * 5000, "integer of more than 4300 digits"), ("-" + "1" * 5000, "4300 digits"), ("1" * 30, "64-bit")],
)
def test_a_number_that_cannot_be_kept_costs_its_item_alone(tmp_path: Path, number: str, reason: str) -> None:
    path = tmp_path / "pairs.json"
    good = '{"prompt": "q", "completion": "a"}'
    path.write_text(f'[{good},\n{{"prompt": "q", "completion": {number}}},\n{good}]', encoding="utf-8")
    bad, used = malformed_of(path)
    assert (bad.place, used) == ("line 2 item 2", 2)
    assert reason in bad.reason
    assert "Unicode" not in bad.reason
    assert number[:100] in bad.raw


def test_a_date_that_python_has_not_costs_its_row_alone(tmp_path: Path) -> None:
    dates = pa.array([0, 253402300800000, 1], type=pa.timestamp("ms"))
    pq.write_table(pa.table({"prompt": ["q"] * 3, "completion": ["a"] * 3, "at": dates}), tmp_path / "dates.parquet")
    bad, used = malformed_of(tmp_path / "dates.parquet")
    assert (bad.place, used) == ("row 2", 2)
    assert 'column "at"' in bad.reason


def rows_with_formats(path: Path, *formats: str | None) -> Path:
    rows = [{"instruction": "hi", "output": "yo", **({"prompt_type": name} if name else {})} for name in formats]
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return path


def test_a_record_carries_only_the_format_that_its_own_row_names(tmp_path: Path) -> None:
    """What the publication says is the job's to say: another dataset that mixes the record in says something else."""
    path = rows_with_formats(tmp_path / "h2o.jsonl", None, "human_bot", "chatml")
    job = CompileJob("h2o.jsonl", prompt_format="chatml", prompt_formats=("chatml", "human_bot"))
    (cut,) = (event for event in compile_source(path, job) if isinstance(event, Cut))
    assert cut.table["prompt_format"].to_pylist() == [None, "human_bot", "chatml"]


def test_a_row_with_a_format_that_is_not_known_is_malformed_by_line_with_the_nearest(tmp_path: Path) -> None:
    path = rows_with_formats(tmp_path / "h2o.jsonl", "human_bot", "humen_bot")
    events = list(compile_source(path, CompileJob("h2o.jsonl", prompt_formats=("chatml", "human_bot"))))
    (bad,) = (event for event in events if isinstance(event, Malformed))
    assert bad.place == "line 2"
    assert "humen_bot" in bad.reason
    assert "human_bot" in bad.reason.replace("humen_bot", "")
    assert events[-1] == Done(items=2, used=1, rejected=1, records=1, batches=1)


def test_a_publication_is_cut_as_it_was_when_its_records_carried_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of an attempt that began before are sent again; other ones would not tile with those that are there."""
    path = rows_with_formats(tmp_path / "h2o.jsonl", *[None] * 5)
    (one,) = (event for event in compile_source(path, CompileJob("h2o.jsonl")) if isinstance(event, Cut))
    record = next(iter(records_of(one.table)))
    once = len(orjson.dumps({**record.row(), "prompt_format": "human_bot"}))
    monkeypatch.setattr(compile_module, "BATCH_BYTES", 2 * once)
    job = CompileJob("h2o.jsonl", prompt_format="human_bot", prompt_formats=("human_bot",))
    cuts = [event.count for event in compile_source(path, job) if isinstance(event, Cut)]
    monkeypatch.setattr(compile_module, "BATCH_BYTES", 2 * once - 1)
    smaller = [event.count for event in compile_source(path, job) if isinstance(event, Cut)]
    assert (cuts, smaller) == ([2, 2, 1], [1, 1, 1, 1, 1])
