"""Writes the Jinja chat template of a declaration: the renderer of `declared`, said once more in Jinja.

The source is one line and keeps to what transformers and text-generation-inference both run: ``namespace``,
``replace``, ``trim``, string operators, ``raise_exception`` and ``strftime_now``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shortstack.prompts.declaration import Answer, Declaration, Fold, Parts, RoleText, Turns
from shortstack.prompts.guard import Guard

__all__ = ["guarded_messages", "literal", "template_source"]

_ESCAPES: Final = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """``text`` as a Jinja string."""
    return "'" + "".join(_ESCAPES.get(character, character) for character in text) + "'"


def _guard_filters(replacements: Sequence[tuple[str, str]]) -> str:
    """The guard as a chain of filters."""
    return "".join(f"|replace({literal(token)}, {literal(broken)})" for token, broken in replacements)


def _set(name: str, expression: str) -> str:
    return f"{{%- set {name} = {expression} -%}}"


def _out(*expressions: str) -> str:
    shown = [expression for expression in expressions if expression != "''"]
    return f"{{{{- {' ~ '.join(shown)} -}}}}" if shown else ""


def _if(condition: str, then: str, otherwise: str = "") -> str:
    other = f"{{%- else -%}}{otherwise}" if otherwise else ""
    return f"{{%- if {condition} -%}}{then}{other}{{%- endif -%}}"


def _content(declaration: Declaration, replacements: Sequence[tuple[str, str]]) -> str:
    """Sets ``c`` to the guarded content of message ``m``, the tool calls of an assistant beneath it."""
    calls = "(m['tool_calls'] if m['tool_calls'] is string else m['tool_calls']|tojson)"
    with_calls = _set("c", f"(c ~ '\\n' if c else '') ~ {calls}")
    trim = "|trim" if declaration.trim else ""
    return (
        _set("c", "m['content'] if m['content'] else ''")
        + _if("m['role'] == 'assistant' and m['tool_calls']", with_calls)
        + _set("c", f"c{trim}{_guard_filters(replacements)}")
    )


def template_source(declaration: Declaration, guard: Guard, close: str) -> str:
    """Jinja source of one declaration.

    Args:
        declaration: the format.
        guard: what is broken inside content.
        close: the text that ends an answer, the end-of-sequence token included where the text holds it.
    """
    content = _content(declaration, guard.replacements)
    if isinstance(declaration.layout, Turns):
        return _turns(declaration.layout, declaration, content, close)
    mended = guard if declaration.has_seams and guard.tokens else None
    return _PartsSource(declaration.layout, declaration.assistant, content, close, mended).source()


def _unknown_role(name: str) -> str:
    return f"{{{{- raise_exception({literal(f'{name} has no place for this role: ')} ~ m['role']) -}}}}"


def _turns(layout: Turns, declaration: Declaration, content: str, close: str) -> str:
    assistant = declaration.assistant
    head = _set("ns", "namespace(after='', turn='', join='', blank=true)")
    if declaration.default_system is not None and isinstance(layout.system, RoleText):
        texts = layout.system.before + declaration.default_system + layout.system.after
        head += _if("messages[0]['role'] != 'system'", _out(literal(texts)))
    answer = (
        _out("ns.after", literal(assistant.before), literal(assistant.lead), "c", literal(close))
        + _set("ns.after", literal(assistant.after))
        + _set("ns.turn", "''")
    )
    branches = f"{{%- if m['role'] == 'assistant' -%}}{answer}"
    for role, place in (
        ("user", layout.user),
        ("system", layout.system),
        ("context", layout.context),
        ("tool", layout.tool),
    ):
        if place is not None:
            branches += f"{{%- elif m['role'] == '{role}' -%}}{_turn(layout, role, place, declaration.name)}"
    branches += f"{{%- else -%}}{_unknown_role(declaration.name)}{{%- endif -%}}"
    tail = _out("ns.after") + _if("add_generation_prompt", _out(literal(assistant.before)))
    return f"{head}{{%- for m in messages -%}}{content}{branches}{{%- endfor -%}}{tail}"


def _turn(layout: Turns, role: str, place: RoleText | Fold, name: str) -> str:
    """A message that is no answer: a turn of its own, or joined to the one before it."""
    texts, turn, join = (
        (layout.user, place.into, literal(place.join)) if isinstance(place, Fold) else (place, role, "''")
    )
    own = (
        _out("ns.after", literal(texts.before), "c")
        + _set("ns.after", literal(texts.after))
        + _set("ns.blank", "not c")
    )
    begin = _set("ns.turn", literal(turn)) + _set("ns.join", join)
    if isinstance(place, RoleText) and place.position == "first":
        complaint = literal(f"{name} takes a system message first only")
        return _if("not loop.first", f"{{{{- raise_exception({complaint}) -}}}}") + own + begin
    if turn != "user":
        return own + begin
    glue = join if isinstance(place, Fold) else "ns.join"
    joined = _if("c", _if("not ns.blank", _out(glue)) + _out("c") + _set("ns.blank", "false"))
    condition = "ns.turn == 'user'" if isinstance(place, Fold) else "ns.turn == 'user' and ns.join"
    return _if(condition, joined, own) + begin


@dataclass(frozen=True, slots=True)
class _PartsSource:
    """Writes the template of the layout ``parts``; ``mended`` is the guard where contents stand side by side."""

    layout: Parts
    assistant: Answer
    content: str
    close: str
    mended: Guard | None

    def source(self) -> str:
        head = _set("ns", "namespace(instruction='', input='', system=none, first=true, tail='', seam='')")
        flush, before = self._flush(), literal(self.assistant.before)
        lead = f"{literal(self.assistant.lead)} ~ c" if self.assistant.lead else "c"
        answer = (
            flush + self._out(before, lead, literal(self.close)) + _set("ns.instruction", "''") + _set("ns.input", "''")
        )
        branches = f"{{%- if m['role'] == 'assistant' -%}}{answer}"
        if self.layout.system == "preamble":
            branches += f"{{%- elif m['role'] == 'system' and loop.first -%}}{_set('ns.system', 'c')}"
        branches += f"{{%- elif m['role'] in ['context', 'tool'] -%}}{_gather('ns.input')}"
        branches += f"{{%- else -%}}{_gather('ns.instruction')}{{%- endif -%}}"
        tail = (
            f"{{%- if add_generation_prompt -%}}{flush}{self._out(before)}"
            f"{{%- elif messages[-1]['role'] != 'assistant' -%}}{flush}{{%- endif -%}}"
        )
        return f"{head}{{%- for m in messages -%}}{self.content}{branches}{{%- endfor -%}}{tail}"

    def _out(self, *pieces: str) -> str:
        """Shows the pieces; mended, each is looked at together with the text before it (see `Guard.mend`)."""
        if self.mended is None:
            return _out(*pieces)
        tokens = f"[{', '.join(map(literal, self.mended))}]"
        shown = ""
        for piece in pieces:
            if piece != "''":
                look = _if("ns.tail and p and t in ns.tail ~ p", _set("ns.seam", "' '"))
                shown += (
                    _set("p", piece)
                    + _set("ns.seam", "''")
                    + f"{{%- for t in {tokens} -%}}{look}{{%- endfor -%}}"
                    + _out("ns.seam", "p")
                    + _set("ns.tail", f"(ns.tail ~ ns.seam ~ p)[-{self.mended.reach}:]")
                )
        return shown

    def _flush(self) -> str:
        """What is asked before an answer: preamble or separator, instruction, input."""
        layout = self.layout
        lone = _if("not ns.input", _set("ns.input", "ns.instruction") + _set("ns.instruction", "''"))
        first = self._out(self._preamble(), literal(layout.preamble.after)) + _set("ns.first", "false")
        if layout.input is None:
            shown = _if("ns.instruction", self._out(literal(layout.join))) + self._out("ns.input")
        else:
            shown = self._out(literal(layout.input), "ns.input")
        return (
            (lone if layout.lone_user == "input" else "")
            + _if("ns.first", first, self._out(literal(layout.separator)))
            + self._out(literal(layout.turn))
            + _if("ns.instruction", self._out(literal(layout.instruction), "ns.instruction"))
            + _if("ns.input", shown)
        )

    def _preamble(self) -> str:
        preamble = self.layout.preamble
        with_input = preamble.text if preamble.with_input is None else preamble.with_input
        texts = [literal(preamble.text), literal(with_input)]
        if preamble.dated:
            texts = [f"strftime_now({text})" for text in texts]
        chosen = texts[0] if texts[0] == texts[1] else f"({texts[1]} if ns.input else {texts[0]})"
        return f"({chosen} if ns.system is none else ns.system)" if self.layout.system == "preamble" else chosen


def _gather(name: str) -> str:
    return _if("c", _set(name, f"{name} ~ '\\n' ~ c if {name} else c"))


def guarded_messages(replacements: Sequence[tuple[str, str]], folded: Sequence[str], join: str) -> str:
    """Jinja that replaces ``messages`` by guarded ones, with the ``folded`` roles joined to the user's turns.

    It goes in front of a tokenizer's own template.
    """
    calls = "(m['tool_calls'] if m['tool_calls'] is string else m['tool_calls']|tojson)"
    with_calls = _set("c", f"(c ~ '\\n' if c else '') ~ {calls}")
    is_folded = f"m['role'] in [{', '.join(map(literal, folded))}]"
    last = "shortstack.turns[-1]['content']"
    both = f"{last} ~ ({literal(join)} if {last} and c else '') ~ c"
    joined = _set("shortstack.turns", f"shortstack.turns[:-1] + [{{'role': 'user', 'content': {both}}}]")
    own = _set("shortstack.turns", "shortstack.turns + [{'role': r, 'content': c}]")
    condition = (
        "shortstack.turns and r == 'user' and shortstack.turns[-1]['role'] == 'user' and (f or shortstack.folded)"
    )
    return (
        _set("shortstack", "namespace(turns=[], folded=false)")
        + "{%- for m in messages -%}"
        + _set("f", is_folded)
        + _set("r", "'user' if f else m['role']")
        + _set("c", "m['content'] if m['content'] else ''")
        + _if("m['role'] == 'assistant' and m['tool_calls']", with_calls)
        + _set("c", f"c{_guard_filters(replacements)}")
        + _if(condition, joined, own)
        + _set("shortstack.folded", "f")
        + "{%- endfor -%}"
        + _set("messages", "shortstack.turns")
    )
