"""``runs``: list, watch, show, cancel, explain."""

from __future__ import annotations

import json
import time
from datetime import UTC
from typing import Annotated, Any

import grpc
import typer
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn

from shortstack.cli.connection import Connection
from shortstack.cli.given import settings_given
from shortstack.cli.output import Elapsed, Json, console, errors, show
from shortstack.core.errors import Conflict
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as pb

__all__ = ["app", "job_row", "job_state", "watch_job"]

app = typer.Typer(help="Training jobs and their runs.", no_args_is_help=True)

_ENDED = (tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED)
_EVENTS = 2000
_WARNINGS = 10
_COUNT_S = 620.0
"""Counting tokens may take five minutes, and another's count may come first."""
_AWAY_S = 300.0
"""How long a watched job may be without its service."""
Id = Annotated[str, typer.Argument(help="Job id (ftjob-…) or run id; its first 8 characters will do.")]


def job_state(state: tr.JobState.ValueType) -> str:
    """``running``, … of an enum value."""
    return tr.JobState.Name(state).removeprefix("JOB_STATE_").lower()


def run_state(state: tr.RunState.ValueType) -> str:
    """``waiting``, … of an enum value."""
    return tr.RunState.Name(state).removeprefix("RUN_STATE_").lower()


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
        "run": run.run,
        "created_at": job.created_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"),
        "error": job.error or run.message,
    }


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Jobs to show.")] = 20, as_json: Json = False
) -> None:
    """List jobs, newest first."""
    connection = Connection.open()
    answer = connection.training.ListRuns(pb.ListRunsRequest(owner=connection.owner, limit=limit), timeout=30)
    rows = [job_row(found) for found in answer.runs]
    columns = ["job", "state", "dataset", "step", "loss", "attempt", "model", "run", "created_at", "error"]
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


