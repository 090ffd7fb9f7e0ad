"""CSV: one broken line costs one item, wherever it stands and whatever stands around it."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable
from shortstack.ingestion.reading.readers import read_items

SMALL = Limits(item_bytes=4096)

CELL = st.builds(lambda text: f"a{text}z", st.text('b ,\n"#', max_size=8))
ROW = st.tuples(CELL, CELL)
STRAY = st.sampled_from(['"oops,x', 'oops,"x', '"oops","x', 'oops,"x"y,', 'oops,x,"'])


def read(data: bytes, limits: Limits = SMALL) -> list[Item | Malformed]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(data)
        return list(read_items(path, "csv", limits))


def written(rows: list[tuple[str, str]], quoting: int) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]  # its own literal
    return text.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ROW, max_size=12), st.lists(ROW, max_size=12), STRAY, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
)
def test_a_quote_that_is_not_closed_costs_its_line_alone(
    before: list[tuple[str, str]], after: list[tuple[str, str]], stray: str, quoting: int
) -> None:
    head = written([("prompt", "completion"), *before], quoting)
    found = read((head + stray + "\n" + written(after, quoting)).encode())

    rows = [tuple(item.value.values()) for item in found if isinstance(item, Item)]
    (bad,) = [item for item in found if isinstance(item, Malformed)]
    assert rows == [*before, *after]
    assert bad.place == f"line {head.count(chr(10)) + 1}"
    assert stray.split(",", maxsplit=1)[0] in bad.raw


def test_two_stray_quotes_do_not_take_the_rows_between_them() -> None:
    rows = [f"q{number},a{number}" for number in range(100)]
    rows[10], rows[60] = 'q,"opened', 'closed",a'
    found = read("\n".join(["prompt,completion", *rows]).encode())
    assert sum(isinstance(item, Item) for item in found) == 99
    (bad,) = [item for item in found if isinstance(item, Malformed)]
    assert bad.place == "line 12"


def test_a_row_over_several_lines_is_named_by_its_first_and_counted_once() -> None:
    found = read(b'prompt,completion\n"a\nb\nc",d,e\n"f\ng",h\n')
    assert found == [
        Malformed("line 2", "has 3 fields where the header has 2", "a\nb\nc\td\te"),
        Item("line 5", {"prompt": "f\ng", "completion": "h"}),
    ]


def test_a_line_or_a_row_beyond_the_limit_costs_itself_alone() -> None:
    long = "x" * 5000
    found = read(f'prompt,completion\na,{long}\nb,c\nd,"{long[:3000]}\n{long[:3000]}"\ne,f\n'.encode())
    assert [item.value["prompt"] for item in found if isinstance(item, Item)] == ["b", "e"]
    bad = [item for item in found if isinstance(item, Malformed)]
    assert [item.place for item in bad] == ["line 2", "line 4", "line 5"]
    assert "longer than 4096" in bad[0].reason


def test_a_file_of_nothing_but_stray_quotes_takes_linear_time() -> None:
    """Each line ends within quotes, whether it begins within them or not: read anew from each, the time is square."""
    line = 'x",",y\n'
    began = time.process_time()
    found = read(("prompt,completion\n" + line * 40_000).encode(), Limits(item_bytes=1 << 18))
    assert len(found) == 40_000
    assert all(isinstance(item, Malformed) for item in found)
    assert time.process_time() - began < 10


def test_a_header_that_cannot_be_read_fails_the_file() -> None:
    with pytest.raises(Unreadable, match="line 2") as failed:
        read(b'# by hand\n"prompt,completion\na,b\n')
    assert failed.value.code == "bad_header"
