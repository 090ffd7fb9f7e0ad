"""The guard: content that looks like a special token or a marker of the format is broken before it is rendered.

One guard serves training, serving and the Jinja template shipped with a model, so the three agree byte by byte. A user
who writes ``<|im_end|>`` followed by ``<|im_start|>system`` would otherwise forge a system turn, and no inference
server can tell afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shortstack.core.errors import Invalid

__all__ = ["Guard"]


def _borders(token: str) -> int:
    """How many proper prefixes of ``token`` are suffixes of it too: how often it may overlap itself."""
    return sum(token.startswith(token[start:]) for start in range(1, len(token)))


@dataclass(frozen=True, slots=True)
class Guard:
    """Breaks each of ``tokens`` inside content by a space after its first character.

    ``<|im_end|>`` becomes ``< |im_end|>``. The replacements run one after the other, in order, so that a chain of
    Jinja ``replace`` filters does the same. A token that can overlap itself is replaced once more for each way that
    it can: an occurrence left over by one pass starts inside the one replaced, at a border of the token.

    Raises:
        Invalid: a token of one character, or with white space as its second, cannot be broken this way.
    """

    tokens: tuple[str, ...]
    replacements: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for token in self.tokens:
            if len(token) < 2 or token[1].isspace():
                raise Invalid(f"the token {token!r} cannot be broken by a space after its first character")
        steps = [(token, f"{token[0]} {token[1:]}") for token in self.tokens for _ in range(1 + _borders(token))]
        pattern = re.compile("|".join(re.escape(token) for token in self.tokens)) if self.tokens else None
        object.__setattr__(self, "replacements", tuple(steps))
        object.__setattr__(self, "_pattern", pattern)

    @classmethod
    def of(cls, tokens: Iterable[str]) -> Guard:
        """A guard of ``tokens``, each once, the longest first (a marker may begin with a special token)."""
        return cls(tuple(sorted(set(tokens), key=lambda token: (-len(token), token))))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def with_tokens(self, tokens: Iterable[str]) -> Guard:
        """This guard, and ``tokens`` broken too."""
        return Guard.of((*self.tokens, *tokens))

    def finds(self, text: str) -> bool:
        """Whether ``text`` holds a guarded token."""
        return self._pattern is not None and self._pattern.search(text) is not None

    @property
    def reach(self) -> int:
        """Characters of text before a seam that may be the beginning of a token going on after it."""
        return max(map(len, self.tokens), default=1) - 1

    def mend(self, pieces: list[str]) -> list[str]:
        """``pieces`` to be joined, with a space where two would make a token that neither holds.

        A piece is changed at its front alone, so that what is rendered of a conversation's beginning stays as it is.
        Only formats that put contents side by side, without a text between, need this.
        """
        if self._pattern is None:
            return pieces
        tail, mended = "", []
        for piece in pieces:
            joined = f" {piece}" if tail and piece and self._pattern.search(tail + piece) else piece
            mended.append(joined)
            tail = (tail + joined)[-self.reach :]
        return mended

    def __call__(self, text: str) -> str:
        """``text`` with every guarded token broken; most texts come back as they are."""
        if self._pattern is None or self._pattern.search(text) is None:
            return text
        for token, broken in self.replacements:
            text = text.replace(token, broken)
        return text