@app.command()
def explain(
    dataset: Annotated[str, typer.Argument(help="Name of a dataset that is ready.")],
    train: Annotated[
        str, typer.Option(help="Settings as for `datasets publish`: a YAML file, or key=value,key=value.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what training on a dataset would take, with which settings; nothing is trained."""
    connection = Connection.open()
    request = json.dumps({"train": settings_given(train, "--train")})
    answer = connection.training.EstimateRun(
        pb.EstimateRunRequest(owner=connection.owner, dataset=dataset, request_json=request), timeout=_COUNT_S
    )
    explained = json.loads(answer.explain_json)
    if as_json:
        print(json.dumps(explained, indent=2))
        return
    row = {"records": answer.records, "tokens": answer.tokens, "steps": answer.steps}
    show([{**row, "records_a_step": explained["effective_batch"]}], [*row, "records_a_step"], as_json=False)
    config = json.loads(answer.config_json)
    settings = [{"setting": key, "value": json.dumps(value)} for key, value in sorted(config.items())]
    show(settings, ["setting", "value"], as_json=False)


@app.command("show")
def show_job(job: Id) -> None:
    """Print a job, its steps, its run and what went wrong last, newest first, as JSON."""
    connection = Connection.open()
    found = connection.training.GetRun(pb.GetRunRequest(owner=connection.owner, id=job), timeout=30)
    steps = [
        {"name": s.name, "state": tr.StepState.Name(s.state).removeprefix("STEP_STATE_").lower(), "message": s.message}
        for s in found.job.steps
    ]
    events = connection.training.ListEvents(
        pb.ListEventsRequest(owner=connection.owner, id=job, limit=_EVENTS), timeout=30
    ).events
    warnings = [
        {"time": e.time.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"), "message": e.message}
        for e in events
        if e.level in ("warn", "error")
    ]
    about = {
        "steps": steps,
        "run_state": run_state(found.run.state),
        "waiting": found.run.message,
        "warnings": warnings[:_WARNINGS],
    }
    print(json.dumps({**job_row(found), **about, "run_dir": found.run.run_dir}, indent=2))


class _Bars:
    """One bar for training steps, one line for what goes on beside it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("waiting", total=None, steps="", words="")

    def job(self, job: tr.JobSnapshot) -> None:
        """Shows what goes on beside training."""
        name, words = _standing(job)
        if name != "train":
            self._progress.update(self._task, description=name, words=words)

    def run(self, run: tr.RunSnapshot) -> None:
        """Shows the step."""
        if run.max_steps and run.state != tr.RUN_STATE_WAITING:
            name = "train" if run.step < run.max_steps else "export"
            steps = f"{run.step}/{run.max_steps}"
            self._progress.update(
                self._task, description=name, completed=run.step, total=run.max_steps, steps=steps, words=_speed(run)
            )


class _Lines:
    """For a log file: a line when the step of the job changes, and one every tenth of the training."""

    def __init__(self) -> None:
        self._last = ""

    def job(self, job: tr.JobSnapshot) -> None:
        """Says what goes on beside training."""
        name, words = _standing(job)
        if name != "train":
            self._say(name, f"{name}: {words}" if words else name)

    def run(self, run: tr.RunSnapshot) -> None:
        """Says the step."""
        if run.max_steps and run.step and run.state != tr.RUN_STATE_WAITING:
            tenth = 10 * run.step // run.max_steps
            self._say(f"train {tenth}", f"train: step {run.step} of {run.max_steps}, {_speed(run)}")

    def _say(self, key: str, line: str) -> None:
        if key != self._last:
            self._last = key
            errors().print(line, markup=False, highlight=False)


def _standing(job: tr.JobSnapshot) -> tuple[str, str]:
    """The step that a job is at, and what there is to say of it."""
    held = next((s for s in job.steps if s.state == tr.STEP_STATE_WAITING and s.message), None)
    if held is not None and job.state not in _ENDED:
        return "waiting", held.message
    if job.state == tr.JOB_STATE_QUEUED:
        return "queued", "waits for its turn; see: shortstack runs list"
    running = next((s for s in job.steps if s.state == tr.STEP_STATE_RUNNING), None)
    if running is None:
        return job_state(job.state), ""
    if running.name == "train" and not running.total:
        return "starting", running.message or "the trainer loads the base model and the records"
    counted = f"{running.done:,}/{running.total:,} {running.unit}" if running.total else ""
    return running.name, running.message or counted


def _columns() -> tuple[ProgressColumn, ...]:
    texts = (TextColumn("{task.fields[steps]}"), TextColumn("{task.fields[words]}", markup=False))
    return TextColumn("[bold]{task.description}"), BarColumn(), *texts, Elapsed()


def _speed(run: tr.RunSnapshot) -> str:
    return f"loss {run.loss:.3f}  {run.tokens_per_second:,.0f} tokens/s  {run.eta_seconds:,.0f} s left"


def watch_job(connection: Connection, job: str) -> tr.JobSnapshot:
    """Shows steps with loss and time left until the job has ended; the job as it then stands."""
    connection.training.GetRun(pb.GetRunRequest(owner=connection.owner, id=job), timeout=30)
    if errors().is_terminal:
        with Progress(*_columns(), console=errors()) as progress:
            last = _follow(connection, job, _Bars(progress))
    else:
        last = _follow(connection, job, _Lines())
    told = last.model if last.state == tr.JOB_STATE_SUCCEEDED else last.error
    console().print(f"{last.job}: {job_state(last.state)} {told}", markup=False)
    if last.remedy:
        console().print(last.remedy, markup=False)
    return last


def _follow(connection: Connection, job: str, bars: _Bars | _Lines) -> tr.JobSnapshot:
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
            _await_return(connection, job)


def _await_return(connection: Connection, job: str) -> None:
    """Waits until training answers again; one that is back but has not read its state yet says UNAVAILABLE, too."""
    deadline = time.monotonic() + _AWAY_S
    while True:
        left = max(1.0, deadline - time.monotonic())
        try:
            connection.training.GetRun(
                pb.GetRunRequest(owner=connection.owner, id=job), timeout=left, wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
        else:
            return
