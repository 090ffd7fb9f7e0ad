"""Searching many short texts at once with RE2, whose time is linear whatever the pattern."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Final

import re2

from shortstack.core.errors import Invalid

__all__ = ["compile_pattern", "search_lines"]

_MAX_MEMORY: Final = 16 * 1024 * 1024
"""Bytes that one compiled pattern may take; a larger one is refused."""


def compile_pattern(pattern: str, *, where: str = "recipe") -> Any:
    """A pattern over UTF-8 bytes.

    Raises:
        Invalid: it is no RE2 expression (which has no back-references and no look-around), or too large.
    """
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    options.encoding = re2.Options.Encoding.UTF8
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise Invalid(
            f'pattern "{pattern[:80]}" is not an RE2 expression: {reason}',
            where=where,
            remedy="RE2 has no back-references and no look-around.",
            param="pattern",
        ) from error


def search_lines(pattern: Any, lines: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Line → (what matched first, what follows it), for the lines in which ``pattern`` is found.

    All lines are searched in one call: a call per line costs more than the search. So the pattern must be built to
    match within a line: ``(?m)``, and ``[^\\n]`` where it would say "anything".
    """
    encoded = [line.encode("utf-8", "replace") for line in lines]
    starts = list(itertools.accumulate((len(line) + 1 for line in encoded), initial=0))
    found: dict[int, tuple[str, str]] = {}
    for match in pattern.finditer(b"\n".join(encoded)):
        line = bisect.bisect_right(starts, match.start()) - 1
        if line not in found:
            after = encoded[line][match.end() - starts[line] :]
            found[line] = (match.group().decode("utf-8", "replace"), after.decode("utf-8", "replace"))
    return found
