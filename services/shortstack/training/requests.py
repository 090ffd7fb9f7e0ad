"""What is wished of a job, and the settings and the run that follow from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final

import orjson

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.core.identity import run_id
from shortstack.declarations.base_models import BaseModel, BaseModels
from shortstack.declarations.deploy import DeployWish, require_servable
from shortstack.declarations.train import TrainConfig
from shortstack.prompts.formats import BASE, PromptFormats

__all__ = ["JobRequest", "ResolvedRun", "auto_hyperparameters", "effective_batch"]

_AUTO: Final = "auto"
_AUTO_BATCH: Final = 8
_AUTO_STEPS: Final = 100
_AUTO_MAX_EPOCHS: Final = 10
_MAX_MICRO_BATCH: Final = 8
_SEED: Final = 42
_HYPERPARAMETERS: Final[Mapping[str, type | UnionType]] = {
    "batch_size": int,
    "n_epochs": int | float,
    "learning_rate_multiplier": int | float,
}


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run as it will be trained: every setting stands, so equal wishes have equal ids."""

    run: str
    base: BaseModel
    base_digest: str
    config: TrainConfig


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job's request.

    Attributes:
        train: settings in axolotl's names.
        deploy: the rollout wished for; None to train only.
        openai: what came over ``/v1/fine_tuning/jobs``: hyperparameters, seed, suffix, metadata.
    """

    train: Mapping[str, Any]
    deploy: DeployWish | None
    openai: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str | bytes, *, where: str) -> JobRequest:
        """Reads ``{"train", "deploy"?, "openai"?}``.

        Raises:
            Invalid: it is no such object, or names what is unknown.
        """
        try:
            value = orjson.loads(text or b"{}")
        except orjson.JSONDecodeError as error:
            raise Invalid(f"not JSON: {error}", where=where) from error
        if not isinstance(value, dict) or not isinstance(value.get("train"), dict):
            raise Invalid('a job has "train", an object of settings', where=where, param="train")
        deploy, openai = value.get("deploy"), value.get("openai") or {}
        if not isinstance(deploy, dict | None) or not isinstance(openai, dict):
            raise Invalid('"deploy" and "openai" are objects', where=where)
        TrainConfig.parse(value["train"], where=f"{where}, train")
        _check_openai(openai, where)
        return cls(
            train=value["train"],
            deploy=None if deploy is None else DeployWish.parse(deploy, where=f"{where}, deploy"),
            openai=openai,
        )

    def require_servable(self, bases: BaseModels, *, serves_merged: bool, where: str) -> None:
        """Refuses now what would fail only after the dataset is prepared, or after the training.

        Raises:
            Invalid: an unknown base model, layer or prompt format, or a deployment that the servers here cannot hold.
        """
        self.base(bases).require_layers(self.train.get("lora_target_modules") or (), where=where)
        template = self.train.get("chat_template")
        if template and template not in (known := (*PromptFormats.builtin().names(), BASE)):
            raise Invalid(
                f'prompt format "{template}" is not known here',
                where=where,
                remedy=did_you_mean(str(template), known),
                param="train.chat_template",
            )
        if self.deploy is not None:
            require_servable(self.train, serves_merged=serves_merged, where=where)

    def base(self, bases: BaseModels) -> BaseModel:
        """The base model that is wished for, else the first one.

        Raises:
            Invalid: it is unknown; names the nearest. Or there is none at all.
        """
        wanted = self.train.get("base_model")
        return bases.get(str(wanted), param="train.base_model") if wanted else bases.default()

    def require_renderable(
        self, *, prompt_format: str, row_formats: Sequence[str], with_tools: int, where: str
    ) -> None:
        """Refuses a dataset whose records could not be trained on as the model would be asked.

        Args:
            prompt_format: the publication's; empty where it names none.
            row_formats: those that records name as their own.
            with_tools: records that declare tools.

        Raises:
            Invalid: records name a format and the job names none, or declare tools, which no format renders.
        """
        other = [name for name in row_formats if name != BASE]
        if other and not (prompt_format or self.train.get("chat_template")):
            raise Invalid(
                f"records name their own prompt format ({', '.join(other)}) and the job names none: they would be "
                "trained on in that, and the model asked in the base model's own",
                where=where,
                remedy='Publish the dataset with "prompt_format", the one to be served with.',
                param="prompt_format",
            )
        if with_tools:
            raise Invalid(
                f"{with_tools} records declare tools, which no prompt format here renders: the model would not learn "
                "what it may call",
                where=where,
                remedy='Leave "tools" out of the records, or set it aside: "columns": {"tools": "unused_tools"}.',
                param="tools",
            )

    def resolve(
        self, bases: BaseModels, *, version: str, records: int, prompt_format: str, ranks: int, where: str
    ) -> ResolvedRun:
        """The run that this wish means on a dataset version of ``records`` training records.

        Raises:
            Invalid: an unknown base model, or settings that contradict the job.
        """
        base = self.base(bases)
        train = {**self.train, "base_model": base.name}
        if self.openai:
            train |= auto_hyperparameters(self.openai.get("hyperparameters") or {}, train, records=records, ranks=ranks)
        seed = self.openai.get("seed")  # an int or None, by _check_openai
        named = prompt_format or str(train.get("chat_template") or BASE)
        config = TrainConfig.resolve(
            train, base_model=base.name, prompt_format=named, seed=_SEED if seed is None else seed, where=where
        )
        digest = base.digest()
        return ResolvedRun(run_id(config.model_dump(mode="json"), version, digest), base, digest, config)


def _check_openai(openai: Mapping[str, Any], where: str) -> None:
    """Raises Invalid unless hyperparameters are "auto" or numbers above 0, and the seed a whole number."""
    given = openai.get("hyperparameters") or {}
    if not isinstance(given, dict):
        raise Invalid('"hyperparameters" is an object', where=where, param="hyperparameters")
    for name, value in given.items():
        param = f"hyperparameters.{name}"
        if name not in _HYPERPARAMETERS:
            remedy = did_you_mean(str(name), _HYPERPARAMETERS)
            raise Invalid(f'"{name}" is no hyperparameter', where=where, remedy=remedy, param=param)
        number = isinstance(value, _HYPERPARAMETERS[name]) and not isinstance(value, bool)
        if value is not None and value != _AUTO and not (number and 0 < value < math.inf):
            raise Invalid(f'{param} is {value!r}; give "auto" or a number above 0', where=where, param=param)
    seed = openai.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise Invalid(f"seed is {seed!r}, not a whole number", where=where, param="seed")


def effective_batch(given: Mapping[str, Any], ranks: int) -> int:
    """Rows of one optimizer step that OpenAI's hyperparameters ask for, a multiple of ``ranks``.

    Raises:
        Invalid: they ask for another number.
    """
    asked = given.get("batch_size")
    if asked is None or asked == _AUTO:
        return max(1, _AUTO_BATCH // ranks) * ranks
    if int(asked) % ranks:
        near = max(1, round(int(asked) / ranks)) * ranks
        raise Invalid(
            f"batch_size is {asked}, which cannot be shared out evenly over the {ranks} processes of a run here",
            remedy=f"Ask for a multiple of {ranks}, for example {near}.",
            param="hyperparameters.batch_size",
        )
    return int(asked)


def auto_hyperparameters(
    given: Mapping[str, Any], train: Mapping[str, Any], *, records: int, ranks: int
) -> dict[str, Any]:
    """OpenAI's hyperparameters as axolotl's settings.

    ``batch_size`` is the effective batch, exactly: the rows of a step and process are the largest divisor up to 8 of a
    process's share, the rest is accumulated; auto is 8, or the next lower multiple of ``ranks``. ``n_epochs`` auto is
    enough for 100 optimizer steps, at least 1 and at most 10; ``learning_rate_multiplier`` times the preset's rate,
    auto 1. Source: the project's mapping of OpenAI's fine-tuning API, docs/training.md.

    Raises:
        Invalid: a batch that cannot be shared out over the ranks.
    """
    given = {name: value for name, value in given.items() if value is not None}
    batch = effective_batch(given, ranks)
    share = batch // ranks
    micro = next(size for size in range(min(share, _MAX_MICRO_BATCH), 0, -1) if share % size == 0)
    epochs = given.get("n_epochs", _AUTO)
    if epochs == _AUTO:
        epochs = max(1, min(_AUTO_MAX_EPOCHS, math.ceil(_AUTO_STEPS * batch / max(1, records))))
    multiplier = given.get("learning_rate_multiplier", _AUTO)
    rate = float(train.get("learning_rate") or TrainConfig.model_fields["learning_rate"].default)
    return {
        "micro_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "num_epochs": float(epochs),
        "learning_rate": rate * (1.0 if multiplier == _AUTO else float(multiplier)),
    }
