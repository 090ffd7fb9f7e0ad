"""``events.jsonl`` and ``metrics.jsonl``: what a run says while it goes on.

Rank 0 alone writes. The agent beside torchrun tails the events and ships them, keyed by (run, attempt, seq);
the trainer knows no Kafka.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.training.trainer.files import write_atomic

__all__ = ["EVENT_TYPES", "EventLog", "MetricLog", "read_lines"]

EVENT_TYPES: Final = ("started", "step", "checkpoint", "eval", "exported", "warning", "finished", "failed", "waiting")
"""The last one is the agent's: once the trainer is over, and what it leaves cannot be stored yet."""


class EventLog:
    """Appends numbered events; each is durable when `write` returns.

    ``seq`` counts over the file, from 1, and goes on after a crash: a last line that was cut short
    is dropped, as its event was never whole.
    """

    def __init__(self, path: Path, attempt: int, now: Callable[[], float]) -> None:
        self._path = path
        self._attempt = attempt
        self._now = now
        lines = _drop_torn_line(path)
        self._seq = max((int(line["seq"]) for line in lines), default=0)
        self._out = path.open("ab")

    def write(self, kind: str, **fields: Any) -> None:
        """Appends one event of a kind in `EVENT_TYPES`, with the clock's time in seconds since 1970.

        Raises:
            Invalid: an unknown kind.
        """
        if kind not in EVENT_TYPES:
            raise Invalid(f'unknown event "{kind}"', where=str(self._path), remedy=did_you_mean(kind, EVENT_TYPES))
        self._seq += 1
        head = {"seq": self._seq, "attempt": self._attempt, "type": kind, "time": round(self._now(), 3)}
        self._out.write((json.dumps({**head, **fields}, ensure_ascii=False) + "\n").encode())
        self._out.flush()
        os.fsync(self._out.fileno())

    def close(self) -> None:
        """Closes the file; nothing more can be written."""
        self._out.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MetricLog:
    """One line a logged step: ``{"step", "loss"?, "eval_loss"?, …}``, in step order over all attempts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def resume_at(self, step: int) -> None:
        """Drops what was logged after ``step``: the attempt that logged it ended before the next checkpoint."""
        kept = [line for line in _drop_torn_line(self._path) if int(line["step"]) <= step]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, step: int, **values: float) -> None:
        """Appends one line; not synced, for a checkpoint is what makes a step count."""
        with self._path.open("a") as out:
            out.write(json.dumps({"step": step, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_lines(self._path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines() if line.strip()]


def _drop_torn_line(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole != len(text):
        os.truncate(path, whole)
    return read_lines(path)
