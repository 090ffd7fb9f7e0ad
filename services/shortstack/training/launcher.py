"""How an attempt is started, found again, and ended. One interface, two launchers: processes here, Jobs in a cluster.

The attempt's name (run and number) is the lock: launching what runs already, or has ended, does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

__all__ = ["STOPPED", "AttemptOrder", "AttemptPhase", "AttemptStatus", "Launcher"]

STOPPED = "stopped"
"""Code of an attempt that ended because it was asked to; another one goes on from its checkpoint."""


class AttemptPhase(StrEnum):
    """Where an attempt is."""

    ABSENT = "absent"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """It was started, and ended without a word: killed, or the machine went down."""


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """What is known of an attempt.

    Attributes:
        export: of a success: ``{"prefix", "manifest", "manifest_sha256", "digest", "base_digest", "prompt_format"}``.
        code, message, remedy: of a failure.
        final: of a failure: another attempt would fail alike.
    """

    phase: AttemptPhase
    export: Mapping[str, Any] | None = None
    code: str = ""
    message: str = ""
    remedy: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class AttemptOrder:
    """What an attempt's agent is told.

    Attributes:
        manifest: object key of the dataset's manifest.
        plan: the trainer's plan without local paths of the dataset.
    """

    run: str
    attempt: int
    manifest: str
    processes: int
    plan: Mapping[str, Any]


class Launcher(Protocol):
    """Starts attempts and tells how they are. No retries of its own: an attempt is all or nothing."""

    def launch(self, order: AttemptOrder) -> None:
        """Starts the attempt unless it was started before."""
        ...

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """How the attempt is."""
        ...

    def cancel(self, run: str, attempt: int) -> None:
        """Asks its processes, once, to end; `status` says when they have. Nothing happens to one that has ended."""
        ...

    def start(self) -> None:
        """As a component: before the controller."""
        ...

    def stop(self, deadline_s: float) -> None:
        """As a component: ends whatever this launcher must not leave behind."""
        ...
