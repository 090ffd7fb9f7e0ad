"""Readers: every item or what is wrong with it, in bounded memory; a file that breaks off is an error by name."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable
from shortstack.ingestion.reading.json_values import json_values
from shortstack.ingestion.reading.readers import READERS, detect_file_format, read_items

SMALL = Limits(item_bytes=4096, decompressed_bytes=1024 * 1024, ratio=50, ratio_floor=64 * 1024)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(tmp_path: Path, name: str, data: bytes, *, positional: bool = False) -> list[Item | Malformed]:
    """All items of a file with that name and content."""
    path = tmp_path / name
    path.write_bytes(data)
    file_format = detect_file_format(path, name, SMALL)
    return list(read_items(path, file_format, SMALL, positional=positional))


def values(items: list[Item | Malformed]) -> list[Any]:
    return [item.value for item in items if isinstance(item, Item)]


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON, max_size=12), st.sampled_from([None, 0, 2]), st.booleans())
def test_a_json_array_reads_item_by_item_as_it_does_at_once(items: list[Any], indent: int | None, ascii_: bool) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_).encode()
    assert values(list(json_values(io.BufferedReader(io.BytesIO(text)), Limits()))) == items


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=6))
def test_every_line_of_jsonl_is_an_item(items: list[dict[str, Any]]) -> None:
    text = b"\n\n".join(orjson.dumps(item) for item in items)
    found = list(json_values(io.BufferedReader(io.BytesIO(text)), Limits()))
    assert values(found) == items


def test_a_long_array_is_read_through_a_window(tmp_path: Path) -> None:
    items = [{"prompt": "x" * 900, "completion": str(number)} for number in range(2000)]
    found = read(tmp_path, "long.json", json.dumps(items, indent=1).encode())
    assert values(found) == items
    assert found[1].place == "line 6 item 2"


def test_what_is_quoted_of_an_item_can_be_written_down_whatever_its_bytes(tmp_path: Path) -> None:
    item = b'{"caf\xe9": 1, "n": ' + b"7" * 5000 + b"}"
    first, second = read(tmp_path, "latin.json", b"[" + item + b', {"a": 1}]')
    assert isinstance(first, Malformed)
    assert first.raw.startswith('{"caf?": 1')
    orjson.dumps(first.raw)
    assert values([second]) == [{"a": 1}]


def test_bad_lines_are_told_by_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [b'\xef\xbb\xbf{"a": 1}', b"", b"{oops", b'"\xff\xfe"', b"x" * 5000, b'{"a": "' + b"y" * 9000, b'{"a": 2}']
    found = read(tmp_path, "mixed.jsonl", b"\n".join(lines))
    assert values(found) == [{"a": 1}, {"a": 2}]
    bad = [item for item in found if isinstance(item, Malformed)]
    assert [item.place for item in bad] == ["line 3", "line 4", "line 5", "line 6"]
    assert "longer than 4096 bytes" in bad[3].reason
    assert bad[0].raw == "{oops"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_files_are_told_by_their_bytes(tmp_path: Path, compress: Any) -> None:
    data = compress(b'{"a": 1}\n{"a": 2}\n')
    for name in ("plain.jsonl", "named.jsonl.gz", "no-suffix"):
        assert values(read(tmp_path, name, data)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_file_that_breaks_off_is_an_error(tmp_path: Path, compress: Any) -> None:
    data = compress(b"".join(b'{"a": %d}\n' % (number * 7919 % 10007) for number in range(5000)))
    with pytest.raises(Unreadable, match="breaks off or is damaged"):
        read(tmp_path, "cut.jsonl.gz", data[: len(data) // 2])


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_bomb_is_stopped_long_before_it_has_unfolded(tmp_path: Path, compress: Any) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(compress(b"\n" * (64 * 1024 * 1024)))
    with pytest.raises(Unreadable, match="unfold to more than") as stopped:
        list(read_items(path, "jsonl", SMALL))
    assert stopped.value.code == "source_too_large"
    assert int(stopped.value.what.split()[-1]) <= SMALL.decompressed_bytes + (1 << 18)


def test_csv_has_comments_quotes_and_rows_of_wrong_length(tmp_path: Path) -> None:
    text = '# version 1\n# by hand\nprompt,completion\n"a, b","two\nlines"\nlonely\nc,d\n'
    found = read(tmp_path, "pairs.csv", text.encode())
    assert values(found) == [
        {"prompt": "a, b", "completion": "two\nlines"},
        {"prompt": "c", "completion": "d"},
    ]
    (bad,) = [item for item in found if isinstance(item, Malformed)]
    assert (bad.place, bad.reason) == ("line 6", "has 1 fields where the header has 2")


def test_a_table_without_a_header_names_columns_by_place(tmp_path: Path) -> None:
    found = read(tmp_path, "pairs.tsv", b'"Is it" so?\tyes\nWhy?\t"because\n', positional=True)
    assert values(found) == [{"0": '"Is it" so?', "1": "yes"}, {"0": "Why?", "1": '"because'}]


def test_a_header_that_names_a_column_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="twice"):
        read(tmp_path, "doubled.csv", b"a,b,a\n1,2,3\n")


def test_parquet_reads_rows_and_an_incomplete_file_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "completion": None if number % 2 else "a"} for number in range(150)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    found = read(tmp_path, "pairs.parquet", sink.getvalue())
    assert values(found) == rows
    assert found[-1].place == "row 150"
    with pytest.raises(Unreadable, match="not a whole Parquet file"):
        read(tmp_path, "cut.parquet", sink.getvalue()[:-10])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'[{"a": 1},\n {"a": ]\n', 2),
        (b'[{"a": 1}\n {"a": 2}]', 2),
        (b'[{"a": 1},\n', 2),
        (b'[{"a": 1}] trailing', 1),
    ],
)
def test_json_that_stops_being_json_names_the_line(tmp_path: Path, data: bytes, line: int) -> None:
    with pytest.raises(Unreadable, match=rf"line {line}") as broken:
        read(tmp_path, "broken.json", data)
    assert broken.value.code == "invalid_json"


def test_an_item_beyond_the_limit_stops_a_json_file(tmp_path: Path) -> None:
    huge = b'[{"a": "' + b"x" * (2 * 1024 * 1024) + b'"}]'
    with pytest.raises(Unreadable, match="longer than 4096"):
        read(tmp_path, "huge.json", huge)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.json", b"[]", "json"),
        ("a.jsonl", b"{}", "jsonl"),
        ("a.ndjson.zst", b"{}", "jsonl"),
        ("A.CSV", b"a,b", "csv"),
        ("file-abc", b'{"a": 1}\n', "jsonl"),
        ("file-abc", b" [1]", "json"),
        ("file-abc", b"PAR1....", "parquet"),
        ("file-abc", b"", "jsonl"),
    ],
)
def test_the_kind_of_a_file_is_told_by_bytes_then_name(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert detect_file_format(path, name, SMALL) == expected
    assert expected in READERS


def test_a_file_of_no_known_kind_asks_for_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    with pytest.raises(Unreadable, match="file_format"):
        detect_file_format(path, "notes.docx", SMALL)


def test_a_parquet_bomb_is_stopped_too(tmp_path: Path) -> None:
    """One long value and a run of references to it: kilobytes that unfold to gigabytes."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": pa.array(["x" * 10_000] * 5_000)}), path)
    assert path.stat().st_size < 100_000
    items = read_items(path, "parquet", SMALL)
    with pytest.raises(Unreadable, match="unfold to more than") as stopped:
        list(itertools.islice(items, 500))
    assert stopped.value.code == "source_too_large"


def test_a_file_of_no_known_kind_is_told_the_endings_that_are(tmp_path: Path) -> None:
    (tmp_path / "ft.py").write_text("import os")
    with pytest.raises(Unreadable) as refused:
        detect_file_format(tmp_path / "ft.py", "ft.py", SMALL)
    for ending in (".json", ".jsonl", ".csv", ".tsv", ".parquet"):
        assert ending in refused.value.remedy
