"""The prompt formats by name: those that are declared, and the chat template of a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.prompts.declaration import read_declaration
from shortstack.prompts.declared import DeclaredFormat
from shortstack.prompts.prompt_format import Exchange, PromptFormat
from shortstack.prompts.special_tokens import SpecialTokens
from shortstack.prompts.template_format import TemplateFormat

__all__ = ["BASE", "Exchange", "PromptFormat", "PromptFormats"]

BASE: Final = "base"
"""The name of the base tokenizer's own chat template."""


_FOR_ANY_MODEL: Final = ("alpaca", "vicuna")
"""Formats of plain words, which need no special token."""


def _local_time() -> datetime:
    return datetime.now().astimezone()


@dataclass(frozen=True, slots=True)
class PromptFormats:
    """A registry of prompt formats; frozen, so that processes can share one.

    Attributes:
        formats: the formats by name.
        clock: the time, for formats whose preamble holds the date; aware of its zone.
    """

    formats: Mapping[str, PromptFormat]
    clock: Callable[[], datetime]

    @classmethod
    def builtin(cls, clock: Callable[[], datetime] = _local_time) -> PromptFormats:
        """Every format declared in the package. ``base`` needs a model: see `with_base`."""
        formats: dict[str, PromptFormat] = {}
        for entry in (resources.files("shortstack.prompts") / "declarations").iterdir():
            if entry.name.endswith(".yaml"):
                declaration = read_declaration(entry.read_text(encoding="utf-8"), where=entry.name)
                formats[declaration.name] = DeclaredFormat.of(declaration, clock)
        return cls(MappingProxyType(dict(sorted(formats.items()))), clock)

    def names(self) -> tuple[str, ...]:
        """The names of the formats, in order."""
        return tuple(self.formats)

    def get(self, name: str) -> PromptFormat:
        """The format of that name.

        Raises:
            Invalid: there is none; names the nearest.
        """
        if name not in self.formats:
            if name == BASE:
                remedy = "It is the chat template of a base model, and none is at hand here; name a declared format."
            else:
                remedy = did_you_mean(name, (*self.formats, BASE))
            raise Invalid(f'there is no prompt format "{name}"', remedy=remedy, param="prompt_format")
        return self.formats[name]

    def with_base(self, model_dir: Path) -> PromptFormats:
        """These formats bound to the tokenizer in ``model_dir``, and ``base``, its own chat template.

        Raises:
            Invalid: the model has no chat template (names the formats likeliest to fit its tokens), or one that
                cannot be used.
        """
        special = SpecialTokens.load(model_dir)
        declared = self.bound(special)
        base = TemplateFormat.load(model_dir, special, clock=self.clock)
        if base is None:
            raise Invalid(
                "the base model has no chat template",
                where=str(model_dir),
                remedy=f"Name a prompt_format; likeliest for its tokens: {', '.join(declared.likeliest(special))}.",
                param="prompt_format",
            )
        return PromptFormats(MappingProxyType({BASE: base, **declared.formats}), self.clock)

    def bound(self, special: SpecialTokens) -> PromptFormats:
        """These formats with the special tokens of one tokenizer guarded, and its end-of-sequence token in the text."""
        bound = {name: one.bound(special) for name, one in self.formats.items()}
        return PromptFormats(MappingProxyType(bound), self.clock)

    def likeliest(self, special: SpecialTokens) -> tuple[str, ...]:
        """The formats whose markers are special tokens of the tokenizer; those for any model where none are."""
        known = set(special.tokens)
        fitting = []
        for name, one in self.formats.items():
            if isinstance(one, DeclaredFormat) and known.intersection(one.declaration.guard):
                fitting.append(name)
        return tuple(fitting) or _FOR_ANY_MODEL
