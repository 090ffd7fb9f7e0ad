"""Waiting in tests: for something to come true, never for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    what: str | Callable[[], object] = "",
    *,
    deadline_s: float = 60.0,
    every_s: float = 0.02,
) -> T:
    """The first true thing that ``condition`` gives.

    Args:
        condition: asked again and again; what it raises ends the wait.
        what: is waited for, or a way to say what there is instead; stands in the failure.
        deadline_s: seconds until the wait fails; long enough for a busy machine.
        every_s: seconds between two looks.

    Raises:
        AssertionError: it did not come true in time.
    """
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(every_s)
    return found
