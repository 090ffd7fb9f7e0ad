"""What the controller may rely on, of every launcher: of processes, of Kubernetes Jobs, and of the one for tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from tests.fakes.kubernetes import FakeKubernetes
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.kubernetes_launcher import KubernetesLauncher, job_name
from shortstack.training.launcher import STOPPED, AttemptOrder, AttemptPhase, Launcher
from shortstack.training.memory_launcher import MemoryLauncher
from shortstack.training.pod.objects import say
from shortstack.training.processes import ProcessLauncher, attempt_paths

DEADLINE_S = 20
EXPORT = {"prefix": "models/a", "digest": "a"}
# An agent that holds its lock and does what the test writes beside its order: its result, or nothing.
AGENT = """
import fcntl, pathlib, signal, sys, time
order = pathlib.Path(sys.argv[-1]); stem = str(order).removesuffix(".order.json")
def end(text):
    partial = pathlib.Path(stem + ".partial")
    partial.write_text(text)
    partial.replace(stem + ".result.json")
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: end('{"exit_code": 1, "code": "stopped", "message": "asked to stop"}'))
lock = open(stem + ".lock", "a+b")
fcntl.flock(lock, fcntl.LOCK_EX)
said = pathlib.Path(stem + ".say")
deadline = time.monotonic() + 120  # of a test that failed before it spoke, nothing stays behind
while not said.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
end(said.read_text())
"""


class Place(Protocol):
    """Where attempts run, and how a test ends them."""

    def launcher(self) -> Launcher: ...

    def succeed(self, run: str, attempt: int) -> None: ...

    def fail(self, run: str, attempt: int) -> None: ...

    def lose(self, run: str, attempt: int) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._launcher = MemoryLauncher()

    def launcher(self) -> Launcher:
        return self._launcher

    def succeed(self, run: str, attempt: int) -> None:
        self._launcher.succeed(run, attempt, EXPORT)

    def fail(self, run: str, attempt: int) -> None:
        self._launcher.fail(run, attempt, "no_rows", "nothing to train on", final=True)

    def lose(self, run: str, attempt: int) -> None:
        self._launcher.lose(run, attempt)


class AsProcesses:
    def __init__(self, folder: Path) -> None:
        self._runs = folder / "runs"
        self._agent = folder / "agent.py"
        self._agent.write_text(AGENT)
        self._made: list[ProcessLauncher] = []

    def launcher(self) -> Launcher:
        launcher = ProcessLauncher(self._runs, (sys.executable, str(self._agent)))
        launcher.start()
        self._made.append(launcher)
        return launcher

    def close(self) -> None:
        for launcher in self._made:
            launcher.stop(5)

    def succeed(self, run: str, attempt: int) -> None:
        self._say(run, attempt, exit_code=0, export=EXPORT)

    def fail(self, run: str, attempt: int) -> None:
        self._say(run, attempt, exit_code=1, code="no_rows", message="nothing to train on", final=True)

    def lose(self, run: str, attempt: int) -> None:
        paths = attempt_paths(self._runs, run, attempt)
        agents = [p for p in psutil.process_iter() if str(paths.order) in _arguments(p)]
        assert agents
        for agent in agents:
            agent.kill()

    def _say(self, run: str, attempt: int, **result: Any) -> None:
        said = self._runs / run / f"attempt-{attempt}.say"
        said.with_suffix(".part").write_text(json.dumps(result))
        said.with_suffix(".part").replace(said)


JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: template}
spec:
  template:
    spec:
      initContainers: [{name: prepare}]
      containers: [{name: trainer}, {name: agent}]
"""


