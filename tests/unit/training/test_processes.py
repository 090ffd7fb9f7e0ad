"""Ending what works on a run folder, also where nobody reaps what has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shortstack.training import processes

_CHILD = "import signal, sys; signal.pause()"
_PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}, *sys.argv[1].split("|")])
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(60)
def test_what_was_killed_and_is_not_reaped_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under an init that does not reap: the process id stays taken until long after the process has ended."""
    monkeypatch.setattr(processes, "_KILLED_S", 600.0)
    command = [sys.executable, "-c", _PARENT, f"a.trainer|{tmp_path / 'run'}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        processes.kill_leftovers(tmp_path, ("a.trainer",))
        assert child.status() == psutil.STATUS_ZOMBIE
        parent.stdin.close()
