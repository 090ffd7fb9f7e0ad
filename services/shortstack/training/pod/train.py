"""The main container of an attempt's pod: torchrun, and nothing else.

It has no address of Kafka and no credentials, of that or of the object store. The network is the pod's all the same: a
policy that lets the agent reach them lets this container, too.

Its lock is its sign of life to the agent in the next container: the kernel frees it whatever ends this process, and
with this process, the first of its container, all others of it end.
"""

from __future__ import annotations

import fcntl
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from shortstack.training.launcher import AttemptOrder
from shortstack.training.pod.folder import PodConfig, PodFolder
from shortstack.training.torchrun import Torchrun
from shortstack.training.trainer.files import write_atomic

__all__ = ["run"]


def run() -> int:
    """Trains to the end; torchrun's exit status, a signal's as a shell tells it. The agent reads it as well."""
    folder = PodFolder(PodConfig().work)
    order = AttemptOrder.from_json(folder.order.read_bytes())
    trainer = Torchrun(folder.run, order.attempt, order.processes, log=folder.log)
    signal.signal(signal.SIGTERM, trainer.on_signal)
    with _locked_file(folder.lock):
        status = -signal.SIGTERM if trainer.stopping.is_set() else trainer.run()
        write_atomic(folder.exit, str(int(status)).encode())
    if status:
        sys.stderr.write(f"error: torchrun ended with {int(status)}; see above\n")
    return status if status >= 0 else 128 - status


def _locked_file(lock: Path) -> BinaryIO:
    """The lock, held. It appears under its name only then, so whoever sees it free knows that its holder has died."""
    partial = lock.with_suffix(".partial")
    held = partial.open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    partial.replace(lock)
    return held
