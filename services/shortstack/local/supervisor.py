"""Keeps the processes of the local stack running: starts them in order, restarts what dies, stops in reverse.

``python -m shortstack.local.supervisor`` runs in the foreground until SIGTERM or SIGINT; `stack.up` starts the same
in the background. What it knows lies in ``VAR/run/SERVICE.json``, one file a process, its own among them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from shortstack.core.errors import Fatal, ShortstackError, wire_code
from shortstack.local.processes import ProcessRecord, created_at, end_process, launch, write_record
from shortstack.local.services import Probe, ServiceSpec, Stage, local_stages
from shortstack.local.settings import LocalSettings

__all__ = ["FAILED", "SUPERVISOR", "BackOff", "Supervisor"]

SUPERVISOR: Final = "supervisor"
FAILED: Final = "failed: "
"""Begins the last line that a supervisor which gave up says; `stack.up` raises the same, so it does not repeat it."""

_TICK_S: Final = 0.1
_PROBE_EVERY_S: Final = 2.0
_STUCK_FOR_S: Final = 30.0
_START_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class BackOff:
    """When a process that died is started again: at once twice as late each time, forgiven after a quiet minute.

    Attributes:
        first_s: wait after the first death.
        limit_s: longest wait.
        forgiven_after_s: a life at least this long makes the next death a first one.
    """

    first_s: float = 0.5
    limit_s: float = 30.0
    forgiven_after_s: float = 60.0

    def deaths(self, before: int, lived_s: float) -> int:
        """Deaths in a row, counting the one after a life of ``lived_s``."""
        return 1 if lived_s >= self.forgiven_after_s else before + 1

    def wait_s(self, deaths: int) -> float:
        """Seconds until the next start after so many deaths in a row."""
        return min(self.limit_s, self.first_s * 2.0 ** min(deaths - 1, 16))


class _Charge:
    """One process in the supervisor's care, through all its lives."""

    def __init__(self, spec: ServiceSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.record: ProcessRecord | None = None
        self.deaths = 0
        self.restarts = 0
        self.born = 0.0
        self.start_at = 0.0
        self.probe_at = 0.0
        self.stuck_since: float | None = None
        self.asked: Future[Probe] | None = None

    @property
    def ready(self) -> bool:
        return self.record is not None and self.record.state == "ready"


class Supervisor:
    """Runs ``stages`` until told to stop.

    Args:
        settings: where state files and logs go, and the deadlines.
        stages: what to run; None for the whole local stack.
        say: takes one line for each thing that happens.
        back_off: when what died starts again.
    """

    def __init__(
        self,
        settings: LocalSettings,
        stages: Sequence[Stage] | None = None,
        say: Callable[[str], None] = lambda _: None,
        back_off: BackOff | None = None,
    ) -> None:
        self._settings = settings
        self._stages = stages
        self._say = say
        self._back_off = back_off or BackOff(limit_s=settings.restart_limit_s)
        self._charges: list[_Charge] = []
        self._stopping = threading.Event()
        self._started_at = time.time()
        self._probes = ThreadPoolExecutor(8, thread_name_prefix="probe")
        self._states_must_be_told = True

    def stop(self) -> None:
        """Asks `run` to end; safe from a signal handler and from other threads."""
        self._stopping.set()

    def run(self) -> None:
        """Starts everything, keeps it running until `stop`, then stops everything in reverse order.

        Raises:
            ShortstackError: something did not start; all that had started is stopped again.
        """
        self._report("starting")
        try:
            self._start_all()
            while not self._stopping.wait(_TICK_S):
                self._tick()
        except ShortstackError as error:
            self._states_must_be_told = False
            self._report("failed", str(error))
            raise
        else:
            self._report("stopping")
        finally:
            self._stop_all()
        (self._settings.run_folder / f"{SUPERVISOR}.json").unlink(missing_ok=True)

    def _start_all(self) -> None:
        end = time.monotonic() + self._settings.start_deadline_s
        began = time.monotonic()
        for stage in self._stages if self._stages is not None else local_stages(self._settings):
            awaited = [self._admit(spec) for spec in stage.services]
            for spec in stage.meanwhile:
                self._admit(spec)
            if not self._all_ready(awaited, end):
                return
            stage.afterwards()
        if not self._all_ready(self._charges, end):
            return
        self._report("ready")
        self._states_must_be_told = False
        self._say(f"all ready after {time.monotonic() - began:.1f} s")

    def _admit(self, spec: ServiceSpec) -> _Charge:
        spec.before()
        charge = _Charge(spec)
        self._charges.append(charge)
        self._start(charge)
        return charge

    def _all_ready(self, charges: Sequence[_Charge], end: float) -> bool:
        """Waits until all of ``charges`` are ready; False if `stop` came first."""
        while not all(charge.ready for charge in charges):
            if self._stopping.wait(_TICK_S):
                return False
            self._tick()
            self._give_up_on_hopeless(charges, end)
        return True

    def _give_up_on_hopeless(self, charges: Sequence[_Charge], end: float) -> None:
        """Raises what keeps a stage from being ready: three deaths of one process, or the deadline."""
        for charge in charges:
            if charge.deaths >= _START_ATTEMPTS and charge.process is None:
                raise charge.spec.fault(f"it ended {charge.deaths} times while starting")
            if time.monotonic() > end and not charge.ready:
                raise charge.spec.fault(f"it was not ready within {self._settings.start_deadline_s:.0f} s")

    def _tick(self) -> None:
        now = time.monotonic()
        for charge in self._charges:
            if charge.process is None:
                if now >= charge.start_at:
                    self._start_again(charge)
            elif (status := charge.process.poll()) is not None:
                self._mourn(charge, status, now)
            else:
                self._look_after(charge, now)

    def _start(self, charge: _Charge) -> None:
        spec = charge.spec
        charge.process = launch(spec.command, log=spec.log, environment=spec.environment)
        charge.born = time.monotonic()
        charge.probe_at = 0.0
        charge.stuck_since = None
        charge.asked = None
        charge.record = ProcessRecord(
            service=spec.name,
            pid=charge.process.pid,
            created=created_at(charge.process.pid),
            state="starting",
            started_at=time.time(),
            ports=dict(spec.ports),
            restarts=charge.restarts,
        )
        self._write(charge.record)
        self._say(f"{spec.name}: starting")

    def _start_again(self, charge: _Charge) -> None:
        charge.restarts += 1
        try:
            charge.spec.before()
            self._start(charge)
        except ShortstackError as error:
            self._say(f"{charge.spec.name}: {error}")
            self._plan_restart(charge, str(error))

    def _mourn(self, charge: _Charge, status: int, now: float) -> None:
        charge.process = None
        charge.deaths = self._back_off.deaths(charge.deaths, now - charge.born) - 1
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._plan_restart(charge, f"it ended with {how}")

    def _plan_restart(self, charge: _Charge, why: str) -> None:
        charge.deaths += 1
        wait = self._back_off.wait_s(charge.deaths)
        charge.start_at = time.monotonic() + wait
        self._set_state(charge, "restarting", why)
        self._say(f"{charge.spec.name}: {why}; starting again in {wait:.1f} s")

    def _look_after(self, charge: _Charge, now: float) -> None:
        """Asks the process how it is, beside this loop, and acts on the last answer."""
        if charge.asked is not None and charge.asked.done():
            answer = charge.asked.result()
            charge.asked = None
            charge.probe_at = now + (_PROBE_EVERY_S if charge.ready and answer.ready else _TICK_S)
            self._judge(charge, answer, now)
        if charge.asked is None and now >= charge.probe_at:
            charge.asked = self._probes.submit(charge.spec.probe)

    def _judge(self, charge: _Charge, answer: Probe, now: float) -> None:
        if answer.ready and not charge.ready:
            self._set_state(charge, "ready")
            self._say(f"{charge.spec.name}: ready after {now - charge.born:.1f} s")
        elif not answer.ready and charge.ready:
            self._set_state(charge, "unready")
            self._say(f"{charge.spec.name}: no longer ready")
        if not answer.stuck:
            charge.stuck_since = None
            return
        charge.stuck_since = charge.stuck_since or now
        if now - charge.stuck_since > _STUCK_FOR_S and charge.process is not None:
            self._say(f"{charge.spec.name}: made no progress; ended, to be started again")
            charge.process.kill()

    def _set_state(self, charge: _Charge, state: str, error: str = "") -> None:
        if charge.record is not None:
            charge.record = replace(charge.record, state=state, error=error)
            self._write(charge.record)

    def _stop_all(self) -> None:
        """In reverse order under one deadline; the broker, started first, thus goes last."""
        end = time.monotonic() + self._settings.stop_deadline_s
        for charge in reversed(self._charges):
            if charge.process is not None and charge.record is not None:
                self._say(f"{charge.spec.name}: stopping")
                if not end_process(charge.record, max(1.0, end - time.monotonic())):
                    self._say(f"{charge.spec.name}: did not stop in time and was killed")
                self._reap(charge.spec.name, charge.process)
            (self._settings.run_folder / f"{charge.spec.name}.json").unlink(missing_ok=True)
        self._probes.shutdown(wait=False, cancel_futures=True)

    def _reap(self, name: str, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel: the others must be stopped all the same.
            self._say(f"{name}: process {process.pid} does not go even when killed")

    def _write(self, record: ProcessRecord) -> None:
        """Writes a state file. A start fails where that cannot be done; a stack that runs goes on.

        Raises:
            Fatal: the disk is full or the folder cannot be written, and not everything has been ready yet.
        """
        try:
            write_record(self._settings.run_folder, record)
        except Fatal as error:
            if self._states_must_be_told:
                raise
            self._say(f"{record.service}: {error}")

    def _report(self, state: str, error: str = "") -> None:
        """Says in a file of its own how the whole is; `stack.up` waits for it."""
        own = ProcessRecord(SUPERVISOR, os.getpid(), created_at(os.getpid()), state, self._started_at, error=error)
        self._write(own)


def main() -> int:
    """Supervises what the environment names, until a signal; the exit status follows the error's kind."""
    try:
        supervisor = Supervisor(LocalSettings(), say=_say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        supervisor.run()
    except ShortstackError as error:
        _say(f"{FAILED}{error}")
        return wire_code(error).exit_code
    return 0


def _say(line: str) -> None:
    # It goes to a file: a full disk must not end what supervises everything else.
    with suppress(OSError):
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
