"""The plan of a run: what the controller decided, read once from ``plan.json``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shortstack.core.errors import Invalid, NotFound
from shortstack.declarations.train import TrainConfig

__all__ = ["BaseModelRef", "DatasetRef", "RunPlan"]


class _Part(BaseModel):
    # Unknown keys pass: a controller of the next version may say more than this trainer needs.
    model_config = ConfigDict(extra="ignore", frozen=True)


class BaseModelRef(_Part):
    """The model that is trained: its name, where it lies, and the digest of its weights."""

    name: str
    path: Path
    digest: str


class DatasetRef(_Part):
    """A dataset version as local Parquet files, in the order in which they are read."""

    version: str
    train: list[Path] = Field(min_length=1)
    validation: list[Path] = []
    name: str | None = None
    manifest: dict[str, Any] | None = None


class RunPlan(_Part):
    """Everything an attempt needs to know."""

    run: str
    attempt: int = Field(ge=1)
    owner: str = "default"
    base_model: BaseModelRef
    prompt_format: str = "base"
    config: dict[str, Any] = {}
    dataset: DatasetRef
    sample_questions: list[str] = []
    seed: int = 42
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    """When the run was submitted: what formats with a date in their preamble take for now, in every attempt."""

    @classmethod
    def read(cls, path: Path) -> RunPlan:
        """Reads and checks a plan.

        Raises:
            NotFound: there is no such file, or one that it names.
            Invalid: it is no plan; the field is named.
        """
        if not path.is_file():
            raise NotFound(
                "the run folder holds no plan.json", where=str(path.parent), remedy="The training controller writes it."
            )
        try:
            plan = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise Invalid(f"{field}: {first['msg']}", where=str(path), param=field) from error
        plan.require_files()
        return plan

    def require_files(self) -> None:
        """Raises NotFound for the first file or folder of the plan that is not there."""
        if not (self.base_model.path / "config.json").is_file():
            raise NotFound(
                f'base model "{self.base_model.name}" is not at {self.base_model.path}',
                where=f"run {self.run}",
                remedy="It is a folder in Hugging Face layout, with config.json.",
            )
        for path in [*self.dataset.train, *self.dataset.validation]:
            if not path.is_file():
                raise NotFound(f"{path} is not there", where=f"run {self.run}, dataset {self.dataset.version}")

    def train_config(self) -> TrainConfig:
        """The strict settings, resolved against this plan.

        Raises:
            Invalid: as `TrainConfig.resolve`.
        """
        return TrainConfig.resolve(
            self.config,
            base_model=self.base_model.name,
            prompt_format=self.prompt_format,
            seed=self.seed,
            where=f"run {self.run}, config",
        )
