"""Families whose records are columns of text: Alpaca's and h2oGPT's three parts, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shortstack.core.errors import Invalid
from shortstack.ingestion.families.family import Draft, Family, carried, text
from shortstack.records.message import Message

__all__ = ["ALPACA", "H2OGPT", "PROMPT_COMPLETION"]

_THREE_PARTS: Final = frozenset({"system", "instruction", "input", "output", "response"})
_PAIRS: Final = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "answer"),
)
_PAIR_COLUMNS: Final = frozenset({"system", "context"})


def _system(item: Mapping[str, Any]) -> tuple[Message, ...]:
    given = text(item, "system")
    return (Message("system", given),) if given else ()


def _three_parts(item: Mapping[str, Any]) -> Draft:
    """instruction → user, input → a context message after it, output (or response) → assistant.

    Where one of instruction and input is empty there is one user's turn and nothing is joined. Source: h2oGPT's
    prompter (``instruction``, ``input``, ``output``; missing columns are empty strings).
    """
    instruction, given = text(item, "instruction"), text(item, "input")
    answer = text(item, "output") or text(item, "response")
    if not (instruction or given or answer):
        columns = ", ".join(sorted(item)) or "none"
        raise Invalid(
            f"has none of instruction, input, output; its columns: {columns[:200]}",
            remedy='Map them by "columns": {"YOURS": "instruction", …}.',
        )
    turns = [Message("user", instruction or given)]
    if instruction and given:
        turns.append(Message("context", given))
    return Draft((*_system(item), *turns, Message("assistant", answer)), **carried(item, _THREE_PARTS))


def _alpaca_like(item: Mapping[str, Any]) -> bool:
    return "instruction" in item and ("output" in item or "response" in item)


def _h2ogpt_like(item: Mapping[str, Any]) -> bool:
    return "output" in item and ("instruction" in item or "input" in item)


def _pair_of(item: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in item and pair[1] in item), None)


def _prompt_completion(item: Mapping[str, Any]) -> Draft:
    pair = _pair_of(item)
    if pair is None:
        columns = ", ".join(sorted(item)) or "none"
        raise Invalid(
            f"has no prompt and completion, nor question and answer; its columns: {columns[:200]}",
            remedy='Map them by "columns": {"YOURS": "prompt", …}.',
        )
    context = text(item, "context")
    turns = [Message("user", text(item, pair[0]))]
    if context:
        turns.append(Message("context", context))
    turns.append(Message("assistant", text(item, pair[1])))
    return Draft((*_system(item), *turns), **carried(item, _PAIR_COLUMNS | set(pair)))


ALPACA: Final = Family("alpaca", _alpaca_like, _three_parts)
H2OGPT: Final = Family("h2ogpt", _h2ogpt_like, _three_parts)
PROMPT_COMPLETION: Final = Family("prompt_completion", lambda item: _pair_of(item) is not None, _prompt_completion)
