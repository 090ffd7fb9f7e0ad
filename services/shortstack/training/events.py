"""Events of runs and jobs that the controller adds to the trainer's."""

from __future__ import annotations

import orjson

from shortstack.messages.v1.training_pb2 import (
    JOB_STATE_FAILED,
    JobSnapshot,
    JobState,
    RunSnapshot,
    TrainingEvent,
)

__all__ = ["broke_off_event", "job_event", "waiting_event"]


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
