"""A launcher whose attempts are only told of, for tests; it passes the same contract tests as `ProcessLauncher`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.training.launcher import STOPPED, AttemptOrder, AttemptPhase, AttemptStatus

__all__ = ["MemoryLauncher"]


class MemoryLauncher:
    """Attempts run until a test says how they end.

    Attributes:
        orders: every attempt that was started, in order.
        forgotten: every run that was said to be over, in order.
    """

    def __init__(self) -> None:
        self.orders: list[AttemptOrder] = []
        self.forgotten: list[str] = []
        self._attempts: dict[tuple[str, int], AttemptStatus] = {}

    def start(self) -> None:
        """See `Launcher.start`."""

    def stop(self, deadline_s: float) -> None:
        """Ends what runs."""
        for run, attempt in list(self._attempts):
            self.cancel(run, attempt)

    def place(self, run: str) -> str:
        """See `Launcher.place`."""
        return f"memory://runs/{run}"

    def forget(self, run: str) -> None:
        """See `Launcher.forget`."""
        self.forgotten.append(run)

    def launch(self, order: AttemptOrder) -> None:
        """See `Launcher.launch`."""
        if (order.run, order.attempt) not in self._attempts:
            self.orders.append(order)
            self._attempts[order.run, order.attempt] = AttemptStatus(AttemptPhase.RUNNING)

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """See `Launcher.status`."""
        return self._attempts.get((run, attempt), AttemptStatus(AttemptPhase.ABSENT))

    def cancel(self, run: str, attempt: int) -> None:
        """See `Launcher.cancel`; here an attempt ends at once."""
        self._end(run, attempt, AttemptStatus(AttemptPhase.FAILED, code=STOPPED, message="asked to stop"))

    def wait(self, run: str, attempt: int, words: str) -> None:
        """The attempt waits for something, or ("") no longer."""
        if self.status(run, attempt).phase is AttemptPhase.RUNNING:
            self._attempts[run, attempt] = AttemptStatus(AttemptPhase.RUNNING, waiting=words)

    def succeed(self, run: str, attempt: int, export: Mapping[str, Any]) -> None:
        """The attempt ends with an export."""
        self._end(run, attempt, AttemptStatus(AttemptPhase.SUCCEEDED, export=export))

    def fail(self, run: str, attempt: int, code: str, message: str, *, final: bool = False) -> None:
        """The attempt ends with a word on why."""
        self._end(run, attempt, AttemptStatus(AttemptPhase.FAILED, code=code, message=message, final=final))

    def lose(self, run: str, attempt: int, *, began: bool = True) -> None:
        """The attempt ends without a word."""
        self._end(run, attempt, AttemptStatus(AttemptPhase.LOST, message="its agent died without a word", began=began))

    def _end(self, run: str, attempt: int, status: AttemptStatus) -> None:
        if self.status(run, attempt).phase is AttemptPhase.RUNNING:
            self._attempts[run, attempt] = status
