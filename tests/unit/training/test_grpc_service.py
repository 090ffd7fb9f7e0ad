"""TrainingService over a real server and channel, the controller on an in-memory broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import orjson
import pytest
from tests.unit.training.world import Running, World, export

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Conflict, Invalid, NotFound, ShortstackError, Transient
from shortstack.core.grpc import GrpcServer, channel, error_from_rpc
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.streams.broker import Outbound, Position
from shortstack.training.grpc_service import TrainingServicer
from shortstack.training.launcher import AttemptOrder
from shortstack.training.v1 import training_pb2 as pb
from shortstack.training.v1.training_pb2_grpc import TrainingServiceStub, add_TrainingServiceServicer_to_server


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    with world.started() as started:
        yield started


@pytest.fixture
def stub(world: World, running: Running) -> Iterator[Any]:
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("training", world.config))
        servicer = TrainingServicer(
            running.controller, running.datasets, world.bases, world.broker.producer(), world.clock, world.config
        )
        add = (add_TrainingServiceServicer_to_server, servicer)
        health = Health(60, SystemClock())
        server = GrpcServer("127.0.0.1", 0, [add], health, ["shortstack.training.v1.TrainingService"], telemetry)
        server.start()
        stack.callback(server.stop, 2.0)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                running.turn()
                world.clock.advance(0.1)
                stop.wait(0.005)

        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield TrainingServiceStub(stack.enter_context(channel(f"127.0.0.1:{server.port}")))


def submit(stub: Any, job: str = "", *, owner: str = "", dataset: str = "faq", **request: Any) -> tr.JobSnapshot:
    text = orjson.dumps({"train": {}, **request}).decode()
    asked = pb.SubmitRunRequest(owner=owner, job=job, dataset=dataset, request_json=text)
    return stub.SubmitRun(asked, timeout=20).job


def refused(call: Callable[[], Any]) -> ShortstackError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


class _Watching:
    """A call's context: active for as many looks as it is told."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_active(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


def impatient(world: World, running: Running) -> TrainingServicer:
    """The API beside a controller that a test turns."""
    producer = world.broker.producer()
    return TrainingServicer(
        running.controller, running.datasets, world.bases, producer, world.clock, world.config, opened_s=0.01
    )


def test_before_everything_is_read_nothing_is_said_to_be_missing(world: World) -> None:
    world.submit("ftjob-1")
    with world.started() as running:
        servicer = impatient(world, running)
        for ask in (
            lambda: servicer.GetRun(pb.GetRunRequest(id="ftjob-1"), None),
            lambda: servicer.ListRuns(pb.ListRunsRequest(), None),
            lambda: servicer.ListEvents(pb.ListEventsRequest(id="ftjob-1"), None),
            lambda: servicer.CancelRun(pb.CancelRunRequest(id="ftjob-1"), None),
        ):
            with pytest.raises(Transient, match="still reading"):
                ask()
        assert list(servicer.WatchRun(pb.WatchRunRequest(id="ftjob-1"), _Watching(3))) == []
        running.turn()
        assert servicer.GetRun(pb.GetRunRequest(id="ftjob-1"), None).job.job == "ftjob-1"
        assert [r.job.job for r in servicer.ListRuns(pb.ListRunsRequest(), None).runs] == ["ftjob-1"]
        assert any(
            update.HasField("job") for update in servicer.WatchRun(pb.WatchRunRequest(id="ftjob-1"), _Watching(3))
        )
        with pytest.raises(NotFound):
            servicer.GetRun(pb.GetRunRequest(id="ftjob-2"), None)


def test_a_submit_answers_once_it_is_acknowledged_and_the_job_is_there_from_then_on(world: World) -> None:
    asked = pb.SubmitRunRequest(job="ftjob-1", dataset="faq", request_json='{"train": {}, "deploy": {}}')
    with world.started() as running:
        servicer = impatient(world, running)
        job = servicer.SubmitRun(asked, None).job
        assert (job.job, job.owner, job.state) == ("ftjob-1", "default", tr.JOB_STATE_VALIDATING_FILES)
        assert servicer.SubmitRun(asked, None).job == job
        assert servicer.GetRun(pb.GetRunRequest(id="ftjob-1"), None).job == job
        world.clock.advance(1)
        running.turn()
        assert [r.job.job for r in servicer.ListRuns(pb.ListRunsRequest(), None).runs] == ["ftjob-1"]
        written = running.job("ftjob-1")
        assert servicer.GetRun(pb.GetRunRequest(id="ftjob-1"), None).job == written
        assert (written.created_at, written.request_json) == (job.created_at, job.request_json)
        asked.owner = "eve"
        with pytest.raises(Conflict):
            servicer.SubmitRun(asked, None)


