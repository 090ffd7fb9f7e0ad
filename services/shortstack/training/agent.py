"""The agent of one attempt: parent of torchrun, and its only way to Kafka and the object store.

It fetches the dataset, starts torchrun, ships what rank 0 writes to ``events.jsonl``, keyed by (run, attempt, seq),
puts the export into the object store, and says how it ended. A broker that is gone stops no step: events wait in
their file until it is back.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Final

import orjson

from shortstack.core.clock import SystemClock
from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Poison, ShortstackError
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.training.config import TrainingConfig
from shortstack.training.launcher import STOPPED
from shortstack.training.processes import TRAINER, AttemptPaths, attempt_paths, kill_leftovers
from shortstack.training.shipper import EventShipper

__all__ = ["main"]

_DRAIN_S: Final = 600.0
"""How long an agent that is done waits for a broker that is away."""
_DRAIN_STOPPED_S: Final = 2.0
_LOCK_S: Final = 5.0
_FINAL_CODES: Final = frozenset(
    {
        "bad_plan",
        "no_rows",
        "non_finite_loss",
        "loss_watchdog",
        "ranks_changed",
        "merge_unchanged",
        "non_finite_weights",
    }
)
"""Failures of the trainer that another attempt would only repeat."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    order: Mapping[str, Any]
    paths: AttemptPaths
    blobs: BlobStore

    def fetch(self) -> None:
        """Dataset shards into the run folder, then the trainer's plan, which names them."""
        manifest = orjson.loads(self.blobs.get(self.order["manifest"]))
        splits = {}
        for split in ("train", "validation"):
            shards = manifest["splits"].get(split, {}).get("shards", [])
            splits[split] = [str(self._shard(shard)) for shard in shards]
        plan = {
            **self.order["plan"],
            "attempt": self.order["attempt"],
            "dataset": {"name": manifest["dataset"], "version": manifest["version"], "manifest": manifest, **splits},
        }
        partial = self.paths.folder / ".plan.partial"
        partial.write_bytes(orjson.dumps(plan, option=orjson.OPT_INDENT_2))
        partial.replace(self.paths.folder / "plan.json")

    def _shard(self, shard: Mapping[str, Any]) -> Path:
        path = self.paths.folder / "data" / Path(shard["key"]).name
        if not path.exists():
            self.blobs.fetch(shard["key"], path, shard["sha256"])
        return path.resolve()

    def command(self) -> list[str]:
        """Torchrun without restarts of its own."""
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--max-restarts=0",
            f"--nproc-per-node={self.order['processes']}",
            "-m",
            TRAINER,
            "--run-dir",
            str(self.paths.folder),
            "--attempt",
            str(self.order["attempt"]),
        ]

    def export(self) -> dict[str, Any]:
        """Puts the export into the object store, its manifest last, and says where it is."""
        folder = self.paths.folder / "export"
        text = (folder / "export.manifest.json").read_bytes()
        manifest = orjson.loads(text)
        prefix = f"models/{manifest['digest']}"
        for name in sorted(manifest["files"]):
            self.blobs.put_file(f"{prefix}/{name}", folder / name)
        key = f"{prefix}/export.manifest.json"
        # The manifest may hold what differs between two runs with equal files; the first one stands.
        if not self.blobs.exists(key):
            self.blobs.put(key, text)
        failpoint("agent.after_export")
        return {
            "prefix": prefix,
            "manifest": key,
            "manifest_sha256": sha256_hex(self.blobs.get(key)),
            "digest": manifest["digest"],
            "base_digest": self.order["plan"]["base_model"]["digest"],
            "prompt_format": manifest["prompt_format"],
        }

    def say(self, **result: Any) -> None:
        """Writes the attempt's last word, whole."""
        partial = self.paths.result.with_suffix(".partial")
        partial.write_bytes(orjson.dumps(result))
        partial.replace(self.paths.result)

    def last_failure(self) -> dict[str, Any]:
        """The trainer's own word on why it failed, if it had time for one."""
        events = self.paths.folder / "events.jsonl"
        if not events.exists():
            return {}
        lines = [orjson.loads(line) for line in events.read_bytes().splitlines() if line.endswith(b"}")]
        failed = [e for e in lines if e["type"] == "failed" and e["attempt"] == self.order["attempt"]]
        return failed[-1] if failed else {}


class _Trainer:
    """Torchrun, and the wish to end it: SIGTERM comes to the agent alone and is passed on once, also if it comes before
    torchrun is there."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt
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
        self._process = subprocess.Popen(self._attempt.command(), env=environment, stdin=subprocess.DEVNULL)
        if self.stopping.is_set():
            self._pass_on()
        status = self._process.wait()
        kill_leftovers(self._attempt.paths.folder, (TRAINER,))
        return status

    def _pass_on(self) -> None:
        if self._process is not None and not self._passed_on:
            self._passed_on = True
            self._process.terminate()


def _work(attempt: _Attempt, trainer: _Trainer) -> int:
    """Fetches, trains, exports, and says how it ended; the exit status."""
    try:
        attempt.fetch()
        status = 0 if trainer.stopping.is_set() else trainer.run()
        if status == 0 and not trainer.stopping.is_set():
            attempt.say(exit_code=0, export=attempt.export())
            return 0
    except ShortstackError as error:
        attempt.say(exit_code=1, code="agent", message=str(error), remedy=error.remedy, final=isinstance(error, Poison))
        return 1
    failure = attempt.last_failure()
    code = STOPPED if trainer.stopping.is_set() else failure.get("code", "trainer_died")
    died = f"the trainer ended with {status} and no word; see {attempt.paths.log.name}"
    message = "asked to stop" if code == STOPPED else failure.get("message", died)
    remedy = failure.get("remedy", "")
    attempt.say(exit_code=status or 1, code=code, message=message, remedy=remedy, final=code in _FINAL_CODES)
    return status or 1


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
    order = orjson.loads(Path(arguments[0]).read_bytes())
    config, clock = TrainingConfig(), SystemClock()
    paths = attempt_paths(Path(arguments[0]).parent.parent, order["run"], order["attempt"])
    attempt = _Attempt(order, paths, BlobStore.open(config.storage_url))
    trainer = _Trainer(attempt)
    signal.signal(signal.SIGTERM, trainer.on_signal)
    with paths.lock.open("a+b") as lock, Telemetry.start("training", config) as telemetry:
        if not _take(lock) or paths.result.exists():
            telemetry.log.info("attempt is running already, or over", run=order["run"], attempt=order["attempt"])
            return 0
        with closing(KafkaBroker.connect(config)) as broker:
            place = paths.folder / "events.shipped"
            events = paths.folder / "events.jsonl"
            shipper = EventShipper(events, order["run"], broker.producer, place, clock, telemetry.log)
            shipper.start()
            try:
                return _work(attempt, trainer)
            finally:
                deadline = clock.monotonic() + _DRAIN_S
                while not shipper.finish(_DRAIN_STOPPED_S):
                    if trainer.stopping.is_set() or clock.monotonic() > deadline:
                        break


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
