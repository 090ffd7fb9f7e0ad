"""What the containers of an attempt's pod share: one folder, and one name for each thing in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shortstack.core.config import ServiceConfig

__all__ = ["PodConfig", "PodFolder"]


class PodConfig(ServiceConfig):
    """What an attempt's pod is told beside the shared settings."""

    run: str = Field(description="Id of the run; set by the launcher")
    attempt: int = Field(ge=1, description="Number of the attempt, from 1; set by the launcher")
    work: Path = Field(Path("/work"), description="Folder that the containers of the pod share")


class PodFolder:
    """Paths below the shared folder.

    Attributes:
        run: the run folder, as the trainer knows it.
        bases: folders of base models.
        order: what the attempt is told, as the controller wrote it.
        next_stored: number of the next stored checkpoint, left by `prepare`.
        lock: held by the trainer's container as long as it lives; it is there once that has started.
        exit: torchrun's exit status, written whole at the end.
        log: what torchrun and the ranks print.
    """

    def __init__(self, work: Path) -> None:
        self.run, self.bases = work / "run", work / "bases"
        self.order, self.next_stored = self.run / "order.json", self.run / "stored.next"
        self.lock, self.exit, self.log = self.run / "trainer.lock", self.run / "trainer.exit", self.run / "trainer.log"

    def exit_status(self) -> int | None:
        """Torchrun's exit status; None while it runs, and where it died without a word."""
        return int(self.exit.read_text()) if self.exit.exists() else None
