"""Settings of the training service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from shortstack.core.config import ServiceConfig

__all__ = ["TrainingConfig"]


class TrainingConfig(ServiceConfig):
    """What the training service is told beside the shared settings."""

    base_models: dict[str, Path] = Field(
        {"smollm2-135m-instruct": Path("var/models/smollm2-135m-instruct")},
        description='Base models, as JSON: {"NAME": "FOLDER"}',
    )
    model_aliases: dict[str, str] = Field(
        {}, description='Names that clients may use for base models, as JSON: {"gpt-4o-mini": "smollm2-135m-instruct"}'
    )
    training_runs_dir: Path | None = Field(None, description="Folder of run folders (VAR/runs)")
    training_parallel: int = Field(1, ge=1, description="Runs at the same time")
    training_processes: int = Field(1, ge=1, description="Ranks of a run (torchrun --nproc-per-node)")
    training_max_attempts: int = Field(
        4, ge=1, description="Attempts that may die without a new checkpoint before a run fails"
    )
    training_back_off_s: float = Field(
        5.0, ge=0, description="Seconds before the attempt after one that died; twice as long each time, at most 300"
    )
    training_dataset_wait_s: float = Field(
        3600.0, gt=0, description="Seconds that a job waits for its dataset to be accepted before it fails"
    )
    launcher: Literal["processes", "kubernetes"] = Field(
        "processes", description="Where attempts run: processes of this machine, or Jobs of the cluster"
    )
    training_job_template: Path = Field(
        Path("/etc/shortstack/job.yaml"), description="With kubernetes: file with the Job that attempts are made from"
    )
    owner: str = Field("", description="With kubernetes: ConfigMap of the release, which owns what is made")
    namespace: str | None = Field(None, description="With kubernetes: namespace of Jobs (the pod's own)")

    serves_merged: bool = Field(
        False, description="Whether servers take whole models; the embedded inference server takes adapters alone"
    )

    @property
    def runs_dir(self) -> Path:
        """Folder of run folders."""
        return self.training_runs_dir or self.var / "runs"
