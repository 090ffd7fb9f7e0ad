"""The local stack as a whole: up, down, status. What the commands of the same names call."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from shortstack.core.errors import Fatal
from shortstack.local.processes import ProcessRecord, end_process, last_lines, launch, read_record, resident_bytes
from shortstack.local.required import require_base_model
from shortstack.local.services import SERVICES
from shortstack.local.settings import LocalSettings
from shortstack.local.supervisor import FAILED, SUPERVISOR

__all__ = ["ServiceStatus", "await_end", "down", "is_up", "kept_up", "resident_mb", "status", "up"]

_POLL_S: Final = 0.1
_LOOK_S: Final = 0.5
_BYTES_NEEDED: Final = 16 * 2**20
_MARK: Final = "SHORTSTACK_STACK"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of `status`.

    Attributes:
        service: its name.
        state: ready, starting, unready, restarting, stopping, failed, died or stopped.
        pid: process id; None if there is no process.
        ports: by what they are for.
        rss_mb: resident memory of the process and its children, in MiB.
        uptime_s: seconds since its last start.
        restarts: how often it was started again.
        error: why it is not running, in one line.
    """

    service: str
    state: str
    pid: int | None
    ports: dict[str, int]
    rss_mb: float
    uptime_s: float
    restarts: int
    error: str


def up(settings: LocalSettings, say: Say = lambda _: None) -> list[ServiceStatus]:
    """Starts the stack in the background and returns once all is ready; if it is up already, says so and returns.

    Args:
        settings: which stack, and how long it may take (``start_deadline_s``).
        say: takes one line for each thing that happens.

    Raises:
        Fatal: it did not start; names the service, the reason and the log. Nothing is left running then.
    """
    with _exclusive(settings.run_folder):
        running = _supervisor(settings)
        if running is None:
            _start(settings, say)
        else:
            _join(settings, running, say)
    return status(settings)


@contextmanager
def kept_up(settings: LocalSettings, say: Say = lambda _: None) -> Iterator[bool]:
    """The stack while a block runs; yields whether it was started for it. Only then is it stopped at the block's end.

    What somebody else has up, or is starting, is waited for and left as it is: others may be using it. So is what
    somebody else has started in the block, after this one's was stopped. What the start of this block has half started
    when it is interrupted is stopped too.

    Raises:
        Fatal: as `up`.
    """
    ours, started = False, None
    try:
        with _exclusive(settings.run_folder):
            running = _supervisor(settings)
            if running is None:
                ours = True
                _start(settings, say)
                started = _supervisor(settings)
            else:
                _join(settings, running, say)
        yield ours
    finally:
        now = _supervisor(settings)
        if ours and (started is None or now is None or _same(started, now)):
            down(settings, say)


def await_end(settings: LocalSettings) -> None:
    """Returns once the stack that is up has ended: it was stopped from elsewhere, or its supervisor died."""
    running = _supervisor(settings)
    while running is not None and running.process() is not None:
        time.sleep(_LOOK_S)


def _same(one: ProcessRecord, other: ProcessRecord) -> bool:
    return (one.pid, one.created) == (other.pid, other.created)


def _start(settings: LocalSettings, say: Say) -> None:
    _clear_leftovers(settings, say)
    _require_room(settings)
    require_base_model(settings)
    log = settings.log_folder / f"{SUPERVISOR}.log"
    start = log.stat().st_size if log.exists() else 0
    process = launch(
        [sys.executable, "-m", "shortstack.local.supervisor"],
        log=log,
        environment=os.environ | {"SHORTSTACK_VAR": str(settings.root), _MARK: str(settings.root)},
    )
    _await_ready(settings, process.poll, start, say)


def _join(settings: LocalSettings, running: ProcessRecord, say: Say) -> None:
    if running.state == "ready":
        say("already up")
        return
    say(f"already {running.state}; waiting until it is ready")
    _await_ready(settings, lambda: None if running.process() else 1, None, say)


def _require_room(settings: LocalSettings) -> None:
    """Raises Fatal on a disk without room for as much as a log: the supervisor could not even say why it ends."""
    free = shutil.disk_usage(settings.root).free
    if free < _BYTES_NEEDED:
        raise Fatal(
            f"the disk is full: {free // 2**20} MiB are free",
            where=str(settings.root),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder on a larger disk.",
        )


def down(settings: LocalSettings, say: Say = lambda _: None) -> list[str]:
    """Stops the stack cleanly and returns the names of what was running; data stays.

    The supervisor stops its services in reverse order under ``stop_deadline_s``. What is left after that, or was
    left by a supervisor that died, is ended here.
    """
    were = [line.service for line in status(settings) if line.pid is not None]
    running = _supervisor(settings)
    if running is not None:
        say("stopping")
        if not end_process(running, settings.stop_deadline_s + 10.0):
            say("the supervisor did not stop in time and was killed")
    _clear_leftovers(settings, say)
    return were


