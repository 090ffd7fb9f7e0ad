"""Events of runs and jobs: those that the controller adds to the trainer's, and all of them for whoever asks."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import orjson

from shortstack.messages.v1.training_pb2 import (
    JOB_STATE_FAILED,
    JobSnapshot,
    JobState,
    RunSnapshot,
    TrainingEvent,
)

__all__ = ["EventBook", "broke_off_event", "job_event", "waiting_event"]

_KEPT: Final = 1000


class EventBook:
    """Read from ``training.events``: the newest thousand of each run or job. Safe to share between threads."""

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


def job_event(job: JobSnapshot, revision: int) -> TrainingEvent:
    """A job's new state. Attempt 0 is the controller's own; its numbers are revisions of the snapshot."""
    name = JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    failed = job.state == JOB_STATE_FAILED
    return TrainingEvent(
        job=job.job,
        attempt=0,
        seq=revision,
        type="job",
        level="error" if failed else "info",
        message=f"Job {name}: {job.error}" if failed else f"Job {name}",
        payload_json=orjson.dumps({"state": name, "model": job.model, "run": job.run}).decode(),
    )


def waiting_event(run: RunSnapshot, revision: int) -> TrainingEvent:
    """A run whose attempt cannot start, and why; numbered as `job_event` is."""
    return TrainingEvent(
        run=run.run,
        attempt=0,
        seq=revision,
        type="waiting",
        level="warn",
        message=run.message,
        payload_json=orjson.dumps({"attempt": run.attempt, "message": run.message}).decode(),
    )


def broke_off_event(run: RunSnapshot, why: str) -> TrainingEvent:
    """The end of an attempt that another one follows. One an attempt; the trainer's own are numbered from 1."""
    return TrainingEvent(
        run=run.run,
        attempt=run.attempt,
        seq=0,
        type="broke_off",
        level="warn",
        message=f"Attempt {run.attempt} broke off: {why}",
        payload_json=orjson.dumps({"attempt": run.attempt, "message": why}).decode(),
    )
