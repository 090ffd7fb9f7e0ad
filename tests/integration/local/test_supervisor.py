"""The supervisor with real processes: order, restarts, and what is left when something goes wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from tests.polling import until

from shortstack.core.errors import Fatal, ShortstackError
from shortstack.local.processes import read_record
from shortstack.local.services import Probe, ServiceSpec, Stage, http_probe
from shortstack.local.settings import LocalSettings
from shortstack.local.supervisor import BackOff, Supervisor

TOY = Path(__file__).with_name("toy.py")


@dataclass
class Yard:
    """Toys of one test and what they wrote down."""

    settings: LocalSettings
    journal: Path

    def toy(self, name: str, offset: int, fault: str = "") -> ServiceSpec:
        port = self.settings.port_base + offset
        return ServiceSpec(
            name=name,
            command=(sys.executable, str(TOY), name, str(port), str(self.journal)),
            environment=os.environ | {"TOY_FAULT": fault},
            ports={"http": port},
            log=self.settings.log_folder / f"{name}.log",
            probe=http_probe(f"http://127.0.0.1:{port}/readyz"),
        )

    def lines(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def state(self, name: str) -> str:
        record = read_record(self.settings.run_folder, name)
        return record.state if record else "none"

    def pid(self, name: str) -> int:
        record = read_record(self.settings.run_folder, name)
        return record.pid if record else 0


@pytest.fixture
def yard(settings: LocalSettings, tmp_path: Path) -> Yard:
    return Yard(settings, tmp_path / "journal")


@contextmanager
def running(yard: Yard, *stages: Stage) -> Iterator[Supervisor]:
    supervisor = Supervisor(yard.settings, stages, back_off=BackOff(first_s=0.05))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        until(lambda: yard.state("supervisor") == "ready")
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_stages_start_in_order_and_stop_in_reverse(yard: Yard) -> None:
    between: list[list[str]] = []
    stages = (
        Stage([yard.toy("first", 1)], lambda: between.append(yard.lines())),
        Stage([yard.toy("second", 2), yard.toy("third", 3)]),
    )
    with running(yard, *stages):
        assert yard.state("third") == "ready"
    assert between == [["started first"]]
    lines = yard.lines()
    assert lines[0] == "started first"
    assert sorted(lines[1:3]) == ["started second", "started third"]
    assert lines[3:] == ["ended third", "ended second", "ended first"]
    assert not list(yard.settings.run_folder.glob("*.json"))


def test_what_is_slow_and_needs_nobody_holds_up_no_stage_but_is_awaited(yard: Yard) -> None:
    slow, began = threading.Event(), threading.Event()
    spec = replace(yard.toy("slow", 1), probe=lambda: Probe(ready=slow.is_set()))
    second = Stage([yard.toy("second", 2)], began.set)
    supervisor = Supervisor(yard.settings, [Stage([], meanwhile=[spec]), second])
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        assert began.wait(20)
        assert yard.state("supervisor") == "starting"
        slow.set()
        until(lambda: yard.state("supervisor") == "ready")
    finally:
        supervisor.stop()
        thread.join(30)


def test_a_process_killed_with_9_is_started_again(yard: Yard) -> None:
    with running(yard, Stage([yard.toy("worker", 1)])):
        before = yard.pid("worker")
        os.kill(before, signal.SIGKILL)
        until(lambda: yard.state("worker") == "ready" and yard.pid("worker") != before)
        record = read_record(yard.settings.run_folder, "worker")
        assert record is not None
        assert record.restarts == 1
    assert yard.lines() == ["started worker", "started worker", "ended worker"]


def test_what_never_starts_is_given_up_with_its_own_words_and_nothing_stays(yard: Yard) -> None:
    stages = (Stage([yard.toy("sound", 1)]), Stage([yard.toy("broken", 2, fault="dies")]))
    supervisor = Supervisor(yard.settings, stages, back_off=BackOff(first_s=0.02))
    with pytest.raises(Fatal, match=r"broken: it ended 3 times.*configuration wanting"):
        supervisor.run()
    assert yard.lines() == ["started sound", "ended sound"]
    assert yard.state("supervisor") == "failed"
    assert yard.state("sound") == "none"


def test_what_is_never_ready_is_given_up_at_the_deadline(yard: Yard) -> None:
    hasty = yard.settings.model_copy(update={"start_deadline_s": 1.0})
    with pytest.raises(Fatal, match="mute: it was not ready within 1 s"):
        Supervisor(hasty, [Stage([yard.toy("mute", 1, fault="mute")])]).run()


def test_what_ignores_sigterm_is_killed_at_the_deadline(yard: Yard) -> None:
    yard.settings = yard.settings.model_copy(update={"stop_deadline_s": 1.0})
    with running(yard, Stage([yard.toy("deaf", 1, fault="deaf")])):
        pid = yard.pid("deaf")
    assert not psutil.pid_exists(pid)


def test_a_start_that_makes_no_sense_is_not_tried(yard: Yard) -> None:
    def refuse() -> None:
        raise Fatal("port 1 is taken", where="worker")

    spec = yard.toy("worker", 1)
    refused = ServiceSpec(
        spec.name, spec.command, spec.environment, spec.ports, spec.log, lambda: Probe(ready=True), refuse
    )
    with pytest.raises(ShortstackError, match="port 1 is taken"):
        Supervisor(yard.settings, [Stage([refused])]).run()
    assert yard.lines() == []


def test_a_full_disk_stops_nothing_that_runs(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortstack.local import supervisor as module

    def full(*_: object) -> None:
        raise Fatal("its state cannot be written (No space left on device)", where="run")

    with running(yard, Stage([yard.toy("first", 1), yard.toy("second", 2)])):
        pid = yard.pid("first")
        monkeypatch.setattr(module, "write_record", full)
        os.kill(pid, signal.SIGKILL)
        until(lambda: yard.lines().count("started first") == 2)
        assert "ended second" not in yard.lines()
    assert {"ended first", "ended second"} <= set(yard.lines())
