"""`up`, `down` and `status` of the whole, and the one clear line when it cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.polling import until

from shortstack.core.errors import Fatal
from shortstack.local.doctor import CHECKS, doctor
from shortstack.local.processes import ProcessRecord, created_at, write_record
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down, is_up, status, up

TOY = Path(__file__).with_name("toy.py")


@pytest.mark.usefixtures("base_model")
def test_without_java_up_says_so_once_and_leaves_nothing(
    settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SHORTSTACK_JAVA": "/nowhere/java",
        "SHORTSTACK_PORT_BASE": str(settings.port_base),
        "SHORTSTACK_KAFKA_LIBS": str(settings.kafka_libs),
    }.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with pytest.raises(Fatal, match="SHORTSTACK_JAVA: no Java at"):
        up(settings, said.append)
    assert not any("no Java" in line for line in said)
    assert not is_up(settings)
    assert all(line.pid is None for line in status(settings))
    assert next(line for line in status(settings) if line.service == "supervisor").state == "failed"


def test_down_ends_what_a_supervisor_that_died_left_behind(settings: LocalSettings, tmp_path: Path) -> None:
    environment = os.environ | {"SHORTSTACK_STACK": str(settings.root)}
    known, unknown = (
        subprocess.Popen(
            [sys.executable, str(TOY), name, str(settings.port_base + offset), str(tmp_path / "journal")],
            env=environment,
            start_new_session=True,
        )
        for name, offset in (("serving", 1), ("trainer", 2))
    )
    try:
        journal = tmp_path / "journal"
        until(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 2, "both toys run")
        record = ProcessRecord("serving", known.pid, created_at(known.pid), "ready", time.time())
        write_record(settings.run_folder, record)
        assert down(settings) == ["serving"]
        assert known.wait(5) == 0
        assert not psutil.pid_exists(unknown.pid)
        assert journal.read_text().splitlines()[2:] == ["ended serving"]
        assert down(settings) == []
    finally:
        known.kill()
        unknown.kill()


def test_status_of_a_process_that_died_says_died(settings: LocalSettings) -> None:
    free = max(psutil.pids()) + 100_000
    write_record(settings.run_folder, ProcessRecord("gateway", free, 1.0, "ready", 1.0))
    line = next(line for line in status(settings) if line.service == "gateway")
    assert (line.state, line.pid) == ("died", None)


def test_doctor_names_a_taken_port_and_a_missing_model_with_remedies(settings: LocalSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.ports.grpc("assembly")))
        taken.listen()
        findings = {finding.check: finding for finding in doctor(settings)}
    assert list(findings) == list(CHECKS)
    assert not findings["ports"].ok
    assert f"{settings.ports.grpc('assembly')} (assembly)" in findings["ports"].what
    assert not findings["base model"].ok
    assert all(finding.remedy for finding in findings.values() if not finding.ok)
