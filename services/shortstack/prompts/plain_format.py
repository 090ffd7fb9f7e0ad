"""``PLAINFORMAT``: the mark at the end of a coding instruction that asks for the code alone (airoboros model cards)."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MARK", "asks_plain", "code_alone", "with_mark", "without_mark"]

MARK: Final = "PLAINFORMAT"
_AT_END: Final = re.compile(rf"[ \n]{MARK}\s*\Z")
_FENCED: Final = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def asks_plain(instruction: str) -> bool:
    """Whether the instruction ends in the mark, after a space or on a line of its own."""
    return _AT_END.search(instruction) is not None


def with_mark(instruction: str, *, own_line: bool = False) -> str:
    """The instruction's twin that asks for the code alone; one that asks already comes back as it is."""
    return instruction if asks_plain(instruction) else f"{instruction}{chr(10) if own_line else ' '}{MARK}"


def without_mark(instruction: str) -> str:
    """The instruction without the mark."""
    return _AT_END.sub("", instruction)


def code_alone(answer: str) -> str | None:
    """The code of an answer without fences and talk: the target of an instruction with the mark.

    An answer of several fenced blocks gives them joined by an empty line, in order. None where there is no whole
    fenced block: what is talk and what is code cannot be told then.
    """
    blocks = [block.rstrip("\n") for block in _FENCED.findall(answer)]
    return "\n\n".join(blocks) if blocks else None
