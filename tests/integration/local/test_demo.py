"""`shortstack demo` ended from outside: what it started goes with it, what it found stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.leftovers import processes_of
from tests.polling import until

from shortstack.local.processes import ProcessRecord, created_at, read_record, write_record
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down, kept_up, status

TOY = Path(__file__).with_name("toy.py")


@pytest.mark.usefixtures("base_model")
def test_a_demo_that_is_told_to_end_while_it_starts_leaves_no_process(settings: LocalSettings, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTSTACK_")} | {
        "SHORTSTACK_VAR": str(settings.root),
        "SHORTSTACK_PORT_BASE": str(settings.port_base),
        "SHORTSTACK_KAFKA_LIBS": str(settings.kafka_libs),
    }
    said = tmp_path / "said"
    try:
        with said.open("wb") as output:
            demo = subprocess.Popen(
                [sys.executable, "-m", "shortstack.cli.main", "demo", "--exit"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        until(lambda: read_record(settings.run_folder, "kafka") or demo.poll() is not None, said.read_text)
        assert processes_of(settings.root)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(90) == 130, said.read_text()
        assert processes_of(settings.root) == []
        assert all(line.pid is None for line in status(settings))
        assert "Traceback" not in said.read_text()
    finally:
        demo.kill()
        demo.wait(10)
        down(settings)


@pytest.fixture
def elsewhere(settings: LocalSettings, tmp_path: Path) -> Iterator[ProcessRecord]:
    """A stack that somebody else is starting, as far as can be told from its state file."""
    journal = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, str(TOY), "supervisor", str(settings.port_base + 1), str(journal)], start_new_session=True
    )
    try:
        until(journal.exists, "the toy runs")
        settings.log_folder.mkdir(parents=True)
        (settings.log_folder / "supervisor.log").touch()
        record = ProcessRecord("supervisor", process.pid, created_at(process.pid), "starting", time.time())
        write_record(settings.run_folder, record)
        yield record
        assert process.poll() is None, "what somebody else had started was stopped"
    finally:
        process.kill()
        process.wait(10)


def becomes_ready(settings: LocalSettings, record: ProcessRecord) -> None:
    ready = ProcessRecord("supervisor", record.pid, record.created, "ready", record.started_at)
    write_record(settings.run_folder, ready)


def test_a_stack_that_somebody_else_is_starting_is_waited_for_and_stays(
    settings: LocalSettings, elsewhere: ProcessRecord
) -> None:
    with kept_up(settings, lambda _: becomes_ready(settings, elsewhere)) as ours:
        assert not ours
    with kept_up(settings) as ours:
        assert not ours


def test_a_demo_interrupted_while_it_waits_for_somebody_elses_stack_leaves_it(
    settings: LocalSettings, elsewhere: ProcessRecord
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kept_up(settings, interrupted):
        raise AssertionError("it was not up")
