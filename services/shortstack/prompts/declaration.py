"""The declaration of a prompt format: what a YAML file under ``declarations/`` may say.

Two layouts cover the field. In ``turns`` every message stands on its own between the texts of its role (ChatML,
Llama 3, IHOP). In ``parts`` what is asked between two answers is gathered into an instruction and an input, the
three-part records of Alpaca and h2oGPT, of which either may be empty.
"""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shortstack.core.errors import Fatal

__all__ = [
    "Answer",
    "Close",
    "Declaration",
    "Fold",
    "Parts",
    "Preamble",
    "RoleText",
    "Turns",
    "read_declaration",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RoleText(_Strict):
    """Text before and after a message of one role; ``position: first`` allows it at index 0 alone."""

    before: str = ""
    after: str = ""
    position: Literal["any", "first"] = "any"


class Fold(_Strict):
    """Where a role without a place of its own goes: into the turn of another, joined by ``join``."""

    into: Literal["user"]
    join: str = "\n\n"


class Answer(_Strict):
    """The assistant's turn: ``before`` opens it and ends a prompt; ``lead`` is trained with the answer;
    ``after`` follows its close."""

    before: str = ""
    lead: str = ""
    after: str = ""


class Close(_Strict):
    """What ends an answer, and is trained on: a text, and the end-of-sequence token.

    ``every``: the token stands in the text after each answer. ``last``: only the last answer of a training row ends in
    it, as an id; no rendered text holds it. ``none``: the text alone closes.
    """

    text: str = ""
    eos: Literal["every", "last", "none"] = "none"
    eos_text: str = "</s>"
    """Stands for the token until the format is bound to a tokenizer."""


class Turns(_Strict):
    """Every message between the texts of its role."""

    kind: Literal["turns"]
    system: RoleText | Fold
    context: RoleText | Fold
    user: RoleText
    tool: RoleText | Fold | None = None
    """None: the format rejects the role."""


class Preamble(_Strict):
    """The text before the first turn. Which one is chosen by the first user turn alone."""

    text: str = ""
    with_input: str | None = None
    """Instead of ``text``, where the first turn has an input."""
    after: str = ""
    dated: bool = False
    """The text holds strftime directives, filled from the clock."""


class Parts(_Strict):
    """What is asked between two answers, gathered into an instruction and an input."""

    kind: Literal["parts"]
    preamble: Preamble = Preamble()
    turn: str = ""
    """Text at the start of every turn, whatever it holds."""
    instruction: str = ""
    """Text before an instruction that is not empty."""
    input: str | None = None
    """Text before an input that is not empty; None joins it to the instruction by ``join``."""
    join: str = "\n"
    separator: str = "\n"
    """Text between a closed answer and the next turn."""
    lone_user: Literal["instruction", "input"] = "instruction"
    """What a turn of a user's message alone is."""
    system: Literal["instruction", "preamble"] = "instruction"
    """Where a system message goes; one that is not the first always goes before the instruction."""


class Declaration(_Strict):
    """One prompt format."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    source: str
    layout: Annotated[Turns | Parts, Field(discriminator="kind")]
    assistant: Answer
    close: Close = Close()
    stop: tuple[str, ...] = ()
    guard: tuple[str, ...] | Literal["none"]
    default_system: str | None = None
    trim: bool = False
    """Whether white space around every content is removed."""

    @property
    def has_seams(self) -> bool:
        """Whether contents may stand side by side without a text between."""
        if isinstance(self.layout, Turns):
            return False
        joined = self.layout.join if self.layout.input is None else self.layout.input
        return not (joined and self.layout.separator and self.assistant.before + self.assistant.lead)

    @model_validator(mode="after")
    def _default_needs_a_place(self) -> Declaration:
        if self.default_system is not None and not (
            isinstance(self.layout, Turns) and isinstance(self.layout.system, RoleText)
        ):
            raise ValueError("default_system needs a system role with texts of its own")
        return self


def read_declaration(text: str, *, where: str) -> Declaration:
    """Parses one YAML declaration.

    Raises:
        Fatal: it breaks the schema; declarations are part of the product, so nothing else may run.
    """
    try:
        return Declaration.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise Fatal(f"not a prompt format: {error}", where=where) from error
