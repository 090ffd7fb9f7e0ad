"""Renders a declared prompt format: plain string joins, for it stands in the hot path of formatting and gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from typing_extensions import override

from shortstack.core.errors import Invalid
from shortstack.prompts.declaration import Declaration, Fold, Parts, RoleText, Turns
from shortstack.prompts.guard import Guard
from shortstack.prompts.jinja_source import template_source
from shortstack.prompts.prompt_format import Exchange, PromptFormat, answer_text, check_roles
from shortstack.prompts.special_tokens import SpecialTokens
from shortstack.records.message import Message

__all__ = ["DeclaredFormat"]


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where an answer stands in the pieces: the prompt ends before piece ``at``, which is the answer."""

    index: int
    at: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a role's content goes: texts around it, or the user's turn that it joins."""

    turn: str
    before: str
    after: str
    join: str | None
    first_only: bool = False


@dataclass(frozen=True)
class DeclaredFormat(PromptFormat):
    """A prompt format read from one YAML declaration.

    Args:
        declaration: what the file says.
        clock: the time, for a preamble that holds the date; asked once a rendering.
        eos_text: what stands in the text for the end-of-sequence token where ``close.eos`` is ``every``.
    """

    declaration: Declaration
    clock: Callable[[], datetime]
    guard: Guard
    eos_text: str
    name: str = field(init=False)
    stop: tuple[str, ...] = field(init=False)
    default_system: str | None = field(init=False)
    eos: Literal["every", "last", "none"] = field(init=False)
    _close: str = field(init=False, repr=False)
    _known: tuple[str, ...] = field(init=False, repr=False)
    _slots: Mapping[str, _Slot] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, declaration: Declaration, clock: Callable[[], datetime]) -> DeclaredFormat:
        """The format before it is bound to a tokenizer: it guards its own markers alone."""
        markers = () if declaration.guard == "none" else declaration.guard
        return cls(declaration, clock, Guard.of(markers), declaration.close.eos_text)

    def __post_init__(self) -> None:
        d = self.declaration
        derived = {
            "name": d.name,
            "stop": d.stop,
            "default_system": d.default_system,
            "eos": d.close.eos,
            "_close": d.close.text + (self.eos_text if d.close.eos == "every" else ""),
            "_slots": _slots(d.layout) if isinstance(d.layout, Turns) else {},
        }
        derived["_known"] = (*derived["_slots"], "assistant") if derived["_slots"] else _PARTS_ROLES
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @override
    def bound(self, special: SpecialTokens) -> DeclaredFormat:
        eos = special.eos if special.eos is not None else self.eos_text
        return replace(self, guard=self.guard.with_tokens(special.tokens), eos_text=eos)

    @override
    def prompt(self, messages: Sequence[Message]) -> str:
        return "".join(self._pieces(messages, [], opening=True))

    @override
    def text(self, messages: Sequence[Message]) -> str:
        return "".join(self._pieces(messages, [], opening=False))

    @override
    def exchanges(self, messages: Sequence[Message]) -> list[Exchange]:
        marks: list[_Mark] = []
        pieces = self._pieces(messages, marks, opening=False)
        learnt = self._learnt_separator()
        found = []
        for mark in marks:
            prompt = "".join(pieces[: mark.at])
            close = self.declaration.close.text + (learnt if mark.index < len(messages) - 1 else "")
            found.append(Exchange(mark.index, prompt, pieces[mark.at], close, messages[mark.index].train))
        return found

    def _learnt_separator(self) -> str:
        """The text between turns, where serving stops at it: then it closes every answer but the last."""
        layout = self.declaration.layout
        return layout.separator if isinstance(layout, Parts) and layout.separator in self.stop else ""

    @override
    def close_text(self) -> str:
        return self._close

    @override
    def chat_template(self) -> str:
        return template_source(self.declaration, self.guard, self._close)

    @override
    def roles(self) -> Mapping[str, str]:
        layout = self.declaration.layout
        if isinstance(layout, Parts):
            return _parts_roles(layout)
        words = {name: _slot_words(name, self._slots.get(name)) for name in ("system", "context", "user", "tool")}
        return {**words, "assistant": "own turn"}

    def _pieces(self, messages: Sequence[Message], marks: list[_Mark], *, opening: bool) -> list[str]:
        """The text in pieces; ``marks`` receives where each answer stands."""
        check_roles(messages, self._known)
        if isinstance(self.declaration.layout, Turns):
            return self._turns(self.declaration.layout, messages, marks, opening)
        pieces = self._parts(self.declaration.layout, messages, marks, opening)
        return self.guard.mend(pieces) if self.declaration.has_seams else pieces

    def _content(self, text: str) -> str:
        return self.guard(text.strip() if self.declaration.trim else text)

    def _turns(self, layout: Turns, messages: Sequence[Message], marks: list[_Mark], opening: bool) -> list[str]:
        assistant = self.declaration.assistant
        out: list[str] = []
        if self.default_system is not None and messages[0].role != "system" and isinstance(layout.system, RoleText):
            out += (layout.system.before, self.default_system, layout.system.after)
        after, blank = "", True
        previous: _Slot | None = None
        for index, message in enumerate(messages):
            if message.role == "assistant":
                out += (after, assistant.before)
                marks.append(_Mark(index, len(out)))
                out += (assistant.lead + self._content(answer_text(message)), self._close)
                after, previous = assistant.after, None
                continue
            slot, content = self._slots[message.role], self._content(message.content)
            if slot.first_only and index:
                raise _misplaced(self.name, index)
            joined = previous is not None and previous.turn == slot.turn and (slot.join or previous.join)
            if joined:
                out += (joined, content) if content and not blank else (content,)
                blank = blank and not content
            else:
                out += (after, slot.before, content)
                after, blank = slot.after, not content
            previous = slot
        out.append(after)
        if opening:
            out.append(assistant.before)
        return out

    def _parts(self, layout: Parts, messages: Sequence[Message], marks: list[_Mark], opening: bool) -> list[str]:
        assistant = self.declaration.assistant
        out: list[str] = []
        ask = _Ask()
        for index, message in enumerate(messages):
            if message.role == "assistant":
                self._ask(layout, ask, out)
                out.append(assistant.before)
                marks.append(_Mark(index, len(out)))
                out += (assistant.lead + self._content(answer_text(message)), self._close)
                ask = _Ask()
            elif message.role == "system" and not index and layout.system == "preamble":
                ask.preamble = self._content(message.content)
            else:
                side = ask.input if message.role in ("context", "tool") else ask.instruction
                side.append(self._content(message.content))
        if opening:
            self._ask(layout, ask, out)
            out.append(assistant.before)
        elif messages[-1].role != "assistant":
            self._ask(layout, ask, out)
        return out

    def _ask(self, layout: Parts, ask: _Ask, out: list[str]) -> None:
        """Appends what is asked before an answer: preamble or separator, instruction, input."""
        instruction, given = ("\n".join(filter(None, side)) for side in (ask.instruction, ask.input))
        if layout.lone_user == "input" and not given:
            instruction, given = "", instruction
        out.append(layout.separator if out else self._preamble(layout, ask.preamble, with_input=bool(given)))
        out.append(layout.turn)
        if instruction:
            out += (layout.instruction, instruction)
        if given and layout.input is not None:
            out += (layout.input, given)
        elif given:
            out += (layout.join, given) if instruction else (given,)

    def _preamble(self, layout: Parts, system: str | None, *, with_input: bool) -> str:
        preamble = layout.preamble
        text = preamble.with_input if with_input and preamble.with_input is not None else preamble.text
        if preamble.dated:
            text = self.clock().strftime(text)
        return (text if system is None else system) + preamble.after


@dataclass(slots=True)
class _Ask:
    """What stands between two answers, as it is gathered."""

    instruction: list[str] = field(default_factory=list)
    input: list[str] = field(default_factory=list)
    preamble: str | None = None


_PARTS_ROLES: Final = ("system", "context", "user", "tool", "assistant")


def _slots(layout: Turns) -> dict[str, _Slot]:
    found = {"user": _Slot("user", layout.user.before, layout.user.after, None)}
    for role, place in (("system", layout.system), ("context", layout.context), ("tool", layout.tool)):
        if isinstance(place, Fold):
            found[role] = _Slot(place.into, layout.user.before, layout.user.after, place.join)
        elif place is not None:
            found[role] = _Slot(role, place.before, place.after, None, place.position == "first")
    return found


def _misplaced(name: str, index: int) -> Invalid:
    return Invalid(
        f"a system message stands at index {index}, and {name} takes one at index 0 only",
        where=f"messages[{index}]",
        remedy="Move it to the front, or give the text to a user's turn.",
        param=f"messages[{index}].role",
    )


def _slot_words(role: str, slot: _Slot | None) -> str:
    if slot is None:
        return "refused"
    if slot.join is not None:
        return f"joined to the {slot.turn}'s turn"
    return "own turn, first message only" if slot.first_only else "own turn"


def _parts_roles(layout: Parts) -> dict[str, str]:
    beside = "joined to the instruction" if layout.input is None else "the input"
    user = "the instruction; alone, the input" if layout.lone_user == "input" else "the instruction"
    system = "first message: instead of the preamble; else" if layout.system == "preamble" else ""
    return {
        "system": f"{system} joined to the instruction".strip(),
        "context": beside,
        "user": user,
        "tool": f"{beside}, as context",
        "assistant": "own turn",
    }
