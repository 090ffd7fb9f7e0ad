"""normalise: text brought to one form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from shortstack.declarations.recipe import NormaliseStep
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.step import Outcome

__all__ = ["Normalise"]

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""C0 and C1 controls but for tab, line feed, carriage return and NEL; and the byte order mark."""


@dataclass(frozen=True, slots=True)
class Normalise:
    """Applies the edits that its settings name, in order: mojibake, Unicode form, line ends, controls, strip."""

    settings: NormaliseStep

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        edits = self._edits()
        contents = list(batch.contents)
        for edit in edits:
            contents = [edit(content) for content in contents]
        markers = self.settings.end_markers
        if markers:
            for index, role in enumerate(batch.roles):
                if role == "assistant" and contents[index].endswith(markers):
                    contents[index] = _without(contents[index], markers, strip=self.settings.strip)
        return Outcome(contents=contents)

    def _edits(self) -> list[Callable[[str], str]]:
        settings = self.settings
        edits: list[Callable[[str], str]] = []
        if settings.ftfy:
            import ftfy  # 40 ms of tables that most recipes do not need

            edits.append(ftfy.fix_text)
        if settings.unicode != "none":
            edits.append(partial(_normal_form, settings.unicode))
        if settings.newlines:
            edits.append(_newlines)
        if settings.control:
            edits.append(partial(_CONTROL.sub, ""))
        if settings.strip:
            edits.append(str.strip)
        return edits


def _normal_form(form: Literal["NFC", "NFKC"], text: str) -> str:
    return text if text.isascii() else unicodedata.normalize(form, text)


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _without(text: str, markers: tuple[str, ...], *, strip: bool) -> str:
    """``text`` without the end-of-text markers of older completion data at its end."""
    while text.endswith(markers):
        marker = next(marker for marker in markers if text.endswith(marker))
        text = text[: -len(marker)]
        if strip:
            text = text.rstrip()
    return text
