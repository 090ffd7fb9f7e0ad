"""Processes and what is known of them on disk: started detached, recognised again by start time, ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from shortstack.core.errors import Fatal

__all__ = ["ProcessRecord", "end_process", "last_lines", "launch", "read_record", "resident_bytes", "write_record"]

_CLOCK_TOLERANCE_S: Final = 2.0
_POLL_S: Final = 0.05
_LOG_KEEP_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What ``VAR/run/NAME.json`` says of a process.

    Attributes:
        service: name of the service.
        pid: process id.
        created: start time of that process as the system tells it, so that a reused pid is not taken for it.
        state: starting, ready, restarting, stopping or failed.
        started_at: seconds since the epoch.
        ports: ports by what they are for.
        restarts: how often it was started again.
        error: why it failed, in one line.
    """

    service: str
    pid: int
    created: float
    state: str
    started_at: float
    ports: Mapping[str, int] = field(default_factory=dict)
    restarts: int = 0
    error: str = ""

    def process(self) -> psutil.Process | None:
        """The running process, or None if it is gone (a zombie counts as gone) or its pid is another's now."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if abs(process.create_time() - self.created) < _CLOCK_TOLERANCE_S else None
        except psutil.NoSuchProcess:
            return None


def launch(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts ``command`` in a session of its own (a Ctrl-C in the terminal does not reach it), output to ``log``.

    Raises:
        Fatal: the command does not start, or the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_KEEP_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise Fatal(
            f"{command[0]} does not start ({error})",
            where=str(log),
            remedy="Check that the disk has room and that the command exists; `shortstack doctor` looks at both.",
        ) from error


def created_at(pid: int) -> float:
    """Start time of ``pid`` as the system tells it; 0 if it is gone already."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def resident_bytes(process: psutil.Process) -> int:
    """Resident memory of ``process`` and all its children."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            total += member.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def end_process(record: ProcessRecord, deadline_s: float) -> bool:
    """Asks the process and, past the deadline, forces it and what it left; True if it went by itself.

    Children are remembered before the signal: a trainer, for instance, outlives a parent that is killed.
    """
    process = record.process()
    if process is None:
        return True
    try:
        children = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        went = _gone(process, deadline_s)
        if not went:
            process.kill()
            _gone(process, 5.0)
    except psutil.NoSuchProcess:
        return True
    for child in children:
        _kill_quietly(child)
    return went


def _gone(process: psutil.Process, deadline_s: float) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(_POLL_S)
    return False


def _kill_quietly(process: psutil.Process) -> None:
    """Kills ``process`` unless it is gone; is_running compares start times, so a reused pid is left alone."""
    try:
        if process.is_running():
            process.kill()
    except psutil.NoSuchProcess:
        return


def write_record(folder: Path, record: ProcessRecord) -> None:
    """Puts ``record`` into ``folder/SERVICE.json``, whole or not at all.

    Raises:
        Fatal: the disk is full or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=f".{record.service}.", dir=folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(asdict(record), stream)
            Path(scratch).replace(folder / f"{record.service}.json")
        except OSError:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Fatal(
            f"its state cannot be written ({error.strerror})",
            where=str(folder),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder that can be written.",
        ) from error


def read_record(folder: Path, service: str) -> ProcessRecord | None:
    """What ``folder/SERVICE.json`` says, or None if there is none (or it is not one of ours)."""
    try:
        content: dict[str, Any] = json.loads((folder / f"{service}.json").read_text(encoding="utf-8"))
        return ProcessRecord(**content)
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def last_lines(log: Path, count: int = 8, *, since: int = 0) -> list[str]:
    """The last lines of ``log``, from byte ``since`` on; empty if there is no log."""
    try:
        with log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(since, end - 64 * 1024))
            return stream.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
