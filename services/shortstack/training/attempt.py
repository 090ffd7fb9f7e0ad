"""What an attempt needs beside torchrun, wherever it runs: its dataset and plan before, its export and last word after.

The agent of one machine does all of it in one process; in a cluster the containers of a pod share it out.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Poison, ShortstackError
from shortstack.core.failpoints import failpoint
from shortstack.storage.blobs import BlobStore
from shortstack.training.launcher import STOPPED, AttemptOrder
from shortstack.training.trainer.events import EventLog, read_lines
from shortstack.training.trainer.files import write_json

__all__ = ["DIED", "Attempt", "refusal"]

DIED: Final = "trainer_died"
"""Code of a trainer that ended without a word of its own."""

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
class Attempt:
    """One attempt in its run folder."""

    order: AttemptOrder
    folder: Path
    blobs: BlobStore

    def fetch(self, base: Path | None = None) -> None:
        """Dataset shards into the run folder, then the trainer's plan, which names them.

        Args:
            base: where the base model's weights are here; None leaves what the order says.
        """
        manifest = orjson.loads(self.blobs.get(self.order.manifest))
        splits = {}
        for split in ("train", "validation"):
            shards = manifest["splits"].get(split, {}).get("shards", [])
            splits[split] = [str(self._shard(shard)) for shard in shards]
        plan = {
            **self.order.plan,
            "attempt": self.order.attempt,
            "dataset": {"name": manifest["dataset"], "version": manifest["version"], "manifest": manifest, **splits},
        }
        if base is not None:
            plan["base_model"] = {**plan["base_model"], "path": str(base)}
        write_json(self.folder / "plan.json", plan)

    def _shard(self, shard: Mapping[str, Any]) -> Path:
        path = self.folder / "data" / Path(shard["key"]).name
        if not path.exists():
            self.blobs.fetch(shard["key"], path, shard["sha256"])
        return path.resolve()

    def export(self) -> dict[str, Any]:
        """Puts the export into the object store, its manifest last, and says where it is."""
        folder = self.folder / "export"
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
            "base_digest": self.order.plan["base_model"]["digest"],
            "prompt_format": manifest["prompt_format"],
        }

    def tell_waiting(self, words: str, at: datetime) -> None:
        """Adds to the events of a trainer that is over what its end waits for; "" for nothing any more.

        Raises:
            OSError: the disk is full, for example.
        """
        with EventLog(self.folder / "events.jsonl", self.order.attempt, at.timestamp) as events:
            events.write("waiting", waits=words, message=words or "It waits no longer, and goes on.")

    def failure(self, status: int | None, *, stopping: bool, log: str) -> dict[str, Any]:
        """The last word on an attempt without an export, in the trainer's own words if it had time for any.

        Args:
            status: torchrun's exit status, negative where a signal ended it; None if nobody saw its end.
            log: where to read more.
        """
        stopping = stopping or status == -signal.SIGTERM
        said = self._last_failure()
        code = STOPPED if stopping else said.get("code", DIED)
        died = f"the trainer {_how(status)} and left no word; see {log}"
        message = "asked to stop" if stopping else said.get("message", died)
        remedy = "" if stopping else said.get("remedy", "")
        final = code in _FINAL_CODES
        exit_code = status if status is not None and status > 0 else 1
        return {"exit_code": exit_code, "code": code, "message": message, "remedy": remedy, "final": final}

    def _last_failure(self) -> Mapping[str, Any]:
        lines = read_lines(self.folder / "events.jsonl")
        failed = [e for e in lines if e["type"] == "failed" and e["attempt"] == self.order.attempt]
        return failed[-1] if failed else {}


def _how(status: int | None) -> str:
    if status is None:
        return "was killed"
    return f"ended with {status}" if status >= 0 else f"was ended by signal {-status}"


def refusal(error: ShortstackError) -> dict[str, Any]:
    """The last word on an attempt that failed outside the trainer; what is poison now is poison to the next one."""
    final = isinstance(error, Poison)
    return {"exit_code": 1, "code": "agent", "message": str(error), "remedy": error.remedy, "final": final}
