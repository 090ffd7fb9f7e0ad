"""Named places where a fault test can end the process, as a power cut would.

A service calls ``failpoint("after_export")`` where a crash is interesting; nothing happens unless the
environment names that place. SIGKILL leaves no handler, buffer or ``finally`` a chance to tidy up.
"""

from __future__ import annotations

import os
import signal
from typing import Final

__all__ = ["FAILPOINT_VARIABLE", "failpoint"]

FAILPOINT_VARIABLE: Final = "SHORTSTACK_FAILPOINT"
"""Names the one failpoint at which this process ends; unset in every real deployment."""


def failpoint(name: str) -> None:
    """Kills this process with SIGKILL if the environment variable names this place."""
    if os.environ.get(FAILPOINT_VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
