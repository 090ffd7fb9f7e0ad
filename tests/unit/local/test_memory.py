"""How much memory the stack takes, with whoever started it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shortstack.local.processes import ProcessRecord, resident_bytes, write_record
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import resident_mb

HOLDS_MB = 96
HOLD = f"x = b'x' * ({HOLDS_MB} * 2**20); import os; print(os.getpid(), flush=True); import sys; sys.stdin.read()"


def own_child() -> list[str]:
    return [sys.executable, "-c", HOLD]


def strangers() -> list[str]:
    """As a stack that was up before: its parent is gone."""
    return ["/bin/sh", "-c", '{ "$0" -c "$1" <&3 & } 3<&0', sys.executable, HOLD]


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


def test_this_process_counts_and_each_of_the_stacks_once(holder: psutil.Process, tmp_path: Path) -> None:
    settings = LocalSettings(var=tmp_path)
    record = ProcessRecord("gateway", holder.pid, holder.create_time(), "ready", holder.create_time())
    write_record(settings.run_folder, record)
    this = psutil.Process()
    apart = (this.memory_info().rss + resident_bytes(holder)) / 2**20
    assert abs(resident_mb(settings) - apart) < HOLDS_MB / 2
