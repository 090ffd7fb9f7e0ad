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
from typing import Final

from shortstack.core.errors import Fatal

__all__ = ["FAILPOINT_VARIABLE", "failpoint"]

FAILPOINT_VARIABLE: Final = "SHORTSTACK_FAILPOINT"
"""NAME or NAME:COUNT: the one place at which this process ends, at its COUNT-th visit (the first unless given).

Unset in every real deployment."""


def failpoint(name: str) -> None:
    """Kills this process with SIGKILL if the environment variable names this place and the count is reached.

    Raises:
        Fatal: the variable's count is no number.
    """
    wanted = os.environ.get(FAILPOINT_VARIABLE)
    if wanted is not None and wanted.split(":", 1)[0] == name and _visits(wanted)() >= _count(wanted):
        os.kill(os.getpid(), signal.SIGKILL)


@lru_cache(maxsize=16)
def _visits(wanted: str) -> Callable[[], int]:
    """The counter of visits that belongs to one setting of the variable."""
    return itertools.count(1).__next__


def _count(wanted: str) -> int:
    text = wanted.partition(":")[2] or "1"
    if not text.isdecimal():
        raise Fatal(f'"{wanted}" is not NAME:COUNT', where=FAILPOINT_VARIABLE, remedy="COUNT is a whole number from 1.")
    return int(text)