def test_a_cancel_of_a_job_that_is_still_under_way_ends_it_when_it_comes(world: World) -> None:
    """A submit whose answer was lost must not leave a job that nobody knows of."""
    with world.started() as running:
        servicer = impatient(world, running)
        world.submit("ftjob-1")
        with pytest.raises(Transient):
            servicer.CancelRun(pb.CancelRunRequest(id="ftjob-1", owner="eve"), None)
        with pytest.raises(Transient):
            servicer.CancelRun(pb.CancelRunRequest(id="ftjob-1"), None)
        running.settle("ftjob-1", tr.JOB_STATE_CANCELLED)


def test_a_broker_that_acknowledges_nothing_is_no_error_of_the_service(world: World, running: Running) -> None:
    class Silent:
        def send(self, message: Outbound) -> Future[Position]:
            future: Future[Position] = Future()
            future.set_exception(TimeoutError())
            return future

    servicer = TrainingServicer(
        running.controller, running.datasets, world.bases, cast(Any, Silent()), world.clock, world.config
    )
    with pytest.raises(Transient, match="did not acknowledge"):
        servicer.SubmitRun(pb.SubmitRunRequest(job="ftjob-1", dataset="faq", request_json='{"train": {}}'), None)


def test_a_submitted_job_exists_at_once_and_the_same_id_is_the_same_job(world: World, stub: Any) -> None:
    job = submit(stub, "ftjob-1")
    assert job.state == tr.JOB_STATE_VALIDATING_FILES
    assert submit(stub, "ftjob-1").created_at == job.created_at
    assert submit(stub).job.startswith("ftjob-")


