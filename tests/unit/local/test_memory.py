"""How much memory the stack takes, with whoever started it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shortstack.local.processes import ProcessRecord, write_record
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import resident_mb

HOLDS_MB = 96
HOLD = f"x = b'x' * ({HOLDS_MB} * 2**20); import os; print(os.getpid(), flush=True); import sys; sys.stdin.read()"


def own_child() -> list[str]:
    return [sys.executable, "-c", HOLD]


def strangers() -> list[str]:
    """As a stack that was up before: its parent is gone."""
    return ["/bin/sh", "-c", '{ "$0" -c "$1" <&3 & } 3<&0', sys.executable, HOLD]


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    return LocalSettings(var=tmp_path)


@pytest.fixture
def before(settings: LocalSettings) -> float:
    """MiB of this process and of what other tests have it hold, a broker for one."""
    return resident_mb(settings)


@pytest.fixture(params=[own_child, strangers])
def holder(request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    """A process that holds memory until its standard input ends."""
    command: Callable[[], list[str]] = request.param
    with subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        holding = psutil.Process(int(started.stdout.readline()))
        if command is strangers:
            started.wait(20)
        yield holding
        started.stdin.close()
        holding.wait(20)


def test_this_process_counts_and_each_of_the_stacks_once(
    settings: LocalSettings, before: float, holder: psutil.Process
) -> None:
    record = ProcessRecord("gateway", holder.pid, holder.create_time(), "ready", holder.create_time())
    write_record(settings.run_folder, record)
    assert HOLDS_MB <= resident_mb(settings) - before < 1.5 * HOLDS_MB
    assert before >= psutil.Process().memory_info().rss / 2**20 / 2
