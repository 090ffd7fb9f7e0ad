"""Components start in order and stop in reverse, under one deadline, with an exit code that says why."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, Invalid
from shortstack.core.lifecycle import run_service, run_until_signal
from shortstack.core.telemetry import Telemetry


class Part:
    """Notes what is done to it; ends the run after its start if told to."""

    def __init__(self, name: str, notes: list[str], *, ends: threading.Event | None = None) -> None:
        self.name, self.notes, self.ends = name, notes, ends
        self.failed: Exception | None = None
        self.on_start: Exception | None = None
        self.on_stop: Exception | None = None
        self.deadlines: list[float] = []

    def start(self) -> None:
        self.notes.append(f"start {self.name}")
        if self.on_start:
            raise self.on_start
        if self.ends:
            self.ends.set()

    def stop(self, deadline_s: float) -> None:
        self.notes.append(f"stop {self.name}")
        self.deadlines.append(deadline_s)
        if self.on_stop:
            raise self.on_stop


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with Telemetry.start("test", ServiceConfig()) as started:
        yield started


def test_order_and_one_deadline(telemetry: Telemetry) -> None:
    notes: list[str] = []
    stop = threading.Event()
    parts = [Part("a", notes), Part("b", notes), Part("c", notes, ends=stop)]
    assert run_until_signal(parts, grace_s=3, log=telemetry.log, stop=stop) == 0
    assert notes == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    deadlines = [parts[place].deadlines[0] for place in (2, 1, 0)]
    assert 3 >= deadlines[0] >= deadlines[1] >= deadlines[2]


def test_a_component_that_fails_later_ends_the_run(telemetry: Telemetry) -> None:
    notes: list[str] = []
    parts = [Part("a", notes), Part("b", notes)]
    parts[1].failed = Fatal("the disk is full")
    assert run_until_signal(parts, grace_s=3, log=telemetry.log) == 70
    assert notes == ["start a", "start b", "stop b", "stop a"]


def test_what_was_started_is_stopped_when_a_start_fails(telemetry: Telemetry) -> None:
    notes: list[str] = []
    parts = [Part("a", notes), Part("b", notes), Part("c", notes)]
    parts[1].on_start = Fatal("port taken")
    assert run_until_signal(parts, grace_s=3, log=telemetry.log) == 70
    assert notes == ["start a", "start b", "stop b", "stop a"]


def test_one_that_cannot_stop_does_not_keep_the_others(telemetry: Telemetry) -> None:
    notes: list[str] = []
    stop = threading.Event()
    parts = [Part("a", notes), Part("b", notes, ends=stop)]
    parts[1].on_stop = ValueError("stuck")
    assert run_until_signal(parts, grace_s=3, log=telemetry.log, stop=stop) != 0
    assert notes[-1] == "stop a"


def test_a_clear_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise Invalid('format "alpacca" is unknown', where="recipe", remedy='Did you mean "alpaca"?')

    assert run_service(run) == 65
    assert capsys.readouterr().err == 'Invalid: recipe: format "alpacca" is unknown. Did you mean "alpaca"?\n'


PROGRAM = """
import sys, threading
from shortstack.core.config import ServiceConfig
from shortstack.core.lifecycle import run_until_signal
from shortstack.core.telemetry import Telemetry

class Part:
    def start(self): print("running", flush=True)
    def stop(self, deadline_s): threading.Event().wait(float(sys.argv[1]))

with Telemetry.start("test", ServiceConfig()) as telemetry:
    sys.exit(run_until_signal([Part()], grace_s=0.2, log=telemetry.log))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_cleanly(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert '"event":"stopped"' in log


def test_a_process_that_hangs_in_its_stop_ends_all_the_same() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "60"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert time.monotonic() - began < 20
    finally:
        process.kill()
        process.communicate()
