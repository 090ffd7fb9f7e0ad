"""A JSON file item by item, in bounded memory: an array of items, one object, or several one after another."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from shortstack.ingestion.reading.items import Item, Limits, Malformed, Unreadable

__all__ = ["json_values"]

_CHUNK: Final = 1 << 18
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()
_SKIPPER: Final = json.JSONDecoder(parse_int=len)
"""Finds the end of a value with an integer that Python does not read; what it makes of integers is not used."""

_EXCERPT: Final = 2000
_DIGITS: Final = "holds an integer of more than 4300 digits"


class _Scanner:
    """A window of decoded text over a stream, which knows its line."""

    def __init__(self, stream: io.BufferedReader, limits: Limits) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._limits = limits
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            after = _SPACE.match(self._text, self._at)
            assert after is not None
            self._advance(after.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def skip(self) -> None:
        """Passes the character that `peek` showed."""
        self._advance(self._at + 1)

    def item(self, place: str) -> Item | Malformed:
        """The next value, whole; malformed if it holds an integer of more than 4300 digits.

        Raises:
            Unreadable: there is none, or it is longer than the limit.
        """
        while True:
            try:
                value, end, readable = self._decode()
            except json.JSONDecodeError as error:
                if self._fill():
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                raise Unreadable(
                    f"not JSON from line {line} on: {error.msg}",
                    code="invalid_json",
                    remedy="Mend that line, or publish as JSONL, where one bad line spoils no other.",
                ) from error
            except RecursionError as error:
                raise Unreadable(f"nested too deep at line {self.line}", code="invalid_json") from error
            # A number at the end of the window may go on beyond it.
            if end == len(self._text) and not self._ended:
                self._fill()
                continue
            raw = "" if readable else _excerpt(self._text[self._at : min(end, self._at + _EXCERPT)])
            self._advance(end)
            return Item(place, value) if readable else Malformed(place, _DIGITS, raw)

    def _decode(self) -> tuple[Any, int, bool]:
        """(value, its end, whether the value can be used)."""
        try:
            return *_DECODER.raw_decode(self._text, self._at), True
        except json.JSONDecodeError:
            raise
        except ValueError:
            return *_SKIPPER.raw_decode(self._text, self._at), False

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _fill(self) -> bool:
        """Reads on; False at the end."""
        if self._ended:
            return False
        held = len(self._text) - self._at
        if held > self._limits.item_bytes:
            raise Unreadable(
                f"the item at line {self.line} is longer than {self._limits.item_bytes} characters",
                code="source_too_large",
                remedy="Publish as JSONL, where one long line spoils no other.",
            )
        # Doubling keeps the work linear: each failed attempt decodes at most as much as was there before.
        data = self._stream.read(max(_CHUNK, held))
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        self._at = 0
        return True


def _excerpt(text: str) -> str:
    """Without the surrogates that stand for bytes that are no UTF-8: no file of ours can hold them."""
    return text.encode("utf-8", "replace").decode()


def json_values(stream: io.BufferedReader, limits: Limits) -> Iterator[Item | Malformed]:
    """Every item of the file, in order.

    Raises, while reading:
        Unreadable: the text stops being JSON; what follows cannot be told apart.
    """
    scanner = _Scanner(stream, limits)
    if scanner.peek() == "[":
        scanner.skip()
        yield from _array(scanner)
        return
    for number in itertools.count(1):
        if not scanner.peek():
            return
        line = scanner.line
        yield scanner.item(f"line {line} item {number}")


def _array(scanner: _Scanner) -> Iterator[Item | Malformed]:
    if scanner.peek() == "]":
        scanner.skip()
    else:
        for number in itertools.count(1):
            scanner.peek()
            line = scanner.line
            yield scanner.item(f"line {line} item {number}")
            if _closed(scanner):
                break
    if rest := scanner.peek():
        raise Unreadable(f'"{rest}" after the end of the array at line {scanner.line}', code="invalid_json")


def _closed(scanner: _Scanner) -> bool:
    mark = scanner.peek()
    if mark not in (",", "]"):
        found = f'"{mark}"' if mark else "the end of the file"
        raise Unreadable(
            f"not JSON from line {scanner.line} on: a comma or the array's end is due, {found} stands there",
            code="invalid_json",
            remedy="Mend that line, or publish as JSONL, where one bad line spoils no other.",
        )
    scanner.skip()
    return mark == "]"
