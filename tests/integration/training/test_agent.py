"""An attempt by its agent: shipped, killed at every place, and with the broker away."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import orjson
import psutil
import pytest
from tests.integration.training.conftest import MANIFEST, Bench, processes_of, until

from shortstack.local.broker import LocalBroker
from shortstack.training.launcher import STOPPED, AttemptPhase
from shortstack.training.processes import ProcessLauncher


def test_an_attempt_ships_its_events_and_its_export(
    bench: Bench, launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    launcher.launch(bench.order(1, max_steps=4))
    status = bench.ended(launcher, 1)

    assert status.phase is AttemptPhase.SUCCEEDED, bench.log(1)
    assert status.export is not None
    manifest = orjson.loads(bench.blobs.get(status.export["manifest"]))
    assert manifest["digest"] == status.export["digest"]
    assert status.export["base_digest"] == "d" * 64
    for name, entry in manifest["files"].items():
        assert bench.blobs.size(f"{status.export['prefix']}/{name}") == entry["bytes"]
    until(lambda: not processes_of(bench.folder), "the agent's end")
    assert bench.shipped() == [(1, line["seq"]) for line in bench.lines()]
    assert [line["seq"] for line in bench.lines()] == list(range(1, len(bench.lines()) + 1))
    assert sorted(scratch.rglob("torchelastic*")) == [], "a folder for every run, on every machine that trains"


def test_killed_agents_are_followed_by_attempts_that_go_on(
    bench: Bench, launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 60, "save_steps": 10}
    launcher.launch(bench.order(1, **settings))
    until(lambda: [e for e in bench.lines() if e["type"] == "checkpoint" and e["step"] == 20], "the second checkpoint")
    bench.agent(1).kill()
    assert bench.ended(launcher, 1).phase is AttemptPhase.LOST
    # Torchrun and its ranks are in sessions of their own: nothing of them may train on.
    assert processes_of(bench.folder) == []

    with monkeypatch.context() as failing:
        failing.setenv("SHORTSTACK_FAILPOINT", "agent.after_export")
        launcher.launch(bench.order(2, **settings))
    assert bench.ended(launcher, 2).phase is AttemptPhase.LOST
    reached = bench.steps(2)
    assert reached[0] >= 21
    assert reached == list(range(reached[0], 61))

    launcher.launch(bench.order(3, **settings))
    status = bench.ended(launcher, 3)
    assert status.phase is AttemptPhase.SUCCEEDED, bench.log(3)
    assert bench.steps(3) == []
    until(lambda: not processes_of(bench.folder), "the agent's end")
    assert bench.shipped() == [(line["attempt"], line["seq"]) for line in bench.lines()]


def test_stop_ends_the_agent_and_every_rank(bench: Bench, launcher: ProcessLauncher) -> None:
    launcher.launch(bench.order(1, processes=2, max_steps=2000))
    until(lambda: bench.steps(1), "the first step")
    ranks = [p for p in processes_of(bench.folder) if os.getsid(p.pid) == p.pid]
    assert len(ranks) >= 3  # the agent, and two ranks that no signal to its session reaches

    launcher.stop(20)

    assert processes_of(bench.folder) == []
    assert launcher.status(bench.run, 1).code == STOPPED


def test_a_cancel_before_the_trainer_is_up_is_not_lost(bench: Bench, launcher: ProcessLauncher) -> None:
    launcher.launch(bench.order(1, max_steps=2000))

    def over() -> bool:
        launcher.cancel(bench.run, 1)
        return launcher.status(bench.run, 1).phase is AttemptPhase.FAILED

    until(over, "the end of a cancelled attempt", deadline_s=60)
    assert launcher.status(bench.run, 1).code == STOPPED
    assert bench.steps(1) == []


def test_what_the_trainer_refuses_is_final_and_has_its_words(bench: Bench, launcher: ProcessLauncher) -> None:
    launcher.launch(bench.order(1, lora_r=0))
    status = bench.ended(launcher, 1)
    assert (status.phase, status.code, status.final) == (AttemptPhase.FAILED, "bad_plan", True), bench.log(1)
    assert "lora_r" in status.message


def test_a_dataset_that_is_gone_is_final(bench: Bench, launcher: ProcessLauncher) -> None:
    bench.blobs.delete_prefix("publications/default/pub-1/versions/v1")
    launcher.launch(bench.order(1))
    status = bench.ended(launcher, 1)
    assert (status.phase, status.final) == (AttemptPhase.FAILED, True)
    assert MANIFEST in status.message


# Real trainers: each start imports torch, which takes a busy machine a while.
pytestmark = pytest.mark.timeout(900)


def test_a_broker_that_is_away_stops_no_step_and_loses_no_event(
    own_broker: LocalBroker, own_bootstrap: str, bench: Bench, launcher: ProcessLauncher
) -> None:
    own_broker.stop(10)
    launcher.launch(bench.order(1, max_steps=150, save_steps=1000))
    until(lambda: len(bench.steps(1)) > 5, "steps without a broker")

    own_broker.start()
    shipped = bench.runs / bench.run / "events.shipped"
    until(shipped.exists, "the first events on the broker")
    own_broker.stop(10)
    done = len(bench.steps(1))
    until(lambda: len(bench.steps(1)) > min(done + 5, 149), "further steps without a broker")
    assert bench.ended(launcher, 1).phase is AttemptPhase.SUCCEEDED, bench.log(1)
    assert psutil.pid_exists(bench.agent(1).pid)

    own_broker.start()
    until(lambda: not processes_of(bench.folder), "the agent's end")
    assert bench.shipped() == [(1, line["seq"]) for line in bench.lines()]


def test_sigterm_to_the_agent_alone_leaves_a_checkpoint(bench: Bench, launcher: ProcessLauncher) -> None:
    launcher.launch(bench.order(1, max_steps=2000, save_steps=1000))
    until(lambda: len(bench.steps(1)) > 2, "some steps")
    bench.agent(1).send_signal(signal.SIGTERM)
    assert bench.ended(launcher, 1).code == STOPPED
    reached = bench.steps(1)[-1]

    launcher.launch(bench.order(2, max_steps=reached + 3, save_steps=1000))
    assert bench.ended(launcher, 2).phase is AttemptPhase.SUCCEEDED, bench.log(2)
    assert bench.steps(2)[0] == reached + 1
