"""What commands print: tables for people, JSON for programs, errors that say what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Table
from rich.text import Text

__all__ = ["Elapsed", "Json", "console", "errors", "shorten", "show"]

_IDS = ("publication", "run", "version")
"""Columns of which a table shows as much as commands need to tell one from another; JSON has all."""
_ID_WIDTH = 12

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
"""The option of every command that lists."""

_STATES = {
    "ready": "green",
    "served": "green",
    "succeeded": "green",
    "running": "cyan",
    "formatting": "cyan",
    "held": "yellow",
    "stalled": "yellow",
    "waiting": "yellow",
    "unready": "yellow",
    "away": "red",
    "full": "red",
    "failed": "red",
    "refused": "red",
    "died": "red",
}


def console() -> Console:
    """Standard output; without a terminal wide enough that no cell is cut."""
    return Console(width=None if sys.stdout.isatty() else 200)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True)


class Elapsed(ProgressColumn):
    """Time since a bar's start, also past its last step: rich's own stops there, though what follows takes minutes."""

    def render(self, task: Task) -> Text:
        """As 0:01:22."""
        return Text(str(timedelta(seconds=int(task.elapsed or 0.0))), style="progress.elapsed")


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str = "") -> None:
    """Prints rows.

    Args:
        columns: keys to show, in order; JSON has all keys.
        empty: what to say when there are no rows.
    """
    if as_json:
        print(json.dumps(list(rows), indent=2, ensure_ascii=False, default=str))
        return
    if not rows:
        errors().print(empty or "Nothing to list.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(column, row.get(column, "")) for column in columns))
    console().print(table)


def _cell(column: str, value: Any) -> Text:
    if value is None or isinstance(value, bool):
        value = {None: "", True: "yes", False: "no"}[value]
    text = f"{value:,}" if isinstance(value, int) else str(value)
    text = text[:_ID_WIDTH] if column in _IDS else text
    return Text(text, style=_STATES.get(text, "") if column == "state" else "")


def shorten(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
