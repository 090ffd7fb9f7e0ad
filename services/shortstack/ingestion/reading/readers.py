"""Readers of files: JSON, JSONL, CSV, TSV, Parquet. Each yields every item or what is wrong with it."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.ingestion.reading.decompression import check_unfolded, open_capped
from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable
from shortstack.ingestion.reading.json_values import json_values
from shortstack.ingestion.reading.tables import table_items

__all__ = ["READERS", "Reader", "detect_file_format", "read_items"]

Reader = Callable[[Path, Limits, bool], Iterator[Item | Malformed]]
"""(path, limits, positional) → items; ``positional``: a table has no header, its columns are "0", "1", …"""

_EXCERPT: Final = 2000
_BOM: Final = b"\xef\xbb\xbf"
_SUFFIXES: Final = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def detect_file_format(path: Path, name: str, limits: Limits) -> str:
    """The reader for a file: by its first bytes where these are plain, else by the suffix of ``name``.

    Raises:
        Unreadable: neither tells.
    """
    with open_capped(path, limits) as stream:
        start = stream.read(4096).removeprefix(_BOM).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    suffixes = [suffix for suffix in PurePosixPath(name).suffixes if suffix not in (".gz", ".zst")]
    declared = _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if declared is not None and declared != "parquet":
        return declared
    if start.startswith(b"[") and not declared:
        return "json"
    if start.startswith(b"{") and not declared:
        return "jsonl"
    if not start and not declared:
        return "jsonl"
    raise Unreadable(
        "neither its name nor its first bytes tell what kind of file this is",
        code="unknown_file_format",
        remedy=f"Give it the ending of what it is: {', '.join(_SUFFIXES)}. "
        f'A message may name it instead, in "source": {{"file_format": …}}. Known: {", ".join(sorted(READERS))}.',
    )


def read_items(path: Path, file_format: str, limits: Limits, *, positional: bool = False) -> Iterator[Item | Malformed]:
    """Every item of a file, in order.

    Raises, while reading:
        Unreadable: the file cannot be read to its end.
    """
    if file_format not in READERS:
        raise Invalid(f'file format "{file_format}" is not known', remedy=did_you_mean(file_format, READERS))
    return READERS[file_format](path, limits, positional)


def _jsonl(path: Path, limits: Limits, positional: bool) -> Iterator[Item | Malformed]:
    with open_capped(path, limits) as stream:
        for number in itertools.count(1):
            line = stream.readline(limits.item_bytes + 1)
            if not line:
                return
            if len(line) > limits.item_bytes and not line.endswith(b"\n"):
                _skip_line(stream)
                yield Malformed(f"line {number}", f"longer than {limits.item_bytes} bytes", _excerpt(line))
                continue
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield _json_item(f"line {number}", line)


def _skip_line(stream: io.BufferedReader) -> None:
    while True:
        piece = stream.readline(1 << 18)
        if not piece or piece.endswith(b"\n"):
            return


def _json_item(place: str, line: bytes) -> Item | Malformed:
    try:
        return Item(place, orjson.loads(line))
    except orjson.JSONDecodeError as error:
        return Malformed(place, f"not JSON: {error}", _excerpt(line))


def _excerpt(line: bytes) -> str:
    return line[:_EXCERPT].decode("utf-8", "replace").rstrip("\r\n")


def _json(path: Path, limits: Limits, positional: bool) -> Iterator[Item | Malformed]:
    with open_capped(path, limits) as stream:
        yield from json_values(stream, limits)


def _parquet(path: Path, limits: Limits, positional: bool) -> Iterator[Item | Malformed]:
    try:
        with pq.ParquetFile(path) as file:
            numbers = itertools.count(1)
            # 64 rows at a time: rows may be megabytes long, and each becomes Python objects.
            unfolded, packed = 0, path.stat().st_size
            for batch in file.iter_batches(batch_size=64):
                unfolded += batch.nbytes
                check_unfolded(unfolded, packed, limits)
                for row in _rows(batch):
                    place = f"row {next(numbers)}"
                    yield Malformed(place, row) if isinstance(row, str) else Item(place, _plain(row))
    except MemoryError:  # Arrow's is one of its own exceptions too
        raise
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(
            f"not a whole Parquet file: {error}", code="damaged_source", remedy="Write and publish the file again."
        ) from error


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Rows as Python objects; of one that holds what Python has no value for, why there is none."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # a date beyond the year 9999, text that is no UTF-8
        for number in range(len(batch)):
            yield _row(batch.slice(number, 1))


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    found: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            (found[name],) = column.to_pylist()
        except (ValueError, OverflowError) as error:
            return f'column "{name}" holds what cannot be read: {error}'
    return found


def _plain(value: Any) -> Any:
    """Dates, decimals and bytes as text; everything else as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


READERS: Final[dict[str, Reader]] = {
    "csv": partial(table_items, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "tsv": partial(table_items, delimiter="\t", quoting=csv.QUOTE_NONE),
}
"""Every reader by the name of its file format."""
