"""``runs``: what is shown of a run that waits, and of one whose files are elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from shortstack.cli import runs
from shortstack.cli.main import app
from shortstack.core.errors import Invalid
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as pb
from shortstack.training.v1 import training_pb2_grpc

NO_NODE = "pod train-a1 cannot be scheduled: 0/1 nodes are available. Make room."


class Training(training_pb2_grpc.TrainingServiceServicer):
    """A job whose run waits, then trains, then is done; its folder is an address of an object store."""

    def __init__(self) -> None:
        self.job = tr.JobSnapshot(job="ftjob-1", dataset="faq", state=tr.JOB_STATE_QUEUED, run="r" * 32)
        self.job.steps.add(name="train", state=tr.STEP_STATE_WAITING, message=NO_NODE)
        self.run = tr.RunSnapshot(run="r" * 32, attempt=1, state=tr.RUN_STATE_WAITING, message=NO_NODE)
        self.run.run_dir = "s3://bucket/stack/runs/r"

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(job=self.job, run=self.run)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=[pb.GetRunResponse(job=self.job, run=self.run)])

    def ListEvents(self, request: pb.ListEventsRequest, context: grpc.ServicerContext) -> pb.ListEventsResponse:
        step = tr.TrainingEvent(type="step", level="info", seq=7)
        broke_off = tr.TrainingEvent(type="broke_off", level="warn", message="Attempt 1 broke off: Evicted")
        return pb.ListEventsResponse(events=[step, broke_off])

    def EstimateRun(self, request: pb.EstimateRunRequest, context: grpc.ServicerContext) -> pb.EstimateRunResponse:
        config = {"num_epochs": 2.0, **json.loads(request.request_json)["train"]}
        explained = {"config": config, "effective_batch": 8, "train": {"tokens": 900}}
        told = {"config_json": json.dumps(config), "explain_json": json.dumps(explained)}
        return pb.EstimateRunResponse(records=80, tokens=1800, steps=20, **told)

    def WatchRun(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchRunResponse]:
        yield pb.WatchRunResponse(run=self.run)
        yield pb.WatchRunResponse(job=self.job)
        running = tr.RunSnapshot(state=tr.RUN_STATE_RUNNING, step=5, max_steps=10, loss=1.5)
        yield pb.WatchRunResponse(run=running)
        yield pb.WatchRunResponse(job=tr.JobSnapshot(job="ftjob-1", state=tr.JOB_STATE_SUCCEEDED, model="ft:base:x"))


class Restarting(Training):
    """Breaks off a watch, and then is back before it has read its state."""

    def __init__(self) -> None:
        super().__init__()
        self.watched, self.refusals = 0, 3

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        if self.watched and self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not read yet")
        return super().GetRun(request, context)

    def WatchRun(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchRunResponse]:
        self.watched += 1
        if self.watched == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going")
        yield from super().WatchRun(request, context)


class Loading(Training):
    """Its run starts at once, and loads its model before the first step."""

    def WatchRun(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchRunResponse]:
        yield pb.WatchRunResponse(job=tr.JobSnapshot(job="ftjob-1", state=tr.JOB_STATE_QUEUED))
        starts = tr.JobSnapshot(job="ftjob-1", state=tr.JOB_STATE_RUNNING)
        starts.steps.add(name="train", state=tr.STEP_STATE_RUNNING, unit="steps")
        yield pb.WatchRunResponse(job=starts)
        yield from list(super().WatchRun(request, context))[2:]


@pytest.fixture
def service() -> Training:
    """Behind the commands."""
    return Training()


@pytest.fixture
def runner(service: Training) -> Iterator[CliRunner]:
    """Commands against the service."""
    server = grpc.server(ThreadPoolExecutor(2))
    training_pb2_grpc.add_TrainingServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield CliRunner(env={"SHORTSTACK_TRAINING_ADDRESS": f"127.0.0.1:{port}", "COLUMNS": "300"})
    server.stop(0)


def test_a_run_that_waits_is_listed_with_what_it_waits_for(runner: CliRunner) -> None:
    result = runner.invoke(app, ["runs", "list", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["state"], row["error"], row["run"]) == ("queued", NO_NODE, "r" * 32)
    (line,) = [line for line in runner.invoke(app, ["runs", "list"]).stdout.splitlines() if "ftjob-1" in line]
    assert "r" * 12 in line.split(), "as much of the id as other commands take"


def test_a_run_is_shown_with_its_state_and_the_address_of_its_files(runner: CliRunner) -> None:
    result = runner.invoke(app, ["runs", "show", "ftjob-1"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["run_state"], shown["waiting"]) == ("waiting", NO_NODE)
    assert shown["run_dir"] == "s3://bucket/stack/runs/r"
    assert [warning["message"] for warning in shown["warnings"]] == ["Attempt 1 broke off: Evicted"]
    assert shown["steps"] == [{"name": "train", "state": "waiting", "message": NO_NODE}]


def test_watching_says_what_is_waited_for_and_then_the_steps(runner: CliRunner) -> None:
    result = runner.invoke(app, ["runs", "watch", "ftjob-1"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"waiting: {NO_NODE}"
    assert lines[1].startswith("train: step 5 of 10")
    assert lines[-1] == "ftjob-1: succeeded ft:base:x"


@pytest.mark.parametrize("service", [Loading()])
def test_a_run_that_loads_its_model_does_not_seem_to_wait(runner: CliRunner, service: Loading) -> None:
    lines = runner.invoke(app, ["runs", "watch", "ftjob-1"]).output.splitlines()
    assert lines[0].startswith("queued: ")
    assert lines[1] == "starting: the trainer loads the base model and the records"
    assert lines[2].startswith("train: step 5 of 10")


def test_the_time_of_a_bar_goes_on_after_training_and_its_steps_are_no_question() -> None:
    now = 0.0
    screen = Console(file=io.StringIO(), width=200, force_terminal=True)
    progress = Progress(*runs._columns(), console=screen, get_time=lambda: now, auto_refresh=False)
    bars = runs._Bars(progress)

    def shown() -> str:
        with screen.capture() as seen:
            screen.print(progress.make_tasks_table(progress.tasks))
        return seen.get()

    bars.job(tr.JobSnapshot(job="ftjob-1", state=tr.JOB_STATE_QUEUED))
    assert "?" not in shown()
    bars.run(tr.RunSnapshot(state=tr.RUN_STATE_EXPORTING, step=10, max_steps=10))
    now = 82.0
    assert "10/10" in shown()
    assert "0:01:22" in shown()


@pytest.mark.parametrize("service", [Restarting()])
def test_a_job_is_watched_over_a_restart_of_its_service(runner: CliRunner, service: Restarting) -> None:
    result = runner.invoke(app, ["runs", "watch", "ftjob-1"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "ftjob-1: succeeded ft:base:x"
    assert (service.watched, service.refusals) == (2, 0)


def test_what_a_training_would_take_is_told_with_its_settings(runner: CliRunner) -> None:
    arguments = ["runs", "explain", "faq", "--train", "lora_r=8,base_model=tiny"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.stdout.splitlines()]
    assert words[1] == ["80", "1,800", "20", "8"]
    assert [row for row in words if len(row) == 2][1:] == [
        ["base_model", '"tiny"'],
        ["lora_r", "8"],
        ["num_epochs", "2.0"],
    ]
    as_json = runner.invoke(app, [*arguments, "--json"])
    assert json.loads(as_json.stdout)["config"] == {"num_epochs": 2.0, "lora_r": 8, "base_model": "tiny"}


def test_a_setting_that_is_no_pair_is_refused_before_anything_is_asked(runner: CliRunner) -> None:
    result = runner.invoke(app, ["runs", "explain", "faq", "--train", "lora_r"])
    assert isinstance(result.exception, Invalid)
    assert "--train" in str(result.exception)
