"""The container beside the trainer's: the attempt's only way to Kafka and the object store.

It ships events, stores checkpoints as they become whole, waits until the trainer is over, stores export and papers,
and says how it ended, last. SIGTERM reaches the trainer's container by itself; here it means that the word is
"stopped".
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.errors import Fatal, ShortstackError, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.training.attempt import Attempt, refusal
from shortstack.training.launcher import AttemptOrder
from shortstack.training.pod.folder import PodConfig, PodFolder
from shortstack.training.pod.objects import Log, patiently, put_papers, say
from shortstack.training.pod.stored import StoredCheckpoints
from shortstack.training.processes import locked
from shortstack.training.shipper import EventShipper, shipping
from shortstack.training.trainer.checkpoints import newest_sealed

__all__ = ["run"]

_LOOK_S: Final = 0.2
_AGAIN_S: Final = 10.0
_UNSTARTED_S: Final = 900.0
"""How long a trainer's container may take to start. One that cannot start at all shows in the pod's status, which the
launcher tells; this ends one that was killed before it could take its lock."""


def run() -> int:
    """Accompanies the trainer to its end and speaks the attempt's last word."""
    config, clock, stopping = PodConfig(), SystemClock(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    folder = PodFolder(config.work)
    attempt = Attempt(AttemptOrder.from_json(folder.order.read_bytes()), folder.run, BlobStore.open(config.storage_url))
    with Telemetry.start("training", config) as telemetry, closing(KafkaBroker.connect(config)) as broker:
        log, place = telemetry.log, folder.run / "events.shipped"
        shipper = EventShipper(folder.run / "events.jsonl", config.run, broker.producer, place, clock, log)
        with shipping(shipper, stopping, clock):
            companion = _Companion(attempt, folder, clock, log, stopping)
            companion.wait()
            return companion.conclude()


class _Companion:
    """Follows one trainer."""

    def __init__(self, attempt: Attempt, folder: PodFolder, clock: Clock, log: Log, stopping: threading.Event) -> None:
        self._attempt, self._folder = attempt, folder
        self._clock, self._log, self._stopping = clock, log, stopping
        self._stored = StoredCheckpoints(attempt.blobs, attempt.order.run, log)
        self._next = int(folder.next_stored.read_text())
        found = newest_sealed(folder.run)
        self._last = found.step if found is not None else -1  # restored: it is stored already
        self._not_before = 0.0

    def wait(self) -> None:
        """Returns once the trainer is over, or never began; stores its checkpoints meanwhile."""
        never, began = threading.Event(), self._clock.monotonic()
        while True:
            if self._folder.lock.exists():
                if not locked(self._folder.lock):
                    return
            elif self._stopping.is_set() or self._clock.monotonic() - began > _UNSTARTED_S:
                return
            self._store_newest()
            self._clock.wait(never, _LOOK_S)

    def conclude(self) -> int:
        """Stores what the trainer left, then says how it ended; the exit status."""
        status, stopping = self._folder.exit_status(), self._stopping.is_set()
        try:
            if status == 0 and not stopping:
                export = self._patiently(self._attempt.export, "store the export")
                word: dict[str, Any] = {"exit_code": 0, "export": export}
            else:
                self._store_newest()
                word = self._attempt.failure(status, stopping=stopping, log=self._folder.log.name)
        except (Transient, Fatal):
            # Asked to end while it waited: another goes on from the newest checkpoint.
            self._say_stopped()
            raise
        except ShortstackError as error:
            word = refusal(error)
        order = self._attempt.order
        self._patiently(
            lambda: put_papers(self._attempt.blobs, order.run, order.attempt, self._folder.run), "store the papers"
        )
        self._patiently(lambda: say(self._attempt.blobs, order.run, order.attempt, word), "say how it ended")
        return int(word["exit_code"])

    def _say_stopped(self) -> None:
        """Tells this end from a death, if the store takes as much: a full one may, one that is away does not."""
        order, log = self._attempt.order, self._folder.log.name
        try:
            say(self._attempt.blobs, order.run, order.attempt, self._attempt.failure(None, stopping=True, log=log))
        except (Transient, Fatal) as error:
            self._log.warning("cannot say that it was asked to stop", run=order.run, error=str(error))

    def _store_newest(self) -> None:
        """Stores the newest whole checkpoint that is not yet stored; older ones are passed over."""
        found = newest_sealed(self._folder.run)
        if found is None or found.step <= self._last or self._clock.monotonic() < self._not_before:
            return
        order = self._attempt.order
        try:
            self._next = self._stored.store(found, self._folder.run, order.attempt, self._next)
        except FileNotFoundError:
            return  # a newer one has taken its place
        except ShortstackError as error:
            # Training goes on without; this one, or a newer one, is tried again.
            self._log.warning("checkpoint not stored", run=order.run, step=found.step, error=str(error))
            self._not_before = self._clock.monotonic() + _AGAIN_S
        else:
            failpoint(f"agent.stored_{self._next - 1}")
            self._last = found.step

    def _patiently(self, act: Callable[[], Any], what: str) -> Any:
        """Without end: what took hours is not thrown away because the object store is. SIGTERM ends it."""
        return patiently(
            act,
            self._clock,
            self._log,
            what,
            patience_s=math.inf,
            stopping=self._stopping,
            tell=self._tell_waiting,
        )

    def _tell_waiting(self, words: str) -> None:
        try:
            self._attempt.tell_waiting(words, self._clock.now())
        except OSError as error:  # it goes on waiting, only nobody is told
            self._log.warning("cannot say what is waited for", waits=words, error=str(error))
