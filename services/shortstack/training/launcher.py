"""How an attempt is started, found again, and ended. One interface, two launchers: processes here, Jobs in a cluster.

The attempt's name (run and number) is the lock: launching what runs already, or has ended, does nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import psutil

__all__ = ["AttemptOrder", "AttemptPhase", "AttemptStatus", "Launcher", "ProcessLauncher", "attempt_paths"]


class AttemptPhase(StrEnum):
    """Where an attempt is."""

    ABSENT = "absent"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """It was started, and ended without a word: killed, or the machine went down."""


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """What is known of an attempt.

    Attributes:
        export: of a success: ``{"prefix", "manifest", "manifest_sha256", "digest", …}``.
        code, message, remedy: of a failure.
        final: of a failure: another attempt would fail alike.
    """

    phase: AttemptPhase
    export: Mapping[str, Any] | None = None
    code: str = ""
    message: str = ""
    remedy: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class AttemptOrder:
    """What an attempt's agent is told.

    Attributes:
        manifest: object key of the dataset's manifest.
        plan: the trainer's plan without local paths of the dataset.
    """

    run: str
    attempt: int
    manifest: str
    processes: int
    plan: Mapping[str, Any]


class Launcher(Protocol):
    """Starts attempts and tells how they are. No retries of its own: an attempt is all or nothing."""

    def launch(self, order: AttemptOrder) -> None:
        """Starts the attempt unless it was started before."""
        ...

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """How the attempt is."""
        ...

    def cancel(self, run: str, attempt: int) -> None:
        """Asks its processes to end; `status` says when they have."""
        ...

    def start(self) -> None:
        """As a component: before the controller."""
        ...

    def stop(self, deadline_s: float) -> None:
        """As a component: ends whatever this launcher must not leave behind."""
        ...


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """Files of one attempt in its run folder.

    Attributes:
        order: what the agent was told; its presence means "started".
        lock: held by the agent while it lives; holds its process id.
        result: the agent's last word, written whole.
        log: output of agent and trainer.
    """

    folder: Path
    order: Path
    lock: Path
    result: Path
    log: Path


def attempt_paths(runs: Path, run: str, attempt: int) -> AttemptPaths:
    """The paths of an attempt."""
    folder = runs / run
    name = f"attempt-{attempt}"
    return AttemptPaths(folder, *(folder / f"{name}.{part}" for part in ("order.json", "lock", "result.json", "log")))


class ProcessLauncher:
    """Runs agents as processes of this machine, each in a session of its own so that it outlives this process."""

    _TERM_S: Final = 10.0
    CLEAR_S: Final = 10.0

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Makes the folder of runs."""
        self._runs.mkdir(parents=True, exist_ok=True)

    def launch(self, order: AttemptOrder) -> None:
        """See `Launcher.launch`."""
        paths = attempt_paths(self._runs, order.run, order.attempt)
        if paths.order.exists():
            return
        paths.folder.mkdir(parents=True, exist_ok=True)
        _clear(paths.folder)
        body = {
            "run": order.run,
            "attempt": order.attempt,
            "manifest": order.manifest,
            "processes": order.processes,
            "plan": dict(order.plan),
        }
        partial = paths.order.with_suffix(".partial")
        partial.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2))
        partial.replace(paths.order)
        with paths.log.open("ab") as log:
            self._children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "shortstack.training.agent", str(paths.order)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """See `Launcher.status`."""
        for child in self._children:
            child.poll()  # reaps what has ended
        paths = attempt_paths(self._runs, run, attempt)
        if not paths.order.exists():
            return AttemptStatus(AttemptPhase.ABSENT)
        alive = _holder(paths.lock) is not None or self._starting(paths)
        if not paths.result.exists():
            return AttemptStatus(AttemptPhase.RUNNING if alive else AttemptPhase.LOST)
        result = orjson.loads(paths.result.read_bytes())
        if result["exit_code"] == 0:
            return AttemptStatus(AttemptPhase.SUCCEEDED, export=result["export"])
        return AttemptStatus(
            AttemptPhase.FAILED,
            code=result.get("code", ""),
            message=result.get("message", ""),
            remedy=result.get("remedy", ""),
            final=bool(result.get("final")),
        )

    def cancel(self, run: str, attempt: int) -> None:
        """See `Launcher.cancel`."""
        holder = _holder(attempt_paths(self._runs, run, attempt).lock)
        if holder is not None:
            _signal(holder, signal.SIGTERM)

    def stop(self, deadline_s: float) -> None:
        """Ends the agents of this machine: when the stack goes down, nothing of it goes on."""
        living = [h for lock in self._runs.glob("*/attempt-*.lock") if (h := _holder(lock)) is not None]
        for holder in living:
            _signal(holder, signal.SIGTERM)
        deadline = time.monotonic() + min(deadline_s, self._TERM_S)
        while living and time.monotonic() < deadline:
            living = [h for h in living if _alive(h)]
            for child in self._children:
                child.poll()
            time.sleep(0.05)
        for folder in {lock.parent for lock in self._runs.glob("*/attempt-*.lock")} if living else ():
            _clear(folder)

    def _starting(self, paths: AttemptPaths) -> bool:
        """Whether the agent is a child of ours that has not taken its lock yet."""
        name = str(paths.order)
        return any(child.poll() is None and name in child.args for child in self._children)  # type: ignore[operator]


def _clear(folder: Path) -> None:
    """Kills what an agent that was killed has left running on its run folder: torchrun's ranks have own sessions."""
    left = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or ()
        if "shortstack.training.trainer.main" in arguments and str(folder) in arguments:
            process.kill()
            left.append(process)
    psutil.wait_procs(left, timeout=ProcessLauncher.CLEAR_S)


def _holder(lock: Path) -> int | None:
    """Process that holds the lock; None if nobody does."""
    try:
        with lock.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _signal(process: int, number: signal.Signals) -> None:
    """To the agent's whole session, so that torchrun and its ranks get it too."""
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        return
