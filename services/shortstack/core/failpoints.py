"""Named places where a fault test can end the process, as a power cut would.

A service calls ``failpoint("after_export")`` where a crash is interesting; nothing happens unless the
environment names that place. SIGKILL leaves no handler, buffer or ``finally`` a chance to tidy up.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from shortstack.core.errors import Fatal

__all__ = ["FAILPOINT_VARIABLE", "failpoint"]

FAILPOINT_VARIABLE: Final = "SHORTSTACK_FAILPOINT"
"""NAME or NAME:COUNT: the one place at which this process ends, at its COUNT-th visit (the first unless given). Or
@FOLDER: each file in it names a place and holds a count, and is asked for at each visit; who ends by it removes it
first, so it ends one life of one process, and all processes of a running stack can share the folder. Unset in every
real deployment."""

_FOLDER: Final = "@"


def failpoint(name: str) -> None:
    """Kills this process with SIGKILL if the environment variable names this place and the count is reached.

    Raises:
        Fatal: the count is no number.
    """
    wanted = os.environ.get(FAILPOINT_VARIABLE)
    if not wanted:
        return
    if wanted.startswith(_FOLDER):
        _by_file(name, Path(wanted.removeprefix(_FOLDER)) / name)
    elif wanted.split(":", 1)[0] == name and _due(wanted, 0):
        os.kill(os.getpid(), signal.SIGKILL)


def _by_file(name: str, file: Path) -> None:
    try:
        written = file.stat().st_mtime_ns
        if not _due(f"{name}:{file.read_text().strip() or 1}", written):
            return
        file.unlink()
    except FileNotFoundError:
        return  # nothing is wanted here, or another process was quicker to end by it
    os.kill(os.getpid(), signal.SIGKILL)


def _due(wanted: str, written: int) -> bool:
    return _visits(wanted, written)() >= _count(wanted)


@lru_cache(maxsize=16)
def _visits(wanted: str, written: int) -> Callable[[], int]:
    """The counter of visits that belongs to one setting: its text and, for a file, when it was written."""
    return itertools.count(1).__next__


def _count(wanted: str) -> int:
    text = wanted.partition(":")[2] or "1"
    if not text.isdecimal():
        raise Fatal(f'"{wanted}" is not NAME:COUNT', where=FAILPOINT_VARIABLE, remedy="COUNT is a whole number from 1.")
    return int(text)