class AsJobs:
    """A cluster whose pods run as soon as they are there."""

    def __init__(self, folder: Path) -> None:
        self._kubernetes, self._blobs = FakeKubernetes(), MemoryBlobStore()
        self._template = folder / "job.yaml"
        self._template.write_text(JOB)

    def launcher(self) -> Launcher:
        cluster, clock = self._kubernetes.cluster(), SystemClock()
        return KubernetesLauncher(
            cluster, self._blobs, self._template, storage_url="memory://", clock=clock, look_s=0.0
        )

    def succeed(self, run: str, attempt: int) -> None:
        self._end(run, attempt, exit_code=0, export=EXPORT)

    def fail(self, run: str, attempt: int) -> None:
        self._end(run, attempt, exit_code=1, code="no_rows", message="nothing to train on", final=True)

    def lose(self, run: str, attempt: int) -> None:
        self._kubernetes.delete("pods", self._kubernetes.pod_of(job_name(run, attempt)))

    def _end(self, run: str, attempt: int, **word: Any) -> None:
        say(self._blobs, run, attempt, word)
        self._kubernetes.end_pod(self._kubernetes.pod_of(job_name(run, attempt)), "Succeeded")


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(params=["memory", "processes", "kubernetes"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param != "processes":
        yield InMemory() if request.param == "memory" else AsJobs(tmp_path)
        return
    processes = AsProcesses(tmp_path)
    yield processes
    processes.close()


def order(attempt: int = 1) -> AttemptOrder:
    return AttemptOrder("run-1", attempt, "manifest.json", 1, {"seed": 42})


def reached(launcher: Launcher, attempt: int, phase: AttemptPhase) -> Any:
    return _poll(lambda: launcher.status("run-1", attempt), lambda status: status.phase is phase)


def _poll(ask: Callable[[], Any], met: Callable[[Any], bool]) -> Any:
    return until(lambda: found if met(found := ask()) else None, ask, deadline_s=DEADLINE_S)


def test_an_attempt_is_absent_until_launched_and_then_runs(place: Place) -> None:
    launcher = place.launcher()
    assert launcher.status("run-1", 1).phase is AttemptPhase.ABSENT
    launcher.launch(order())
    assert launcher.status("run-1", 1).phase is AttemptPhase.RUNNING
    assert launcher.status("run-1", 2).phase is AttemptPhase.ABSENT


def test_a_success_has_its_export(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    place.succeed("run-1", 1)
    assert reached(launcher, 1, AttemptPhase.SUCCEEDED).export == EXPORT


def test_a_failure_has_its_reason(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    place.fail("run-1", 1)
    status = reached(launcher, 1, AttemptPhase.FAILED)
    assert (status.code, status.message, status.final) == ("no_rows", "nothing to train on", True)


def test_what_is_killed_is_lost_and_another_attempt_may_follow(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    place.lose("run-1", 1)
    reached(launcher, 1, AttemptPhase.LOST)
    launcher.launch(order(2))
    assert launcher.status("run-1", 2).phase is AttemptPhase.RUNNING
    assert launcher.status("run-1", 1).phase is AttemptPhase.LOST


@pytest.mark.parametrize("ended", [False, True])
def test_the_name_is_the_lock(place: Place, ended: bool) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    if ended:
        place.succeed("run-1", 1)
        reached(launcher, 1, AttemptPhase.SUCCEEDED)
    launcher.launch(order())
    expected = AttemptPhase.SUCCEEDED if ended else AttemptPhase.RUNNING
    assert launcher.status("run-1", 1).phase is expected


def test_another_launcher_finds_the_attempt_even_before_its_agent_is_up(place: Place) -> None:
    place.launcher().launch(order())
    again = place.launcher()
    assert again.status("run-1", 1).phase is AttemptPhase.RUNNING
    again.launch(order())
    place.succeed("run-1", 1)
    reached(again, 1, AttemptPhase.SUCCEEDED)


def test_a_cancel_ends_an_attempt_that_runs_and_touches_no_other(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    launcher.cancel("run-1", 7)

    def ask() -> Any:
        launcher.cancel("run-1", 1)
        return launcher.status("run-1", 1)

    status = _poll(ask, lambda status: status.phase is AttemptPhase.FAILED)
    assert status.code == STOPPED
    launcher.cancel("run-1", 1)
    assert launcher.status("run-1", 1) == status


def test_a_run_that_is_over_may_be_forgotten_twice(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    place.succeed("run-1", 1)
    reached(launcher, 1, AttemptPhase.SUCCEEDED)
    launcher.forget("run-1")
    launcher.forget("run-1")
    assert launcher.status("run-1", 1).export == EXPORT
    assert "run-1" in launcher.place("run-1")


@pytest.mark.parametrize("place", ["memory", "processes"], indirect=True)
def test_stop_leaves_nothing_running_on_this_machine(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    launcher.stop(5)
    assert launcher.status("run-1", 1).phase in (AttemptPhase.FAILED, AttemptPhase.LOST)


@pytest.mark.parametrize("place", ["kubernetes"], indirect=True)
def test_in_a_cluster_attempts_outlive_the_controllers_pod(place: Place) -> None:
    launcher = place.launcher()
    launcher.launch(order())
    launcher.stop(5)
    again = place.launcher()
    assert again.status("run-1", 1).phase is AttemptPhase.RUNNING
    place.succeed("run-1", 1)
    reached(again, 1, AttemptPhase.SUCCEEDED)
