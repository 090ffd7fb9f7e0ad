"""Attempts as processes of this machine, one agent each. Their truth is in the run folder: any launcher finds them."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from shortstack.training.launcher import AttemptOrder, AttemptPhase, AttemptStatus
from shortstack.training.trainer.files import write_atomic

__all__ = ["TRAINER", "AttemptPaths", "ProcessLauncher", "attempt_paths", "kill_leftovers", "locked"]

TRAINER: Final = "shortstack.training.trainer.main"
_AGENT: Final = (sys.executable, "-m", "shortstack.training.agent")
_KILLED_S: Final = 10.0
_TERM_S: Final = 15.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """Files of one attempt in its run folder.

    Attributes:
        order: what the agent was told; its presence means "started".
        lock: held by the agent while it lives.
        cancelled: its presence means "has been asked to end".
        result: the agent's last word, written whole.
        log: output of agent and trainer.
    """

    folder: Path
    order: Path
    lock: Path
    cancelled: Path
    result: Path
    log: Path


def attempt_paths(runs: Path, run: str, attempt: int) -> AttemptPaths:
    """The paths of an attempt."""
    folder = runs / run
    parts = ("order.json", "lock", "cancelled", "result.json", "log")
    return AttemptPaths(folder, *(folder / f"attempt-{attempt}.{part}" for part in parts))


class ProcessLauncher:
    """Runs agents, each in a session of its own so that it outlives this process.

    Args:
        runs: folder of the run folders.
        agent: command of the agent; the path of its order is appended.
    """

    def __init__(self, runs: Path, agent: Sequence[str] = _AGENT) -> None:
        self._runs, self._agent = runs.resolve(), tuple(agent)
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Makes the folder of runs."""
        self._runs.mkdir(parents=True, exist_ok=True)

    def place(self, run: str) -> str:
        """See `Launcher.place`."""
        return str(self._runs / run)

    def launch(self, order: AttemptOrder) -> None:
        """See `Launcher.launch`."""
        paths = attempt_paths(self._runs, order.run, order.attempt)
        if paths.order.exists():
            return
        paths.folder.mkdir(parents=True, exist_ok=True)
        kill_leftovers(paths.folder, (TRAINER, self._agent[-1]))
        write_atomic(paths.order, order.to_json())
        with paths.log.open("ab") as log:
            self._children.append(
                subprocess.Popen(
                    [*self._agent, str(paths.order)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """See `Launcher.status`."""
        self._children = [child for child in self._children if child.poll() is None]
        paths = attempt_paths(self._runs, run, attempt)
        if not paths.order.exists():
            return AttemptStatus(AttemptPhase.ABSENT)
        # Asked before the result is looked for: an agent that ends in between has written it.
        alive = locked(paths.lock) or bool(self._agents(paths))
        if paths.result.exists():
            return AttemptStatus.told(paths.result.read_bytes())
        if alive:
            return AttemptStatus(AttemptPhase.RUNNING)
        kill_leftovers(paths.folder, (TRAINER,))
        return AttemptStatus(AttemptPhase.LOST, message=f"its agent died without a word; see {paths.log}")

    def cancel(self, run: str, attempt: int) -> None:
        """See `Launcher.cancel`."""
        paths = attempt_paths(self._runs, run, attempt)
        # An agent that has no lock yet has no handler either, and would die of the signal: it is asked a moment later.
        if paths.cancelled.exists() or not locked(paths.lock):
            return
        for agent in self._agents(paths):
            _terminate(agent)
            paths.cancelled.touch()

    def forget(self, run: str) -> None:
        """See `Launcher.forget`: the run folder is the record of the run, and stays."""

    def stop(self, deadline_s: float) -> None:
        """Ends the agents of this machine: when the stack goes down, nothing of it goes on."""
        agents = _processes(self._runs, (self._agent[-1],))
        for agent in agents:
            _terminate(agent)
        _await_end(agents, min(deadline_s, _TERM_S))
        kill_leftovers(self._runs, (TRAINER, self._agent[-1]))
        for child in self._children:
            child.poll()

    def _agents(self, paths: AttemptPaths) -> list[psutil.Process]:
        return _processes(paths.order, (self._agent[-1],))


def kill_leftovers(folder: Path, programs: Sequence[str]) -> None:
    """Kills what works on a run folder, or on any below ``folder``: torchrun's ranks have sessions of their own, so
    nothing else reaches them when their parents were killed."""
    left = _processes(folder, programs)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(left, _KILLED_S)


def _await_end(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Waits until they have ended. Whose parent died is another's to reap, and not every init does that: a zombie has
    ended too, so psutil's own wait, which is for the process id to be free, would last to its timeout."""
    deadline = time.monotonic() + timeout_s
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes(path: Path, programs: Sequence[str]) -> list[psutil.Process]:
    """Processes of one of the programs that were told ``path`` or something below it."""
    name, found = str(path), []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or ()
        named = any(argument == name or argument.startswith(f"{name}/") for argument in arguments)
        if named and any(program in arguments for program in programs):
            found.append(process)
    return found


def locked(lock: Path) -> bool:
    """Whether a living process holds the lock; a file that is not there is held by nobody."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _terminate(process: psutil.Process) -> None:
    """To the agent alone: it tells torchrun, and torchrun its ranks, each of them once."""
    with suppress(psutil.NoSuchProcess):
        process.terminate()
