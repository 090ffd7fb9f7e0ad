"""``runs``: list, watch, cancel."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Annotated, Any

import grpc
import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shortstack.cli.connection import Connection
from shortstack.cli.output import Json, console, errors, show
from shortstack.core.errors import Conflict
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as pb

__all__ = ["app", "job_row", "job_state", "watch_job"]

app = typer.Typer(help="Training jobs and their runs.", no_args_is_help=True)

_ENDED = (tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED)
Id = Annotated[str, typer.Argument(help="Job id (ftjob-…) or run id.")]


def job_state(state: tr.JobState.ValueType) -> str:
    """``running``, … of an enum value."""
    return tr.JobState.Name(state).removeprefix("JOB_STATE_").lower()


def job_row(found: pb.GetRunResponse) -> dict[str, Any]:
    """A job and its run as a row of a table."""
    job, run = found.job, found.run
    return {
        "job": job.job,
        "state": job_state(job.state),
        "dataset": job.dataset,
        "step": f"{run.step}/{run.max_steps}" if run.max_steps else "",
        "loss": round(run.loss, 3) if run.step else "",
        "attempt": run.attempt,
        "model": job.model,
        "run": run.run[:12],
        "created_at": job.created_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"),
        "error": job.error,
    }


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Jobs to show.")] = 20, as_json: Json = False
) -> None:
    """List jobs, newest first."""
    connection = Connection.open()
    answer = connection.training.ListRuns(pb.ListRunsRequest(owner=connection.owner, limit=limit), timeout=30)
    rows = [job_row(found) for found in answer.runs]
    columns = ["job", "state", "dataset", "step", "loss", "attempt", "model", "created_at", "error"]
    show(rows, columns, as_json=as_json, empty="No jobs. Publish a dataset with --train to open one.")


@app.command()
def watch(job: Id) -> None:
    """Follow a job to its end; exits 1 if it fails."""
    ended = watch_job(Connection.open(), job)
    if ended.state != tr.JOB_STATE_SUCCEEDED:
        raise typer.Exit(1)


@app.command()
def cancel(job: Id) -> None:
    """Cancel a job; final at once."""
    connection = Connection.open()
    answer = connection.training.CancelRun(pb.CancelRunRequest(owner=connection.owner, id=job), timeout=30)
    if answer.job.state != tr.JOB_STATE_CANCELLED:
        raise Conflict(f"job {answer.job.job} has {job_state(answer.job.state)} already")
    console().print(f"{answer.job.job}: cancelled")


@app.command("show")
def show_job(job: Id) -> None:
    """Print a job, its steps and its run as JSON."""
    connection = Connection.open()
    found = connection.training.GetRun(pb.GetRunRequest(owner=connection.owner, id=job), timeout=30)
    steps = [
        {"name": s.name, "state": tr.StepState.Name(s.state).removeprefix("STEP_STATE_").lower(), "message": s.message}
        for s in found.job.steps
    ]
    print(json.dumps({**job_row(found), "steps": steps, "run_dir": found.run.run_dir}, indent=2))


class _Bars:
    """One bar for training steps, one line for what goes on beside it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("waiting", total=None, words="")

    def job(self, job: tr.JobSnapshot) -> None:
        running = next((s for s in job.steps if s.state == tr.STEP_STATE_RUNNING), None)
        if running is not None and running.name != "train":
            counted = f"{running.done:,}/{running.total:,} {running.unit}" if running.total else ""
            words = running.message or counted
            self._progress.update(self._task, description=running.name, words=words)

    def run(self, run: tr.RunSnapshot) -> None:
        if not run.max_steps:
            return
        words = f"loss {run.loss:.3f}  {run.tokens_per_second:,.0f} tokens/s  {run.eta_seconds:,.0f} s left"
        self._progress.update(
            self._task,
            description="train" if run.step < run.max_steps else "export",
            completed=run.step,
            total=run.max_steps,
            words=words,
        )


def watch_job(connection: Connection, job: str) -> tr.JobSnapshot:
    """Shows steps with loss and time left until the job has ended; the job as it then stands."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors()) as progress:
        bars = _Bars(progress)
        last = _follow(connection, job, bars)
    told = last.model if last.state == tr.JOB_STATE_SUCCEEDED else last.error
    console().print(f"{last.job}: {job_state(last.state)} {told}", markup=False)
    if last.remedy:
        console().print(last.remedy, markup=False)
    return last


def _follow(connection: Connection, job: str, bars: _Bars) -> tr.JobSnapshot:
    while True:
        try:
            for update in connection.training.WatchRun(pb.WatchRunRequest(owner=connection.owner, id=job)):
                match update.WhichOneof("update"):
                    case "job":
                        bars.job(update.job)
                        if update.job.state in _ENDED:
                            return update.job
                    case "run":
                        bars.run(update.run)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            connection.training.GetRun(
                pb.GetRunRequest(owner=connection.owner, id=job), timeout=30, wait_for_ready=True
            )
