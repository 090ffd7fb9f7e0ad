"""Torchrun as a child: started, asked to end once, and what it left behind removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

from shortstack.training.processes import TRAINER, kill_leftovers

__all__ = ["Torchrun"]

_PIECE: Final = 8192
_LOG_S: Final = 5.0


class Torchrun:
    """Torchrun without restarts of its own, and the wish to end it: SIGTERM comes to this process and is passed on
    once, also if it comes before torchrun is there.

    Args:
        folder: the run folder.
        log: also gets what torchrun and the ranks print; None leaves it to this process's own output.
    """

    def __init__(self, folder: Path, attempt: int, processes: int, *, log: Path | None = None) -> None:
        self._folder, self._log = folder, log
        # Its own default is a new folder of the machine's temporary ones for each run, which nobody removes.
        self._scratch = folder / "torchrun"
        self._command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
            f"--log-dir={self._scratch}",
            *(f"--nproc-per-node={processes}", "-m", TRAINER),
            *("--run-dir", str(folder), "--attempt", str(attempt)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._passed_on = False
        self.stopping = threading.Event()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM."""
        self.stopping.set()
        self._pass_on()

    def run(self) -> int:
        """Torchrun's exit status; what it left behind is gone."""
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if not Path("/dev/nvidia0").exists():
            environment.setdefault("DS_ACCELERATOR", "cpu")
        output = None if self._log is None else subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT
        )
        copying = threading.Thread(target=self._copy_output, name="trainer log", daemon=True)
        copying.start()
        if self.stopping.is_set():
            self._pass_on()
        status = self._process.wait()
        kill_leftovers(self._folder, (TRAINER,))
        shutil.rmtree(self._scratch, ignore_errors=True)
        copying.join(_LOG_S)
        return status

    def _copy_output(self) -> None:
        assert self._process is not None
        if self._log is None or self._process.stdout is None:
            return
        with self._log.open("ab") as log:
            while piece := os.read(self._process.stdout.fileno(), _PIECE):
                log.write(piece)
                log.flush()
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()

    def _pass_on(self) -> None:
        if self._process is not None and not self._passed_on:
            self._passed_on = True
            self._process.terminate()
