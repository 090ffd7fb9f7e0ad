"""The objects of a run in the store: orders, last words, and the papers of its attempts. All are written once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from shortstack.core.clock import Clock
from shortstack.core.digest import canonical_json
from shortstack.core.errors import Conflict, Fatal, Transient
from shortstack.storage.blobs import BlobStore

__all__ = ["RUNS", "Log", "order_key", "patiently", "put_papers", "result_key", "say"]

RUNS: Final = "runs"
"""Prefix of everything that runs leave beside their exports."""

_PAPERS: Final = (
    "config.resolved.yaml",
    "dataset.manifest.json",
    "environment.lock",
    "events.jsonl",
    "loss.png",
    "metrics.jsonl",
    "samples.json",
    "samples.md",
    "summary.json",
    "trainer.log",
)
_PATIENCE_S: Final = 600.0
_STOPPED_S: Final = 30.0
_PAUSE_S: Final = 2.0
_Result = TypeVar("_Result")


class Log(Protocol):
    """What the containers of a pod log to."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Something went wrong, and the work goes on."""
        ...


def order_key(run: str, attempt: int) -> str:
    """Key of what an attempt is told; its presence means "started"."""
    return f"{RUNS}/{run}/attempt-{attempt}.order.json"


def result_key(run: str, attempt: int) -> str:
    """Key of an attempt's last word."""
    return f"{RUNS}/{run}/attempt-{attempt}.result.json"


def say(blobs: BlobStore, run: str, attempt: int, word: dict[str, Any]) -> None:
    """Writes an attempt's last word; the first one stands."""
    key = result_key(run, attempt)
    if not blobs.exists(key):
        try:
            blobs.put(key, canonical_json(word))
        except Conflict:
            return  # another container of the pod was quicker


def put_papers(blobs: BlobStore, run: str, attempt: int, folder: Path) -> None:
    """Keeps what a run folder says of its attempt, for people: the pod and its folder go."""
    for name in _PAPERS:
        key = f"{RUNS}/{run}/attempt-{attempt}/{name}"
        if (folder / name).is_file() and not blobs.exists(key):
            blobs.put_file(key, folder / name)


def patiently(
    act: Callable[[], _Result],
    clock: Clock,
    log: Log,
    what: str,
    *,
    patience_s: float = _PATIENCE_S,
    stopping: threading.Event | None = None,
    stopped_s: float = _STOPPED_S,
    tell: Callable[[str], None] | None = None,
) -> _Result:
    """Does what needs the object store, and tries again while that is away, or full.

    Args:
        patience_s: how long; `math.inf` for what must not be thrown away.
        stopping: once it is set, ``stopped_s`` are left.
        tell: is told, once, what is waited for, and "" when that is over.

    Raises:
        Transient, Fatal: it was so all the time.
    """
    deadline, never, said = clock.monotonic() + patience_s, threading.Event(), False
    while True:
        try:
            result = act()
        except (Transient, Fatal) as error:
            if stopping is not None and stopping.is_set():
                deadline, stopping = min(deadline, clock.monotonic() + stopped_s), None
            if clock.monotonic() > deadline:
                raise
            if not said:
                log.warning("waiting for the object store", doing=what, error=str(error))
                if tell is not None:
                    tell(f"cannot {what}: {error}")
            said = True
            clock.wait(stopping or never, _PAUSE_S)
        else:
            if said and tell is not None:
                tell("")
            return result
