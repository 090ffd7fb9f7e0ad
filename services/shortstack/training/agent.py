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
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.digest import sha256_hex
from shortstack.core.errors import ShortstackError, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1.training_pb2 import TrainingEvent
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.training.config import TrainingConfig
from shortstack.training.launcher import AttemptPaths, attempt_paths

__all__ = ["EventShipper", "main"]

_POLL_S: Final = 0.2
_BACK_OFF_S: Final = 2.0
_SHIP_S: Final = 10.0
_DRAIN_S: Final = 60.0
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


class EventShipper:
    """Follows ``events.jsonl`` and sends each whole line once it is acknowledged, in order, from a thread."""

    def __init__(self, path: Path, run: str, producer: Producer, clock: Clock, shipped: Path) -> None:
        self._path, self._run, self._producer, self._clock, self._shipped = path, run, producer, clock, shipped
        self._place = int(shipped.read_text()) if shipped.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="events", daemon=True)

    def start(self) -> None:
        """Starts to follow."""
        self._thread.start()

    def finish(self, timeout_s: float) -> bool:
        """Sends what is left; whether all of it was acknowledged in time."""
        self._ended.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        while True:
            ended = self._ended.is_set()
            try:
                sent = self._ship()
            except Transient:
                self._clock.wait(threading.Event(), _BACK_OFF_S)
                continue
            if ended and not sent:
                return
            if not sent:
                self._ended.wait(_POLL_S)

    def _ship(self) -> int:
        """Sends the whole lines that stand after the last acknowledged place; how many."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        lines = [line for line in whole.splitlines() if line.strip()]
        sends = [self._producer.send(self._event(orjson.loads(line))) for line in lines]
        for send in sends:
            try:
                send.result(_SHIP_S)
            except TimeoutError as error:
                raise Transient("the broker does not acknowledge events") from error
        self._place += len(whole)
        if lines:
            self._shipped.write_text(str(self._place))
        return len(lines)

    def _event(self, line: Mapping[str, Any]) -> Any:
        event = TrainingEvent(
            run=self._run,
            attempt=line["attempt"],
            seq=line["seq"],
            type=line["type"],
            payload_json=orjson.dumps(line).decode(),
            level={"failed": "error", "warning": "warn"}.get(line["type"], "info"),
            message=str(line.get("message", "")),
        )
        event.time.FromMilliseconds(int(line["time"] * 1000))
        return outbound(
            topics.TRAINING_EVENTS,
            self._run,
            event.SerializeToString(),
            type="shortstack.training.event",
            source="training",
            clock=self._clock,
            id=f"{self._run}/{line['attempt']}/{line['seq']}",
        )


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
            "shortstack.training.trainer.main",
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


def _run_trainer(attempt: _Attempt) -> int:
    """Torchrun's exit status. SIGTERM comes to the whole session: torchrun ends its ranks, and this waits for it."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if not Path("/dev/nvidia0").exists():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return subprocess.run(attempt.command(), env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def _work(attempt: _Attempt, shipper: EventShipper) -> int:
    try:
        attempt.fetch()
        status = _run_trainer(attempt)
        if status == 0:
            attempt.say(exit_code=0, export=attempt.export())
            return 0
        failure = attempt.last_failure()
        code = failure.get("code", "trainer_died")
        attempt.say(
            exit_code=status,
            code=code,
            message=failure.get(
                "message", f"the trainer ended with {status} and no word; see {attempt.paths.log.name}"
            ),
            remedy=failure.get("remedy", ""),
            final=code in _FINAL_CODES,
        )
        return status
    except ShortstackError as error:
        attempt.say(exit_code=1, code="agent", message=str(error), remedy=error.remedy, final=False)
        return 1
    finally:
        shipper.finish(_DRAIN_S)


def main(arguments: Sequence[str]) -> int:
    """``python -m shortstack.training.agent ORDER``: runs one attempt to its end."""
    order = orjson.loads(Path(arguments[0]).read_bytes())
    config, clock = TrainingConfig(), SystemClock()
    paths = attempt_paths(Path(arguments[0]).parent.parent, order["run"], order["attempt"])
    with paths.lock.open("a+b") as lock, Telemetry.start("training", config) as telemetry:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            telemetry.log.info("attempt is running already", run=order["run"], attempt=order["attempt"])
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        signal.signal(signal.SIGTERM, lambda *_: None)  # see _run_trainer
        with closing(KafkaBroker.connect(config)) as broker:
            shipper = EventShipper(
                paths.folder / "events.jsonl", order["run"], broker.producer(), clock, paths.folder / "events.shipped"
            )
            shipper.start()
            return _work(_Attempt(order, paths, BlobStore.open(config.storage_url)), shipper)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
