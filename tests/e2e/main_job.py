"""The main job as `make run` does it: the command `demo --exit`, beside the tests of the session's stack."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.stack import Stack

__all__ = ["MainJob"]

_END_S = 60.0


class MainJob:
    """A run of ``shortstack demo --exit`` on a stack that is up, and what it prints."""

    def __init__(self, stack: Stack) -> None:
        self._command = [sys.executable, "-m", "shortstack.cli.main", "demo", "--exit"]
        # Among the logs, so that a test that fails shows how far it came.
        self._said = stack.settings.log_folder / "demo.log"
        self._shown = self._said.with_suffix(".out")
        with self._said.open("wb") as said, self._shown.open("wb") as shown:
            self._process = subprocess.Popen(
                self._command, env=stack.environment, stdin=subprocess.DEVNULL, stdout=shown, stderr=said
            )

    def ended(self, *, within_s: float) -> subprocess.CompletedProcess[str]:
        """How it ended; fails if it does not."""
        try:
            status = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {within_s:.0f} s: {self._said.read_text()}") from None
        return subprocess.CompletedProcess(self._command, status, self._shown.read_text(), self._said.read_text())

    def stop(self) -> None:
        """Ends it, if it has not ended."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