def is_up(settings: LocalSettings) -> bool:
    """Whether a supervisor runs for this stack and says that all is ready."""
    running = _supervisor(settings)
    return running is not None and running.state == "ready"


def status(settings: LocalSettings) -> list[ServiceStatus]:
    """One line for the supervisor, the broker (unless an external one is named) and each service."""
    names = [SUPERVISOR, *([] if settings.kafka_bootstrap else ["kafka"]), *SERVICES]
    return [_line(settings, name) for name in names]


def resident_mb(settings: LocalSettings) -> float:
    """Resident memory in MiB of the stack and of this process, each with its children, and each counted once.

    A stack that this process started is among its children, from before its first line in `status`.
    """
    this = psutil.Process()
    family = {this.pid, *(child.pid for child in this.children(recursive=True))}
    beside = sum(line.rss_mb for line in status(settings) if line.pid is not None and line.pid not in family)
    return resident_bytes(this) / 2**20 + beside


def _line(settings: LocalSettings, name: str) -> ServiceStatus:
    record = read_record(settings.run_folder, name)
    ports = {} if name == SUPERVISOR else settings.ports.taken_by(name)
    if record is None:
        return ServiceStatus(name, "stopped", None, ports, 0.0, 0.0, 0, "")
    process = record.process()
    if process is None:
        state = record.state if record.state in {"failed", "restarting"} else "died"
        return ServiceStatus(name, state, None, dict(record.ports), 0.0, 0.0, record.restarts, record.error)
    # The supervisor is the parent of all; its own share is what is asked for.
    used = _own_bytes(process) if name == SUPERVISOR else resident_bytes(process)
    return ServiceStatus(
        service=name,
        state=record.state,
        pid=record.pid,
        ports=dict(record.ports),
        rss_mb=used / 2**20,
        uptime_s=max(0.0, time.time() - record.started_at),
        restarts=record.restarts,
        error=record.error,
    )


def _own_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _supervisor(settings: LocalSettings) -> ProcessRecord | None:
    record = read_record(settings.run_folder, SUPERVISOR)
    return record if record is not None and record.process() is not None else None


def _await_ready(settings: LocalSettings, ended: Callable[[], int | None], log_from: int | None, say: Say) -> None:
    """Passes on what the supervisor says until it says that all is ready."""
    log = settings.log_folder / f"{SUPERVISOR}.log"
    place = log_from if log_from is not None else log.stat().st_size
    end = time.monotonic() + settings.start_deadline_s + settings.stop_deadline_s
    while True:
        over = ended()
        place = _pass_on(log, place, say)
        record = read_record(settings.run_folder, SUPERVISOR)
        if over is not None:
            reason = record.error if record is not None and record.state == "failed" else ""
            raise Fatal(
                reason or f"the supervisor ended with status {over}: {' '.join(last_lines(log, 1))}",
                remedy="" if reason else f"Read {log}.",
            )
        if record is not None and record.state == "ready" and record.process() is not None:
            return
        if time.monotonic() > end:
            raise Fatal("the stack is still not ready", where=str(log), remedy="Stop it with `shortstack down`.")
        time.sleep(_POLL_S)


def _pass_on(log: Path, place: int, say: Say) -> int:
    """Says the whole lines that ``log`` holds from byte ``place`` on; returns the next place."""
    try:
        with log.open("rb") as stream:
            stream.seek(place)
            news = stream.read()
    except FileNotFoundError:
        return place
    whole = news[: news.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        _, _, text = line.partition(" ")
        if not text.startswith(FAILED):
            say(text)
    return place + len(whole)


def _clear_leftovers(settings: LocalSettings, say: Say) -> None:
    """Ends what an earlier supervisor left behind, and removes its state files.

    Every process of a stack carries the stack's folder in its environment, also those that a service started and
    that outlived it: a trainer, for instance.
    """
    for name in reversed(["kafka", *SERVICES]):
        record = read_record(settings.run_folder, name)
        if record is not None and record.process() is not None:
            say(f"{name}: left over from earlier; stopping")
            end_process(record, settings.stop_deadline_s)
    for process in psutil.process_iter(["pid"]):
        if process.pid != os.getpid() and _belongs(process, settings.root):
            say(f"process {process.pid}: left over from earlier; ended")
            _kill(process)
    for name in (SUPERVISOR, "kafka", *SERVICES):
        (settings.run_folder / f"{name}.json").unlink(missing_ok=True)


def _belongs(process: psutil.Process, root: Path) -> bool:
    try:
        return process.environ().get(_MARK) == str(root)
    except (psutil.Error, OSError):  # another user's, or gone
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(5.0)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One `up` at a time for a stack: the second waits, and then finds it up."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise Fatal(
            f"it cannot be written ({error.strerror})",
            where=str(folder),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder that can be written.",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
