"""Events of runs and jobs, kept for whoever asks: the newest thousand of each, in order of (attempt, seq)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from shortstack.messages.v1.training_pb2 import TrainingEvent

__all__ = ["EventBook"]

_KEPT: Final = 1000


class EventBook:
    """Read from ``training.events``. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, list[TrainingEvent]] = defaultdict(list)
        self._seen: dict[str, set[tuple[int, int, str]]] = defaultdict(set)

    def add(self, event: TrainingEvent) -> bool:
        """Takes an event; whether it was news (a retry ships one twice)."""
        owner = event.run or event.job
        identity = (event.attempt, event.seq, event.type)
        with self._lock:
            if identity in self._seen[owner]:
                return False
            self._seen[owner].add(identity)
            kept = self._events[owner]
            kept.append(event)
            if len(kept) > _KEPT:
                del kept[: len(kept) - _KEPT]
        return True

    def of(self, owners: Iterable[str]) -> list[TrainingEvent]:
        """Events of runs and jobs together, by time."""
        with self._lock:
            found = [event for owner in owners if owner for event in self._events.get(owner, ())]
        return sorted(found, key=lambda e: (e.time.ToNanoseconds(), e.attempt, e.seq))
