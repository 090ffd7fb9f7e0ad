"""The first container of an attempt's pod: everything that training reads, into the shared folder.

It has the object store's credentials, which the trainer's container has not.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.errors import Fatal, Poison, ShortstackError, Transient
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModel
from shortstack.storage.blobs import BlobStore
from shortstack.storage.weights import fetch_base
from shortstack.training.attempt import Attempt, refusal
from shortstack.training.launcher import AttemptOrder
from shortstack.training.pod.folder import PodConfig, PodFolder
from shortstack.training.pod.objects import Log, order_key, patiently, say
from shortstack.training.pod.stored import StoredCheckpoints
from shortstack.training.trainer.files import write_atomic

__all__ = ["run"]

_ORDER_S: Final = 600.0
_LOOK_S: Final = 1.0


def run() -> int:
    """Fetches order, dataset, base model and newest checkpoint.

    What is wrong for good is the attempt's last word, and the status of an error; it is an error, too, when the
    object store was away, or a disk full, for ten minutes.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the first process of a container has no default for it
    config, clock = PodConfig(), SystemClock()
    blobs, folder = BlobStore.open(config.storage_url), PodFolder(config.work)
    with Telemetry.start("training", config) as telemetry:
        log = telemetry.log
        try:
            step = patiently(lambda: _fetch(config, blobs, folder, clock, log), clock, log, "prepare")
        except (Transient, Fatal):
            raise  # another attempt may find the object store again, or more room
        except ShortstackError as error:
            say(blobs, config.run, config.attempt, refusal(error))
            raise
        log.info("prepared", run=config.run, attempt=config.attempt, resumes_at_step=step or 0)
    return 0


def _fetch(config: PodConfig, blobs: BlobStore, folder: PodFolder, clock: Clock, log: Log) -> int | None:
    key = order_key(config.run, config.attempt)
    _wait_for(blobs, key, clock)
    text = blobs.get(key)
    order = AttemptOrder.from_json(text)
    folder.run.mkdir(parents=True, exist_ok=True)
    base = _base(order, blobs, folder)
    stored = StoredCheckpoints(blobs, config.run, log)
    following = stored.next_number()
    step = stored.restore(folder.run, following)
    write_atomic(folder.next_stored, str(following).encode())
    write_atomic(folder.order, text)
    Attempt(order, folder.run, blobs).fetch(base)
    return step


def _base(order: AttemptOrder, blobs: BlobStore, folder: PodFolder) -> Path:
    wanted = order.plan["base_model"]
    base = fetch_base(blobs, wanted["name"], folder.bases / wanted["name"])
    found = BaseModel(wanted["name"], base).digest()
    if found != wanted["digest"]:
        raise Poison(
            f'base model "{wanted["name"]}" in the object store is {found}, the run was opened for {wanted["digest"]}',
            where=f"run {order.run}",
            remedy="Import the model that the training service knows, or ask for the job anew.",
        )
    return base


def _wait_for(blobs: BlobStore, key: str, clock: Clock) -> None:
    """The launcher writes the order right after it has made the Job.

    Raises:
        Transient: it has not. That says nothing about the run: once the launcher is back, another attempt goes on.
    """
    deadline, never = clock.monotonic() + _ORDER_S, threading.Event()
    while not blobs.exists(key):
        if clock.monotonic() >= deadline:
            raise Transient(
                f"no order came for {_ORDER_S:.0f} s",
                where=key,
                remedy="See that the training service runs and writes to the same object store.",
            )
        clock.wait(never, _LOOK_S)
