"""CSV (RFC 4180) and TSV (IANA text/tab-separated-values, which knows no quotes), row by row.

A quote that is opened and never closed would take all that follows into one field. So a row over several lines must
hold to RFC 4180 strictly; where it does not, its first line alone is malformed, and the next line begins a row.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.ingestion.reading.decompression import open_capped
from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable

__all__ = ["table_items"]

_EXCERPT: Final = 2000
_ENDS: Final = "\r\n"
_AGAIN: Final = 4
"""Characters that may be read again for each that is read, so that a file of stray quotes costs linear time."""

_AGAIN_AT_FIRST: Final = 8
"""Longest items that may be read again besides."""

_UNCLOSED: Final = "opens a quote that is not closed as RFC 4180 has it"


def table_items(
    path: Path, limits: Limits, positional: bool, *, delimiter: str, quoting: int
) -> Iterator[Item | Malformed]:
    """The rows of a table; ``#`` lines may lead. A place is the line in which a row begins.

    Raises, while reading:
        Unreadable: the header cannot be read, or names a column twice.
    """
    with open_capped(path, limits) as raw:
        # Bytes that are no UTF-8 become surrogates, which the compiler rejects row by row.
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = _Rows(_Lines(text, limits.item_bytes), {"delimiter": delimiter, "quoting": quoting})
        header: Sequence[str] | None = None
        while (row := rows.next(len(header) if header else 0)) is not None:
            place = f"line {rows.line}"
            if header is None:
                header = _header(place, row, positional)
                if not positional:
                    continue
            if isinstance(row, _Broken):
                yield Malformed(place, row.reason, row.raw)
            else:
                yield _item(place, header, row)


def _header(place: str, row: list[str] | _Broken, positional: bool) -> Sequence[str]:
    if isinstance(row, _Broken):
        raise Unreadable(f"the first row, at {place}, {row.reason}", code="bad_header", remedy="Mend that line.")
    if positional:
        return [str(index) for index in range(len(row))]
    doubled = sorted({name for name in row if row.count(name) > 1})
    if doubled:
        raise Unreadable(
            f'the header names "{doubled[0]}" twice',
            code="bad_header",
            remedy='Rename one, or publish without a header and name the columns by place: "columns": {"0": …}.',
        )
    return row


def _item(place: str, header: Sequence[str], row: Sequence[str]) -> Item | Malformed:
    if len(row) != len(header):
        return Malformed(place, f"has {len(row)} fields where the header has {len(header)}", _excerpt("\t".join(row)))
    return Item(place, dict(zip(header, row, strict=True)))


def _excerpt(text: str) -> str:
    return text[:_EXCERPT].encode("utf-8", "replace").decode().rstrip("\r\n")


@dataclass(frozen=True, slots=True)
class _Broken:
    """A line that is no row, and why."""

    reason: str
    raw: str


class _TooLongError(Exception):
    """A line, or the lines of one row, go on beyond what may be held."""


class _Lines:
    """Lines of a file, which can be given back.

    Attributes:
        taken: those of the row that is being read.
    """

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self._text, self._limit = text, limit
        self._again: deque[str] = deque()
        self._allowed = _AGAIN_AT_FIRST * limit
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        taken, again, limit, readline = self.taken, self._again, self._limit, self._text.readline
        size = 0
        while True:
            if again:
                line = again.popleft()
            elif line := readline(limit + 1):
                self._allowed += _AGAIN * len(line)
                if len(line) > limit:
                    self._skip_rest(line)
            else:
                return
            taken.append(line)
            if len(taken) == 1:
                size = len(line)
            else:
                size += len(line)
                if size > self._allowed:
                    raise _TooLongError
            if size > limit and (size > len(line) or line[-1] not in _ENDS):
                raise _TooLongError
            yield line

    def _skip_rest(self, piece: str) -> None:
        """Leaves out what remains of a line that is longer than ``piece``, its beginning."""
        while piece and piece[-1] not in _ENDS:
            piece = self._text.readline(1 << 18)

    def give_back(self) -> None:
        """All but the first line of the row come again."""
        rest = self.taken[1:]
        self._allowed -= sum(map(len, rest))
        self._again.extendleft(reversed(rest))
        del self.taken[1:]

    def lead(self, mark: str) -> int:
        """Passes the lines that begin with ``mark`` before any other; how many they are."""
        passed = 0
        while (line := self._text.readline(self._limit + 1)).startswith(mark):
            self._skip_rest(line)
            passed += 1
        if line:
            self._skip_rest(line)
            self._again.append(line)
        return passed


class _Rows:
    """Rows of a table.

    Attributes:
        line: in which the newest row begins, from 1.
    """

    def __init__(self, lines: _Lines, dialect: Mapping[str, Any]) -> None:
        self._lines, self._dialect = lines, dialect
        self.line = lines.lead("#") + 1
        self._reader = self._read()

    def _read(self) -> Iterator[list[str]]:
        return csv.reader(iter(self._lines), strict=True, **self._dialect)

    def next(self, width: int) -> list[str] | _Broken | None:
        """The next row that is not empty; None at the end.

        Args:
            width: fields that a row should have; 0 while that is not known.
        """
        taken = self._lines.taken
        while True:
            self.line += len(taken)
            taken.clear()
            try:
                row: list[str] | _Broken = self._row(next(self._reader), width)
            except StopIteration:
                return None
            except (csv.Error, _TooLongError) as error:
                row = self._first_line(error)
            if isinstance(row, _Broken) or row:
                return row

    def _row(self, row: list[str], width: int) -> list[str] | _Broken:
        """``row``, or its first line as a broken one: two stray quotes make a proper field of the rows between."""
        taken = self._lines.taken
        if len(taken) == 1 or not width or len(row) == width or not self._is_row(taken[1], width):
            return row
        broken = _Broken(_UNCLOSED, _excerpt(taken[0]))
        self._begin_again()
        return broken

    def _first_line(self, error: Exception) -> list[str] | _Broken:
        """The first line alone, after it and those behind it made no row by the letter of RFC 4180."""
        first, single = self._lines.taken[0], len(self._lines.taken) == 1
        self._begin_again()
        if single and isinstance(error, _TooLongError):
            return _Broken(f"is longer than {len(first) - 1} characters", _excerpt(first))
        try:
            row = self._alone(first)
        except csv.Error as refused:
            return _Broken(f"is no row: {refused}", _excerpt(first))
        return _Broken(_UNCLOSED, _excerpt(first)) if row is None else row

    def _begin_again(self) -> None:
        self._lines.give_back()
        self._reader = self._read()

    def _alone(self, line: str) -> list[str] | None:
        """The row that a line makes, read leniently as spreadsheets do; None if a quote stays open at its end."""
        asked = False

        def only() -> Iterator[str]:
            nonlocal asked
            yield line
            asked = True

        row = next(csv.reader(only(), **self._dialect))
        return None if asked else row

    def _is_row(self, line: str, width: int) -> bool:
        try:
            row = self._alone(line)
        except csv.Error:
            return False
        return row is not None and len(row) == width
