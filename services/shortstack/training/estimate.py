"""Counts what a run would train on, in a child process: an estimate takes neither this one's memory nor its torch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.errors import Conflict, Invalid, ShortstackError, Transient
from shortstack.storage.blobs import BlobStore, disk_errors
from shortstack.training.attempt import Attempt
from shortstack.training.launcher import AttemptOrder
from shortstack.training.processes import TRAINER

__all__ = ["Estimator"]

_COUNT_S: Final = 300.0
_BYTES_MAX: Final = 1 << 30
"""Of a dataset's files, which lie on the service's own disk while they are counted: that is sized for a service, not
for datasets."""
_TOO_LITTLE: Final = "the count needed more memory than the training service has"
_MEMORY_REMEDY: Final = (
    "Raise training.resources.limits.memory in the values. The run itself has memory of its own: it can be submitted."
)
_REMEDY: Final = "The run itself has no such limit: submit it."


class Estimator:
    """Asks the trainer to explain, one run at a time. Safe to share between threads.

    Args:
        storage_url: of the object store with the datasets.
        folder: of this alone; there while something is counted.
        count_s: how long a count may take, waiting for another's included.
        bytes_max: of files that are fetched for it.
    """

    def __init__(
        self, storage_url: str, folder: Path, *, count_s: float = _COUNT_S, bytes_max: int = _BYTES_MAX
    ) -> None:
        self._storage_url, self._folder = storage_url, folder.resolve()
        self._count_s, self._bytes_max = count_s, bytes_max
        self._turn = threading.Lock()

    def explain(self, order: AttemptOrder, blobs: BlobStore | None = None) -> Mapping[str, Any]:
        """What the trainer's ``--explain`` says of an order: settings, rows, tokens and steps; see its README.

        Args:
            blobs: the object store; opened anew unless given.

        Raises:
            Invalid: nothing could be trained on, it is too large, or takes too long to count.
            Conflict: the count needed more memory than there is.
            Transient: others are counted, or the object store is away.
            Fatal: the disk is full.
        """
        if not self._turn.acquire(timeout=self._count_s):
            raise Transient("other estimates are under way", remedy="Ask again later.")
        try:
            return self._fetch_and_ask(order, blobs or BlobStore.open(self._storage_url))
        finally:
            self._turn.release()

    def _fetch_and_ask(self, order: AttemptOrder, blobs: BlobStore) -> Mapping[str, Any]:
        self._require_small(order, blobs)
        shutil.rmtree(self._folder, ignore_errors=True)  # of a service that was killed meanwhile
        try:
            with disk_errors(self._folder):
                self._folder.mkdir(parents=True)
                Attempt(order, self._folder, blobs).fetch()
            return self._ask(self._folder, order)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _require_small(self, order: AttemptOrder, blobs: BlobStore) -> None:
        splits = orjson.loads(blobs.get(order.manifest))["splits"]
        size = sum(shard.get("bytes", 0) for split in splits.values() for shard in split.get("shards", ()))
        if size > self._bytes_max:
            raise Invalid(
                f"the dataset's files are {size} bytes, and an estimate counts at most {self._bytes_max}",
                where=f"run {order.run}",
                remedy=_REMEDY,
            )

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
            raise _failure(done.returncode, done.stderr.decode(errors="replace"), f"run {order.run}")
        explained: Mapping[str, Any] = orjson.loads(done.stdout)
        return explained


def _failure(status: int, said: str, where: str) -> ShortstackError:
    """What a count that failed means: the kernel kills for memory, the interpreter says so, the trainer refuses."""
    lines = said.strip().splitlines() or [f"exit status {status}"]
    if status == -signal.SIGKILL or "MemoryError" in lines[-1]:
        return Conflict(_TOO_LITTLE, where=where, remedy=_MEMORY_REMEDY)
    if status < 0:
        return Transient(f"the count was ended by signal {-status}", where=where, remedy="Ask again later.")
    return Invalid(lines[-1].removeprefix("error: "), where=where)
