"""From start to stop: components in order, one deadline for all of them, an exit code that means something."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol

import structlog

from shortstack.core.errors import ShortstackError, wire_code

__all__ = ["Background", "Component", "run_service", "run_until_signal"]

_WATCH_S: Final = 0.1
_ABORT_AFTER_S: Final = 5.0
"""Seconds past the deadline after which a process that hangs in a library ends anyway."""


class Component(Protocol):
    """Something that runs beside others in one process.

    A component that can fail after its start has an attribute ``failed: Exception | None``.
    """

    def start(self) -> None:
        """Begins; returns once it runs (it may still wait for Kafka)."""
        ...

    def stop(self, deadline_s: float) -> None:
        """Ends within ``deadline_s`` seconds. Calling it twice, or before `start`, does nothing."""
        ...


class Background(ABC):
    """A component with one thread of its own, which ends by itself only when it fails.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self.failed: Exception | None = None

    def start(self) -> None:
        """Starts the thread; waits for nothing."""
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Lets the round under way end."""
        self._stopping.set()
        self.join(deadline_s)

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread to end; whether it did, or never began."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _run(self) -> None:
        """The thread's work, until ``_stopping`` is set. What it raises ends the process."""

    def _fail(self, error: Exception) -> None:
        self.failed = error

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - `run_until_signal` ends the process with it
            self._fail(error)


def run_until_signal(
    components: Sequence[Component],
    *,
    grace_s: float,
    log: structlog.stdlib.BoundLogger,
    stop: threading.Event | None = None,
) -> int:
    """Starts ``components`` in order, waits, and stops them in reverse.

    It waits for SIGTERM, SIGINT, ``stop``, or the failure of a component. All of them share one deadline of
    ``grace_s`` seconds; a process that still hangs 5 s later ends with exit code 75.

    Returns:
        0 after a signal; else the exit code of the error (`wire_code`).
    """
    ending = stop or threading.Event()
    started: list[Component] = []
    error: Exception | None = None
    with _signals(ending):
        try:
            for component in components:
                if ending.is_set():
                    break
                started.append(component)
                component.start()
            log.info("started", components=[type(c).__name__ for c in started])
            error = _wait(ending, started)
        except Exception as raised:  # noqa: BLE001 - whatever it is decides the exit code
            error = raised
        if error is not None:
            _report(log, error)
        stop_error = _stop_all(started, grace_s, log)
    error = error or stop_error
    log.info("stopped", exit_code=_exit_code(error))
    return _exit_code(error)


def run_service(run: Callable[[], int]) -> int:
    """Calls ``run`` and turns an error into one clear line on stderr and its exit code. For a service's ``main``."""
    try:
        return run()
    except ShortstackError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return wire_code(error).exit_code


def _exit_code(error: Exception | None) -> int:
    return 0 if error is None else wire_code(error).exit_code


def _report(log: structlog.stdlib.BoundLogger, error: Exception) -> None:
    known = isinstance(error, ShortstackError)
    log.error("stopping on error", error=str(error), kind=type(error).__name__, exc_info=None if known else error)


def _wait(ending: threading.Event, components: Sequence[Component]) -> Exception | None:
    while not ending.wait(_WATCH_S):
        for component in components:
            failed = getattr(component, "failed", None)
            if isinstance(failed, Exception):
                return failed
    return None


def _stop_all(components: Sequence[Component], grace_s: float, log: structlog.stdlib.BoundLogger) -> Exception | None:
    """Stops in reverse; the first error is returned, and the others are stopped all the same."""
    deadline = time.monotonic() + grace_s
    first: Exception | None = None
    abort = threading.Timer(grace_s + _ABORT_AFTER_S, os._exit, (75,))
    abort.daemon = True
    abort.start()
    try:
        for component in reversed(components):
            try:
                component.stop(max(0.1, deadline - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - the others must still be stopped
                log.error("could not stop cleanly", component=type(component).__name__, error=str(error))
                first = first or error
    finally:
        abort.cancel()
    return first


@contextmanager
def _signals(ending: threading.Event) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into ``ending``; outside of the main thread Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        ending.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
