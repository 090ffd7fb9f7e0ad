"""All events of runs and jobs, for whoever asks. What is kept of one is bounded, and what ended long ago is let go."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

import orjson

from shortstack.messages.v1.training_pb2 import TrainingEvent

__all__ = ["EventBook"]

_METRICS: Final = frozenset({"step", "eval"})
_STEPS: Final = 1000
_CHECKPOINTS: Final = 600
"""With the metrics of their steps."""
_OTHERS: Final = 300
"""Together under what the gateway asks for at once (2000)."""


class _Numbers:
    """A set of numbers that mostly follow each other, as ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, number: int) -> bool:
        """Takes a number; whether it was new."""
        at = bisect_right(self._starts, number)
        if at and number < self._ends[at - 1]:
            return False
        before = at > 0 and self._ends[at - 1] == number
        after = at < len(self._starts) and self._starts[at] == number + 1
        if before and after:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif before:
            self._ends[at - 1] = number + 1
        elif after:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)
        return True


class _History:
    """Events of one run or job: a window of steps, apart from what is said seldom."""

    def __init__(self) -> None:
        self._seen: dict[int, _Numbers] = {}
        self._steps: deque[TrainingEvent] = deque(maxlen=_STEPS)
        self._checkpoints: deque[TrainingEvent] = deque(maxlen=_CHECKPOINTS)
        self._others: deque[TrainingEvent] = deque(maxlen=_OTHERS)
        self._place = (-1, -1)

    def add(self, event: TrainingEvent) -> bool:
        if not self._seen.setdefault(event.attempt, _Numbers()).add(event.seq):
            return False
        if event.type == "checkpoint":
            self._place = _place(event)
            own = [step for step in self._steps if _place(step) == self._place]
            self._checkpoints.extend([*own, event])
            for step in own:
                self._steps.remove(step)
        elif event.type not in _METRICS:
            self._others.append(event)
        elif _place(event) == self._place:
            self._checkpoints.append(event)
        else:
            self._steps.append(event)
        return True

    def __iter__(self) -> Iterator[TrainingEvent]:
        return chain(self._others, self._checkpoints, self._steps)


class EventBook:
    """Read from ``training.events``. Safe to share between threads.

    Of each run or job: the newest thousand steps; and, apart from them, checkpoints with the metrics of their steps,
    and whatever else was said. A double has the attempt and the number of an event that came before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: dict[str, _History] = {}

    def add(self, event: TrainingEvent) -> bool:
        """Takes an event; whether it was news (a retry ships one twice)."""
        with self._lock:
            return self._histories.setdefault(event.run or event.job, _History()).add(event)

    def of(self, owners: Iterable[str]) -> list[TrainingEvent]:
        """Events of runs and jobs together, by time."""
        with self._lock:
            found = [event for owner in owners if owner for event in self._histories.get(owner, ())]
        return sorted(found, key=lambda e: (e.time.ToNanoseconds(), e.attempt, e.seq))

    def owners(self) -> list[str]:
        """Runs and jobs that something is kept of."""
        with self._lock:
            return list(self._histories)

    def forget(self, owner: str) -> None:
        """Lets everything of a run or job go."""
        with self._lock:
            self._histories.pop(owner, None)


def _place(event: TrainingEvent) -> tuple[int, Any]:
    """Attempt and step; the step of an event that names none equals no other."""
    payload = orjson.loads(event.payload_json or b"{}")
    return event.attempt, payload.get("step", object()) if isinstance(payload, dict) else object()
