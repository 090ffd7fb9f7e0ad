"""Jobs whose request is acknowledged and whose snapshot nobody has written yet, for the threads that are asked."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from shortstack.core.clock import Clock
from shortstack.messages.v1 import training_pb2 as tr

__all__ = ["Submitted"]

_KEPT_S: Final = 900.0
"""A request that the controller has set aside is never written; it must not be shown for ever."""


class Submitted:
    """Snapshots built from requests, each until the controller shows its own. Never change what it gives."""

    def __init__(self, clock: Clock) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._jobs: dict[str, tuple[float, tr.JobSnapshot]] = {}

    def add(self, job: tr.JobSnapshot) -> None:
        """Takes a job whose request was acknowledged just now."""
        with self._lock:
            self._jobs[job.job] = (self._clock.monotonic(), job)

    def beside(self, shown: Mapping[str, tr.TrainingRecord]) -> dict[str, tr.JobSnapshot]:
        """Those that are not among ``job/ID`` of what is shown."""
        oldest = self._clock.monotonic() - _KEPT_S
        with self._lock:
            self._jobs = {
                name: (at, job) for name, (at, job) in self._jobs.items() if f"job/{name}" not in shown and at > oldest
            }
            return {name: job for name, (_, job) in self._jobs.items()}
