"""Context-obedient question answering: blocks of text with their metadata, then an instruction about them alone.

The form is that of the airoboros model cards: every tag on a line of its own, ``key: value`` lines for a block's
metadata, as many blocks as wanted, one instruction block at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from shortstack.core.errors import Invalid

__all__ = ["UNANSWERABLE", "ContextBlock", "ContextQuestion", "SourcedAnswer"]

UNANSWERABLE: Final = "Don't make up answers if you don't know."
"""Goes at the end of an instruction whose blocks may not hold the answer."""

_TAGS: Final = ("BEGININPUT", "BEGINCONTEXT", "ENDCONTEXT", "ENDINPUT", "BEGININSTRUCTION", "ENDINSTRUCTION")
_SOURCE: Final = "Source:"


@dataclass(frozen=True, slots=True)
class ContextBlock:
    """One text with its metadata, such as date and URL, in order."""

    text: str
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ContextQuestion:
    """Blocks and the instruction that is to be followed by what they say.

    Raises:
        Invalid: the blocks or the instruction could not be told apart from the tags around them.
    """

    blocks: tuple[ContextBlock, ...]
    instruction: str

    def __post_init__(self) -> None:
        if not self.blocks:
            raise Invalid("a context question has at least one block", param="blocks")
        for number, block in enumerate(self.blocks):
            _refuse_tags(block.text, f"blocks[{number}].text")
            _check_metadata(block.metadata, f"blocks[{number}].metadata")
        _refuse_tags(self.instruction, "instruction")
        if not self.instruction.strip():
            raise Invalid("a context question has an instruction", param="instruction")

    def build(self) -> str:
        """The text of a user's turn."""
        lines: list[str] = []
        for block in self.blocks:
            lines += ("BEGININPUT", "BEGINCONTEXT", *_pairs(block.metadata), "ENDCONTEXT", block.text, "ENDINPUT")
        lines += ("BEGININSTRUCTION", self.instruction, "ENDINSTRUCTION")
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> ContextQuestion:
        """Reads what `build` writes; white space around the whole is no matter.

        Raises:
            Invalid: a tag is missing, misplaced or unclosed; names the line.
        """
        lines = _Lines(text.strip("\n").split("\n"))
        blocks = []
        while lines.at("BEGININPUT"):
            lines.take("BEGININPUT")
            lines.take("BEGINCONTEXT")
            metadata = _parse_metadata(lines.until("ENDCONTEXT"), lines)
            blocks.append(ContextBlock("\n".join(lines.until("ENDINPUT")), metadata))
        lines.take("BEGININSTRUCTION")
        instruction = "\n".join(lines.until("ENDINSTRUCTION"))
        if lines.rest():
            raise lines.complaint(f"{lines.rest()[0]!r} stands after ENDINSTRUCTION")
        return cls(tuple(blocks), instruction)


@dataclass(frozen=True, slots=True)
class SourcedAnswer:
    """An answer and the metadata of the block that it comes from; without metadata, the answer alone."""

    text: str
    source: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        _check_metadata(self.source, "source")
        if any(line == _SOURCE for line in self.text.split("\n")):
            raise Invalid(f'a line of the answer is "{_SOURCE}"', param="text")

    def build(self) -> str:
        """The text of an assistant's turn."""
        return "\n".join((self.text, _SOURCE, *_pairs(self.source))) if self.source else self.text

    @classmethod
    def parse(cls, text: str) -> SourcedAnswer:
        """Reads what `build` writes.

        Raises:
            Invalid: what follows ``Source:`` is no list of ``key: value`` lines.
        """
        lines = text.split("\n")
        if _SOURCE not in lines:
            return cls(text)
        at = lines.index(_SOURCE)
        reader = _Lines(lines)
        reader.position = at + 1
        return cls("\n".join(lines[:at]), _parse_metadata(lines[at + 1 :], reader))


class _Lines:
    """Lines read from the front, with complaints that name the line."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.position = 0

    def at(self, tag: str) -> bool:
        return self.position < len(self.lines) and self.lines[self.position] == tag

    def take(self, tag: str) -> None:
        if not self.at(tag):
            found = repr(self.lines[self.position]) if self.position < len(self.lines) else "the end"
            raise self.complaint(f"{found} stands where {tag} belongs")
        self.position += 1

    def until(self, tag: str) -> list[str]:
        """The lines before ``tag``, which is taken too."""
        start = self.position
        while self.position < len(self.lines) and self.lines[self.position] not in _TAGS:
            self.position += 1
        self.take(tag)
        return list(self.lines[start : self.position - 1])

    def rest(self) -> Sequence[str]:
        return self.lines[self.position :]

    def complaint(self, what: str) -> Invalid:
        return Invalid(what, where=f"line {self.position + 1}", remedy="Put each tag on a line of its own, in order.")


def _pairs(metadata: Mapping[str, str]) -> list[str]:
    return [f"{key}: {value}" for key, value in metadata.items()]


def _parse_metadata(lines: Sequence[str], reader: _Lines) -> Mapping[str, str]:
    metadata: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(": ")
        if not colon or not key:
            raise reader.complaint(f'{line!r} is no "key: value"')
        if key in metadata:
            raise reader.complaint(f"the key {key!r} stands twice")
        metadata[key] = value
    return MappingProxyType(metadata)


def _check_metadata(metadata: Mapping[str, str], param: str) -> None:
    for key, value in metadata.items():
        if not key or ": " in key or "\n" in key or "\n" in value or key.endswith(":"):
            raise Invalid(
                f"{key!r} with {value!r} cannot stand on a line as key and value",
                remedy="Use a key without a colon, and a value of one line.",
                param=param,
            )
        _refuse_tags(f"{key}: {value}", param)


def _refuse_tags(text: str, param: str) -> None:
    for line in text.split("\n"):
        if line in _TAGS:
            raise Invalid(f"a line of the text is the tag {line}", remedy="Indent it or quote it.", param=param)
