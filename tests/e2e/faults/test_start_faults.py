"""`shortstack up` on a machine that cannot hold the stack: one clear line, an exit code, and nothing left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.stack import Stack

from shortstack.local.stack import status

pytestmark = pytest.mark.timeout(600)
MIB = 2**20


def checkout_var() -> Path:
    return Path(os.environ.get("SHORTSTACK_VAR") or Path(__file__).parents[3] / "var").absolute()


def refused(stack: Stack) -> str:
    """What `shortstack up` says in its last line when it does not start; it left no process."""
    done = subprocess.run(
        [sys.executable, "-m", "shortstack.cli.main", "up"],
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert done.returncode not in (0, 1, 2), done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("error: ")
    assert not any(line.startswith("error: ") for line in lines[:-1])
    assert all(line.pid is None for line in status(stack.settings))
    return lines[-1]


@contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


@contextmanager
def disk_of(folder: Path, size: int) -> Iterator[Path]:
    """A disk of ``size`` bytes."""
    folder.mkdir()
    options = f"size={size}"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_java(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "var", checkout_var(), [])
    java = str(tmp_path / "java")
    stack.environment["SHORTSTACK_JAVA"] = java
    said = refused(stack)
    assert f'SHORTSTACK_JAVA: no Java at "{java}"' in said


@pytest.mark.parametrize("owner", ["kafka", "gateway", "assembly"])
def test_a_taken_port(tmp_path: Path, owner: str) -> None:
    stack = Stack(tmp_path / "var", checkout_var(), [])
    port = next(iter(stack.settings.ports.taken_by(owner).values()))
    with taken(port):
        said = refused(stack)
    assert f"port {port} is taken" in said
    assert owner.replace("kafka", "broker") in said
    assert "SHORTSTACK_PORT_BASE" in said


@pytest.mark.parametrize("left", [0, 64 * MIB])
def test_a_full_disk(tmp_path: Path, left: int) -> None:
    with disk_of(tmp_path / "disk", 70 * MIB) as disk:
        stack = Stack(disk / "var", checkout_var(), [])
        filler = disk / "filler"
        with filler.open("wb") as stream:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            os.posix_fallocate(stream.fileno(), 0, max(4096, free - left))
        said = refused(stack)
    assert "disk" in said
    assert "SHORTSTACK_VAR" in said
