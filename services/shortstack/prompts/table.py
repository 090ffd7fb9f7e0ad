"""Prints the table of prompt formats for docs/prompts.md: ``python -m shortstack.prompts.table``."""

from __future__ import annotations

import sys
from typing import Final

from shortstack.prompts.declared import DeclaredFormat
from shortstack.prompts.formats import PromptFormats
from shortstack.prompts.prompt_format import PromptFormat

__all__ = ["format_table"]

_ROLES: Final = ("system", "context", "user", "tool")
_EOS: Final = {"every": "end token, each answer", "last": "end token, last answer", "none": ""}


def _code(text: str) -> str:
    """``text`` as inline code in a table's cell, its line breaks shown."""
    return "`" + text.replace("\n", "\\n").replace("|", "\\|") + "`"


def _closes(one: PromptFormat) -> str:
    text = one.close_text() if one.eos != "every" else ""
    return " + ".join(filter(None, (_code(text) if text else "", _EOS[one.eos])))


def _guards(one: PromptFormat) -> str:
    return "markers" if one.guard.tokens else "none"


def format_table(formats: PromptFormats) -> str:
    """A Markdown table: one line a format, with what becomes of each role.

    Beside it stands the source of the template. ``base`` is not in it, for it depends on the model.
    """
    lines = [
        f"| format | {' | '.join(_ROLES)} | an answer closes with | stop strings | guard | source |",
        "|---" * (len(_ROLES) + 5) + "|",
    ]
    for name in formats.names():
        one = formats.get(name)
        source = one.declaration.source if isinstance(one, DeclaredFormat) else "the base model's own template"
        roles = one.roles()
        stop = ", ".join(map(_code, one.stop)) or "–"
        cells = (_code(name), *(roles[role] for role in _ROLES), _closes(one), stop, _guards(one), source)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(format_table(PromptFormats.builtin()))
