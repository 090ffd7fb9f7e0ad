"""What is left of a local stack: every process that has the stack's mark in its environment."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["processes_of"]


def processes_of(root: Path) -> list[str]:
    """Command lines of the processes of the stack in folder ``root``, trainers and other children among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SHORTSTACK_STACK") == str(root):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found
