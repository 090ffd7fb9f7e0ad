"""What a controller has written, for the threads that answer questions about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from google.protobuf.message import Message

__all__ = ["Shown"]

M = TypeVar("M", bound=Message)


class Shown(Generic[M]):
    """Copies of snapshots by key: one thread shows, any thread asks or waits. Never change what it gives."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._snapshots: dict[str, M] = {}

    def show(self, key: str, snapshot: M) -> None:
        """Shows a copy of ``snapshot`` from now on."""
        copy = type(snapshot)()
        copy.CopyFrom(snapshot)
        with self._changed:
            self._snapshots[key] = copy
            self._changed.notify_all()

    def get(self, key: str) -> M | None:
        """The snapshot of ``key`` as shown last."""
        with self._changed:
            return self._snapshots.get(key)

    def all(self) -> dict[str, M]:
        """All of them by key."""
        with self._changed:
            return dict(self._snapshots)

    def wake(self) -> None:
        """Has everyone who waits look again: something beside the snapshots has changed."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, met: Callable[[Mapping[str, M]], bool], timeout_s: float) -> bool:
        """Waits until the snapshots meet a condition; whether they do."""
        with self._changed:
            return self._changed.wait_for(lambda: met(self._snapshots), timeout_s)
