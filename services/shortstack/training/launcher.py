"""How an attempt is started, found again, and ended. One interface, two launchers: processes here, Jobs in a cluster.

The attempt's name (run and number) is the lock: launching what runs already, or has ended, does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

import orjson

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
        began: of a failure: whether its trainer ran at all.
        waiting: of one that is absent or runs: what keeps it from starting, and what to do; "" where nothing does.
    """

    phase: AttemptPhase
    export: Mapping[str, Any] | None = None
    code: str = ""
    message: str = ""
    remedy: str = ""
    final: bool = False
    waiting: str = ""
    began: bool = True

    @classmethod
    def told(cls, result: bytes) -> Self:
        """What an attempt's last word says: ``{"exit_code", "export"}`` or ``{"exit_code", "code", "message", …}``."""
        word = orjson.loads(result)
        if word["exit_code"] == 0:
            return cls(AttemptPhase.SUCCEEDED, export=word["export"])
        words = {name: word.get(name, "") for name in ("code", "message", "remedy")}
        return cls(AttemptPhase.FAILED, **words, final=bool(word.get("final")))


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

    def to_json(self) -> bytes:
        """The order as it is written down for whoever carries it out."""
        return orjson.dumps({**asdict(self), "plan": dict(self.plan)}, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Reads what `to_json` wrote; a later version may have said more."""
        given = orjson.loads(text)
        return cls(**{name: given[name] for name in ("run", "attempt", "manifest", "processes", "plan")})


class Launcher(Protocol):
    """Starts attempts and tells how they are. No retries of its own: an attempt is all or nothing.

    Every method may raise `Transient` while what it needs is away, and `Forbidden` while this process lacks a right.
    """

    def place(self, run: str) -> str:
        """Where the run's files are, for people: a folder or an address."""
        ...

    def launch(self, order: AttemptOrder) -> None:
        """Starts the attempt unless it was started before. What cannot be started yet is absent and says why."""
        ...

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """How the attempt is."""
        ...

    def cancel(self, run: str, attempt: int) -> None:
        """Asks its processes, once, to end; `status` says when they have. Nothing happens to one that has ended."""
        ...

    def forget(self, run: str) -> None:
        """The run succeeded or was cancelled: lets go of what only a further attempt would need. May be told again."""
        ...

    def start(self) -> None:
        """As a component: before the controller."""
        ...

    def stop(self, deadline_s: float) -> None:
        """As a component: ends whatever this launcher must not leave behind."""
        ...