def test_nobody_submits_for_another_owner_by_the_request(world: World, stub: Any) -> None:
    job = submit(stub, "ftjob-1", owner="ann", kind="cancel", dataset="faq")
    assert job.owner == "ann"
    text = '{"train": {}, "owner": "bob", "job": "ftjob-9"}'
    made = stub.SubmitRun(pb.SubmitRunRequest(owner="ann", job="ftjob-2", dataset="faq", request_json=text), timeout=20)
    assert (made.job.job, made.job.owner) == ("ftjob-2", "ann")


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        ({"train": {"base_model": "tiny-lama"}}, 'Did you mean "tiny-llama"', "train.base_model"),
        ({"train": {"lora_target_modules": ["q_prj"]}}, 'Did you mean "q_proj"', "train.lora_target_modules"),
        ({"train": {"chat_template": "chatmll"}}, 'Did you mean "chatml"', "train.chat_template"),
        ({"train": {"output_dir": "/etc"}}, "Leave it out", "train.output_dir"),
        ({"train": {"lora_target_modules": ["embed_tokens"]}}, "no linear layer", "train.lora_target_modules"),
        ({"train": {"lora_rr": 4}}, "lora_r", "lora_rr"),
        ({"train": {"adapter": None}, "deploy": {}}, "adapter", "train.adapter"),
        ({"deploy": {"sufix": "x"}}, "suffix", "deploy.sufix"),
        ({"openai": {"hyperparameters": {"n_epochs": "many"}}}, "auto", "hyperparameters.n_epochs"),
        ({"openai": {"hyperparameters": {"epochs": 3}}}, "n_epochs", "hyperparameters.epochs"),
        ({"openai": {"seed": "x"}}, "whole number", "seed"),
        ({"dataset": ""}, "names its dataset", "dataset"),
    ],
)
def test_what_would_fail_later_is_refused_at_submission(
    stub: Any, request_: dict[str, Any], words: str, param: str
) -> None:
    error = refused(lambda: submit(stub, "ftjob-1", **request_))
    assert isinstance(error, Invalid)
    assert words in str(error)
    assert error.param == param


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_submission(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_processes": 2})
    asked = '{"train": {}, "openai": {"hyperparameters": {"batch_size": %d}}}'
    with world.started() as running:
        servicer = impatient(world, running)
        with pytest.raises(Invalid, match="multiple of 2") as caught:
            servicer.SubmitRun(pb.SubmitRunRequest(job="ftjob-1", dataset="faq", request_json=asked % 9), None)
        assert caught.value.param == "hyperparameters.batch_size"
        servicer.SubmitRun(pb.SubmitRunRequest(job="ftjob-1", dataset="faq", request_json=asked % 10), None)
        world.ready()
        running.until(lambda shown: any(name.startswith("run/") for name in shown))
        assert running.run().batch_size == 10


def test_a_job_is_watched_from_its_first_event_to_its_end(world: World, stub: Any) -> None:
    world.ready()
    submit(stub, "ftjob-1")
    updates = stub.WatchRun(pb.WatchRunRequest(id="ftjob-1"), timeout=20)
    states, events = [], []
    for update in updates:
        if update.HasField("job"):
            states.append(update.job.state)
        if update.HasField("event"):
            events.append(update.event.type)
        if update.run.state == tr.RUN_STATE_STARTING and world.launcher.orders and "step" not in events:
            run = world.launcher.orders[0].run
            world.event(run, 1, 1, type="step", step=1, max_steps=2, loss=1.0)
        if update.run.state == tr.RUN_STATE_RUNNING:
            world.launcher.succeed(world.launcher.orders[0].run, 1, export())
    assert states[-1] == tr.JOB_STATE_SUCCEEDED
    assert "step" in events
    assert states == sorted(states)


def test_jobs_are_found_by_either_id_and_only_by_their_owner(world: World, stub: Any) -> None:
    world.ready()
    submit(stub, "ftjob-1")
    watched = stub.WatchRun(pb.WatchRunRequest(id="ftjob-1"), timeout=20)
    run = next(update.run.run for update in watched if update.run.run)
    watched.cancel()
    for wanted in ("ftjob-1", run, run[:12]):
        found = stub.GetRun(pb.GetRunRequest(id=wanted))
        assert (found.job.job, found.run.run) == ("ftjob-1", run)
        assert isinstance(
            refused(lambda wanted=wanted: stub.GetRun(pb.GetRunRequest(id=wanted, owner="eve"))), NotFound
        )


def test_lists_are_newest_first_in_pages(world: World, stub: Any) -> None:
    for number in range(3):
        submit(stub, f"ftjob-{number}")
    page = stub.ListRuns(pb.ListRunsRequest(limit=2))
    assert [r.job.job for r in page.runs] == ["ftjob-2", "ftjob-1"]
    assert page.has_more
    rest = stub.ListRuns(pb.ListRunsRequest(limit=2, after="ftjob-1"))
    assert [r.job.job for r in rest.runs] == ["ftjob-0"]
    assert not rest.has_more
    assert isinstance(refused(lambda: stub.ListRuns(pb.ListRunsRequest(after="ftjob-9"))), NotFound)


def test_a_cancel_is_final_when_it_is_answered(world: World, stub: Any) -> None:
    submit(stub, "ftjob-1")
    job = stub.CancelRun(pb.CancelRunRequest(id="ftjob-1"), timeout=20).job
    assert job.state == tr.JOB_STATE_CANCELLED
    assert stub.CancelRun(pb.CancelRunRequest(id="ftjob-1"), timeout=20).job == job


def test_an_estimate_starts_nothing(world: World, running: Running) -> None:
    orders: list[AttemptOrder] = []

    def explain(order: AttemptOrder) -> dict[str, Any]:
        orders.append(order)
        train = {"records": 80, "tokens": 900}
        return {"config": {"max_steps": 20}, "train": train, "tokens": 1800, "schedule": {"max_steps": 20}}

    servicer = TrainingServicer(
        running.controller,
        running.datasets,
        world.bases,
        world.broker.producer(),
        world.clock,
        world.config,
        explain=explain,
    )
    text = '{"train": {"num_epochs": 2, "micro_batch_size": 8}}'
    with pytest.raises(NotFound):
        servicer.EstimateRun(pb.EstimateRunRequest(dataset="faq", request_json=text), None)
    world.ready(train=80)
    running.datasets.wait_caught_up(5)
    estimate = servicer.EstimateRun(pb.EstimateRunRequest(dataset="faq", request_json=text), None)
    assert (estimate.records, estimate.tokens, estimate.steps) == (80, 1800, 20)
    assert orjson.loads(estimate.config_json) == {"max_steps": 20}
    assert orjson.loads(estimate.explain_json)["train"]["tokens"] == 900
    (order,) = orders
    assert (order.run, order.plan["config"]["num_epochs"]) == (order.plan["run"], 2.0)
    running.turn(3)
    assert world.launcher.orders == []


def test_events_are_listed_newest_first_in_pages(world: World, stub: Any) -> None:
    world.ready()
    submit(stub, "ftjob-1")
    watched = stub.WatchRun(pb.WatchRunRequest(id="ftjob-1"), timeout=20)
    run = next(update.run.run for update in watched if update.run.run)
    for seq in range(1, 4):
        world.event(run, 1, seq, type="checkpoint", step=seq)
    seen: list[str] = []
    for update in watched:
        seen += ["running" if '"running"' in update.event.payload_json else update.event.type]
        if seen.count("checkpoint") == 3 and "running" in seen:  # nothing more will be said
            break
    watched.cancel()
    everything = stub.ListEvents(pb.ListEventsRequest(id="ftjob-1", limit=50))
    assert [event.seq for event in everything.events if event.run] == [3, 2, 1]
    assert not everything.has_more

    page = stub.ListEvents(pb.ListEventsRequest(id="ftjob-1", limit=2))
    last = page.events[-1]
    after = f"{last.run or last.job}/{last.attempt}/{last.seq}"
    rest = stub.ListEvents(pb.ListEventsRequest(id="ftjob-1", after=after, limit=50))
    assert page.has_more
    assert [*page.events, *rest.events] == list(everything.events)
