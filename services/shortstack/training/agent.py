"""The agent of one attempt on one machine: parent of torchrun, and its only way to Kafka and the object store.

It fetches the dataset, starts torchrun, ships what rank 0 writes to ``events.jsonl``, keyed by (run, attempt, seq),
puts the export into the object store, and says how it ended. A broker that is gone stops no step: events wait in
their file until it is back.
"""

from __future__ import annotations

import fcntl
import math
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.errors import ShortstackError
from shortstack.core.telemetry import Telemetry
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.training.attempt import Attempt, refusal
from shortstack.training.config import TrainingConfig
from shortstack.training.launcher import AttemptOrder
from shortstack.training.pod.objects import Log, patiently
from shortstack.training.processes import AttemptPaths, attempt_paths
from shortstack.training.shipper import EventShipper, shipping
from shortstack.training.torchrun import Torchrun
from shortstack.training.trainer.files import write_json

__all__ = ["main"]

_LOCK_S: Final = 5.0
_STOPPED_S: Final = 1.0
"""What is left for the object store once SIGTERM came: the launcher kills what has not ended in 15 s, and an agent that
is killed leaves no word, which counts as a death."""


def _work(attempt: Attempt, paths: AttemptPaths, trainer: Torchrun, clock: Clock, log: Log) -> int:
    """Fetches, trains, exports, and says how it ended; the exit status."""
    try:
        attempt.fetch()
        status = 0 if trainer.stopping.is_set() else trainer.run()
        if status == 0 and not trainer.stopping.is_set():
            # Without end: what took hours is not thrown away because the object store is. SIGTERM ends it.
            export = patiently(
                attempt.export,
                clock,
                log,
                "store the export",
                patience_s=math.inf,
                stopping=trainer.stopping,
                stopped_s=_STOPPED_S,
                tell=lambda words: _tell_waiting(attempt, words, clock, log),
            )
            write_json(paths.result, {"exit_code": 0, "export": export})
            return 0
    except ShortstackError as error:
        if not trainer.stopping.is_set():
            write_json(paths.result, refusal(error))
            return 1
        status = None
    word = attempt.failure(status, stopping=trainer.stopping.is_set(), log=paths.log.name)
    write_json(paths.result, word)
    return int(word["exit_code"])


def _tell_waiting(attempt: Attempt, words: str, clock: Clock, log: Log) -> None:
    try:
        attempt.tell_waiting(words, clock.now())
    except OSError as error:  # it goes on waiting, only nobody is told
        log.warning("cannot say what is waited for", waits=words, error=str(error))


def _take(lock: BinaryIO) -> bool:
    """Takes the attempt's lock; a launcher that looks whether it is held may hold it for a moment."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def main(arguments: Sequence[str]) -> int:
    """``python -m shortstack.training.agent ORDER``: runs one attempt to its end."""
    order = AttemptOrder.from_json(Path(arguments[0]).read_bytes())
    config, clock = TrainingConfig(), SystemClock()
    paths = attempt_paths(Path(arguments[0]).parent.parent, order.run, order.attempt)
    attempt = Attempt(order, paths.folder, BlobStore.open(config.storage_url))
    trainer = Torchrun(paths.folder, order.attempt, order.processes)
    signal.signal(signal.SIGTERM, trainer.on_signal)
    with paths.lock.open("a+b") as lock, Telemetry.start("training", config) as telemetry:
        if not _take(lock) or paths.result.exists():
            telemetry.log.info("attempt is running already, or over", run=order.run, attempt=order.attempt)
            return 0
        with closing(KafkaBroker.connect(config)) as broker:
            place, events = paths.folder / "events.shipped", paths.folder / "events.jsonl"
            shipper = EventShipper(events, order.run, broker.producer, place, clock, telemetry.log)
            with shipping(shipper, trainer.stopping, clock):
                return _work(attempt, paths, trainer, clock, telemetry.log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
