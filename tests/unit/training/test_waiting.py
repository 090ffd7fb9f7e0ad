"""Runs whose attempts cannot start: seen in run, job and events, with what to do, and gone with the cause."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from tests.fakes.kubernetes import FakeKubernetes
from tests.unit.training.world import Running, World, export

from shortstack.cli.runs import job_row
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.streams import topics
from shortstack.training.kubernetes_launcher import KubernetesLauncher
from shortstack.training.pod.objects import say
from shortstack.training.v1 import training_pb2 as pb

NO_NODE = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def step(running: Running, name: str = "train") -> tr.JobStep:
    return next(s for s in running.job("ftjob-1").steps if s.name == name)


def waiting(running: Running) -> None:
    running.until(lambda _: running.run().state == tr.RUN_STATE_WAITING)


def started(running: Running) -> None:
    running.until(lambda _: running.run().state == tr.RUN_STATE_STARTING)


def test_a_run_that_waits_says_why_and_goes_on_when_it_may(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = world.launcher.orders[0].run
        world.launcher.wait(run, 1, f"{NO_NODE} Make room.")
        waiting(running)
        assert running.run().message == f"{NO_NODE} Make room."
        world.clock.advance(2)  # what is no change of state is written once a second
        running.until(lambda _: bool(step(running).message))
        assert (step(running).state, step(running).message) == (tr.STEP_STATE_WAITING, f"{NO_NODE} Make room.")
        shown = pb.GetRunResponse(job=running.job("ftjob-1"), run=running.run())
        assert job_row(shown)["error"] == f"{NO_NODE} Make room."
        running.turn(3)
        (event,) = [e for e in running.controller.events.of([run]) if e.type == "waiting"]
        assert (event.level, event.message) == ("warn", f"{NO_NODE} Make room.")

        world.launcher.wait(run, 1, "")
        started(running)
        world.clock.advance(2)
        running.until(lambda _: step(running).state == tr.STEP_STATE_RUNNING)
        assert (running.run().message, step(running).message) == ("", "")
        world.launcher.succeed(run, 1, export())
        running.settle("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        assert world.launcher.forgotten == [run]


def test_a_run_that_waits_can_be_cancelled_and_is_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.wait(world.launcher.orders[0].run, 1, NO_NODE)
        waiting(running)
        world.cancel("ftjob-1")
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
        assert running.run().message == ""
        assert world.launcher.forgotten == [running.run().run]


def test_a_trained_run_that_cannot_be_stored_says_so_until_it_can(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = world.launcher.orders[0].run
        world.event(run, 1, 1, type="step", step=2, max_steps=2, loss=1.0)
        world.event(run, 1, 2, type="waiting", waits="cannot store the export: no space left", message="m")
        running.until(lambda _: running.run().message == "cannot store the export: no space left")
        world.clock.advance(2)
        running.until(lambda _: step(running, "export").message == "cannot store the export: no space left")
        assert running.run().state == tr.RUN_STATE_EXPORTING
        assert (step(running).state, step(running).message) == (tr.STEP_STATE_DONE, "loss 1.000")
    with world.started() as running:  # what the agent said is read anew
        running.turn(3)
        assert running.run().message == "cannot store the export: no space left"
        world.event(run, 1, 3, type="waiting", waits="", message="m")
        running.until(lambda _: running.run().message == "")
        world.launcher.succeed(run, 1, export())
        running.settle("ftjob-1", tr.JOB_STATE_SUCCEEDED)


@pytest.fixture
def kubernetes(tmp_path: Path) -> FakeKubernetes:
    (tmp_path / "job.yaml").write_text(
        "kind: Job\nspec: {template: {spec: {containers: [{name: trainer}, {name: agent}]}}}\n"
    )
    return FakeKubernetes()


@pytest.fixture
def blobs() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def world(tmp_path: Path, kubernetes: FakeKubernetes, blobs: MemoryBlobStore) -> World:
    """A controller whose attempts are Jobs of a fake cluster."""
    made = World(tmp_path)
    made.launcher = KubernetesLauncher(  # type: ignore[assignment]
        kubernetes.cluster(), blobs, tmp_path / "job.yaml", storage_url="memory://", clock=made.clock, look_s=0.0
    )
    return made


def test_on_a_cluster_a_run_waits_is_lost_and_is_trained_by_the_next_job(
    world: World, kubernetes: FakeKubernetes, blobs: MemoryBlobStore
) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(kubernetes.all("jobs")))
        run = running.run().run
        job = f"train-{run[:12]}"
        kubernetes.unschedulable(kubernetes.pod_of(f"{job}-a1"), NO_NODE)
        waiting(running)
        assert NO_NODE.rstrip(".") in running.run().message
        assert running.run().run_dir.endswith(f"/runs/{run}")
        kubernetes.run(kubernetes.pod_of(f"{job}-a1"))
        started(running)

        kubernetes.delete("jobs", f"{job}-a1")
        running.until(lambda _: running.run().attempt == 2)
        running.until(lambda _: bool(kubernetes.all("jobs")))
        assert [j["metadata"]["name"] for j in kubernetes.all("jobs")] == [f"{job}-a2"]
        kubernetes.run(kubernetes.pod_of(f"{job}-a2"))
        say(blobs, run, 2, {"exit_code": 0, "export": export()})
        running.settle("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        assert running.run().deaths == 1
        (event,) = [e for e in running.controller.events.of([run]) if e.type == "broke_off"]
        assert event.message == f"Attempt 1 broke off: its Job {job}-a1 is gone without a word"


def test_on_a_cluster_a_restarted_controller_adopts_the_job(
    world: World, kubernetes: FakeKubernetes, blobs: MemoryBlobStore
) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(kubernetes.all("jobs")))
        run = running.run().run
    with world.started() as running:
        running.turn(5)
        assert len(kubernetes.all("jobs")) == 1
        say(blobs, run, 1, {"exit_code": 0, "export": export()})
        running.settle("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        assert running.run().attempt == 1


def test_an_api_server_that_is_away_holds_up_its_runs_alone(world: World, kubernetes: FakeKubernetes) -> None:
    kubernetes.away = True
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: "does not answer" in running.run().message)
        assert running.run().state == tr.RUN_STATE_STARTING
        world.submit("ftjob-2", "another")
        running.until(lambda shown: "job/ftjob-2" in shown)
        kubernetes.away = False
        running.until(lambda _: running.run().message == "")
        assert len(kubernetes.all("jobs")) == 1
        assert running.run().deaths == 0


def test_a_refused_job_is_a_run_that_waits(world: World, kubernetes: FakeKubernetes) -> None:
    kubernetes.refusals["jobs"] = (403, "exceeded quota: jobs")
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        waiting(running)
        assert "exceeded quota: jobs" in running.run().message
        (told,) = [m for m in world.messages(topics.TRAINING_EVENTS) if b"waiting" in (m.value or b"")]
        payload = orjson.loads(tr.TrainingEvent.FromString(told.value or b"").payload_json)
        assert payload["attempt"] == 1
        kubernetes.refusals.clear()
        world.clock.advance(60)
        started(running)
        assert len(kubernetes.all("jobs")) == 1


@pytest.mark.parametrize("plural", ["jobs", "pods"])
def test_a_right_to_look_that_is_missing_is_a_run_that_waits(
    world: World, kubernetes: FakeKubernetes, plural: str
) -> None:
    kubernetes.unreadable = {plural}
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        waiting(running)
        assert f"{plural} is forbidden. Ask for the right in the release's Role" in running.run().message
        world.submit("ftjob-2", "another")
        running.until(lambda shown: "job/ftjob-2" in shown)
        kubernetes.unreadable = set()
        started(running)
        assert len(kubernetes.all("jobs")) == 1
        assert (running.run().message, running.run().deaths) == ("", 0)


def test_a_right_that_is_taken_away_changes_no_run_that_trains(world: World, kubernetes: FakeKubernetes) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(kubernetes.all("jobs")))
        run = running.run().run
        kubernetes.run(kubernetes.pod_of(f"train-{run[:12]}-a1"))
        kubernetes.unreadable = {"jobs"}
        for seq in (1, 2):
            world.event(run, 1, seq, type="step", step=seq, max_steps=9)
            world.clock.advance(2)
            running.until(lambda _, step=seq: running.run().step == step)
            running.turn(3)
            assert running.run().state == tr.RUN_STATE_RUNNING
            assert "jobs is forbidden" in running.run().message
        assert [e.type for e in running.controller.events.of([run]) if e.type == "waiting"] == []


def test_a_right_to_delete_that_is_missing_holds_up_a_cancel(world: World, kubernetes: FakeKubernetes) -> None:
    kubernetes.undeletable = {"jobs"}
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(kubernetes.all("jobs")))
        kubernetes.run(kubernetes.pod_of(f"train-{running.run().run[:12]}-a1"))
        world.cancel("ftjob-1")
        waiting(running)
        assert "jobs is forbidden" in running.run().message
        kubernetes.undeletable = set()
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
        assert kubernetes.all("jobs") == []
