"""Counts what a run would train on, in a child process: an estimate takes neither this one's memory nor its torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from shortstack.core.errors import Invalid, Transient
from shortstack.storage.blobs import BlobStore
from shortstack.training.attempt import Attempt
from shortstack.training.launcher import AttemptOrder
from shortstack.training.processes import TRAINER

__all__ = ["Estimator"]

_COUNT_S: Final = 300.0
_REMEDY: Final = "The run itself has no such limit: submit it."


class Estimator:
    """Asks the trainer to explain, one run at a time. Safe to share between threads.

    Args:
        storage_url: of the object store with the datasets.
        count_s: how long a count may take, waiting for another's included.
    """

    def __init__(self, storage_url: str, *, count_s: float = _COUNT_S) -> None:
        self._storage_url, self._count_s = storage_url, count_s
        self._turn = threading.Lock()

    def explain(self, order: AttemptOrder, blobs: BlobStore | None = None) -> Mapping[str, Any]:
        """What the trainer's ``--explain`` says of an order: settings, rows, tokens and steps; see its README.

        Args:
            blobs: the object store; opened anew unless given.

        Raises:
            Invalid: nothing could be trained on, or it takes too long to count.
            Transient: others are counted, or the object store is away.
        """
        if not self._turn.acquire(timeout=self._count_s):
            raise Transient("other estimates are under way", remedy="Ask again later.")
        try:
            with TemporaryDirectory(prefix="shortstack-estimate-") as folder:
                Attempt(order, Path(folder), blobs or BlobStore.open(self._storage_url)).fetch()
                return self._ask(Path(folder), order)
        finally:
            self._turn.release()

    def _ask(self, folder: Path, order: AttemptOrder) -> Mapping[str, Any]:
        command = [sys.executable, "-m", TRAINER, "--explain", str(folder), "--ranks", str(order.processes)]
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        try:
            done = subprocess.run(
                command,
                check=False,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._count_s,
            )
        except subprocess.TimeoutExpired as error:
            raise Invalid(f"the dataset was not counted within {self._count_s:g} s", remedy=_REMEDY) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise Invalid(lines[-1].removeprefix("error: "), where=f"run {order.run}")
        explained: Mapping[str, Any] = orjson.loads(done.stdout)
        return explained
