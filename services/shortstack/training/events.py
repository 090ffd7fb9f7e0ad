"""Events of runs and jobs that the controller adds to the trainer's."""

from __future__ import annotations

import orjson

from shortstack.messages.v1.training_pb2 import (
    JOB_STATE_FAILED,
    JOB_STATE_RUNNING,
    JobSnapshot,
    JobState,
    RunSnapshot,
    TrainingEvent,
)

__all__ = ["broke_off_event", "deploy_words", "job_event", "waiting_event"]


def job_event(job: JobSnapshot, revision: int) -> TrainingEvent:
    """A job's new state, or what its model waits for. Attempt 0 is the controller's own; its numbers are revisions of
    the snapshot."""
    name = JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    failed = job.state == JOB_STATE_FAILED
    words = job.error if failed else deploy_words(job)
    return TrainingEvent(
        job=job.job,
        attempt=0,
        seq=revision,
        type="job",
        level="error" if failed else "info",
        message=f"Job {name}: {words}" if words else f"Job {name}",
        payload_json=orjson.dumps({"state": name, "model": job.model, "run": job.run}).decode(),
    )


def deploy_words(job: JobSnapshot) -> str:
    """What a trained job waits for until its model is served; "" for any other."""
    if job.state != JOB_STATE_RUNNING:
        return ""
    return next((step.message for step in job.steps if step.name == "deploy"), "")


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
