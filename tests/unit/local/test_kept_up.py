"""A stack that is kept up for a block, and what others do to it meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shortstack.local import stack
from shortstack.local.processes import ProcessRecord, write_record
from shortstack.local.settings import LocalSettings

Process = subprocess.Popen[bytes]


@pytest.fixture
def two() -> Iterator[tuple[Process, Process]]:
    """Two processes that wait."""
    command = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
    ):
        yield one, other
        for process in (one, other):
            process.kill()


def supervised_by(settings: LocalSettings, process: Process) -> None:
    """Makes it the stack's supervisor."""
    created = psutil.Process(process.pid).create_time()
    write_record(settings.run_folder, ProcessRecord("supervisor", process.pid, created, "ready", created))


@pytest.mark.parametrize("by_another", [False, True])
def test_what_another_has_started_meanwhile_is_left_up(
    two: tuple[Process, Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_another: bool
) -> None:
    settings = LocalSettings(var=tmp_path)
    ours, others = two
    monkeypatch.setattr(stack, "_start", lambda *_: supervised_by(settings, ours))
    with stack.kept_up(settings):
        if by_another:
            ours.kill()
            ours.wait(20)
            supervised_by(settings, others)
    assert others.poll() is None
    assert stack.is_up(settings) == by_another
    assert ours.wait(20) != 0
