"""What a training run may be told: axolotl's key names, strictly.

Pure pydantic, no torch: the controller, the gateway and ``--explain`` read the same model. An unknown key
is an error that names the nearest one. `TrainConfig.resolve` fills what depends on the job, and
`TrainConfig.schedule` what depends on the number of rows; the resolved config is written into the run folder.

Key names: axolotl's config reference (docs.axolotl.ai, "Config Reference").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shortstack.core.errors import Invalid, did_you_mean

__all__ = ["NOT_OFFERED", "SET_HERE", "DatasetEntry", "Schedule", "TrainConfig", "refuse_what_is_set_here"]

NOT_OFFERED: Final[Mapping[str, str]] = {
    "load_in_8bit": "an 8-bit base is not offered; leave it out",
    "load_in_4bit": "a 4-bit base is not offered; leave it out",
    "sample_packing": "packing is not offered; rows are padded to the longest of their batch; leave it out",
    "special_tokens": "special tokens come with the prompt format and the base's tokenizer; leave it out",
    "lora_modules_to_save": "whole modules beside an adapter are not offered; leave it out",
}
"""Keys of axolotl that this trainer knows and does not act on, with what to do instead. They are accepted
only switched off: a key that is silently ignored would be worse than one that is refused."""

SET_HERE: Final[Mapping[str, str]] = {
    "datasets": "a job trains on the dataset it is published with; to add others, name them under mix in the recipe",
    "output_dir": "a run's folder is chosen here; its export stands in the object store",
}
"""Keys that are the controller's to set, with what a user does instead. They would make another run of equal wishes,
and change nothing else."""

_OFF: Final[tuple[object, ...]] = (None, False, [], {})


class DatasetEntry(BaseModel):
    """One entry of ``datasets``: here a published dataset's name or version, not a path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    type: str | None = None


class TrainConfig(BaseModel):
    """A run's settings. ``None`` means "decided by `resolve` or `schedule`"."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    base_model: str | None = None
    """Name of the base model, as the operator declared it."""
    datasets: list[DatasetEntry] | None = None
    """Set by the controller from the job's dataset version."""
    chat_template: str | None = None
    """Name of the prompt format; ``base`` is the base tokenizer's own template."""
    output_dir: str | None = None
    """Set by the controller: the run folder."""

    adapter: Literal["lora"] | None = "lora"
    """``null`` trains every parameter."""
    lora_r: int = Field(16, ge=1, le=1024)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: list[str] | None = None
    """Names of linear layers. With neither this nor ``lora_target_linear: false``, all but the output layer."""
    lora_target_linear: bool | None = None

    sequence_len: int = Field(2048, ge=8, le=1 << 20)
    excess_length_strategy: Literal["truncate", "drop"] = "truncate"
    """What happens to a row longer than ``sequence_len``: cut at the end, or left out; both are counted."""
    train_on_inputs: bool = False
    """Loss on the whole row, not on answers alone."""
    val_set_size: float = Field(0.0, ge=0)
    """Rows held back when the dataset has no validation split: a share below 1, else a number."""
    group_by_length: bool = False

    micro_batch_size: int = Field(8, ge=1)
    """Rows per step and process."""
    eval_batch_size: int | None = Field(None, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    num_epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Ends the run after so many optimiser steps, whatever ``num_epochs`` says."""

    learning_rate: float = Field(2e-4, gt=0, le=1)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "cosine"
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    warmup_steps: int | None = Field(None, ge=0)
    optimizer: Literal["adamw_torch"] = "adamw_torch"
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)

    bf16: bool = True
    """The forward pass in bfloat16; what is trained always has fp32 master weights."""
    gradient_checkpointing: bool = False
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    deepspeed: Literal["zero1", "zero2"] = "zero2"

    logging_steps: int = Field(1, ge=1)
    save_steps: int | float | None = Field(None, gt=0)
    """A number of steps, or below 1 a share of the run. Four checkpoints unless given."""
    eval_steps: int | float | None = Field(None, gt=0)
    """As ``save_steps``; four evaluations unless given."""
    save_total_limit: int = Field(3, ge=1)
    resume_from_checkpoint: bool = True
    """Go on from the newest whole checkpoint of the run folder."""
    loss_watchdog_threshold: float | None = Field(None, gt=0)
    """End the run when the loss stands above this for ``loss_watchdog_patience`` steps in a row."""
    loss_watchdog_patience: int = Field(3, ge=1)
    seed: int = Field(42, ge=0, lt=1 << 31)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_offered(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key, remedy in NOT_OFFERED.items():
            if values.get(key) not in _OFF:
                raise ValueError(f"{key}: {remedy}")
        return {key: value for key, value in values.items() if key not in NOT_OFFERED}

    @field_validator("save_steps", "eval_steps")
    @classmethod
    def _whole_above_one(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("above 1 it is a whole number of steps")
        return int(value) if value is not None and value >= 1 else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps exclude each other; give one")
        if self.lora_target_linear and self.lora_target_modules:
            raise ValueError("lora_target_linear takes all linear layers; leave lora_target_modules out")
        if self.lora_target_linear is False and not self.lora_target_modules and self.adapter:
            raise ValueError("lora_target_linear is false and lora_target_modules is empty; name the layers")
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "train") -> TrainConfig:
        """Reads settings strictly.

        Args:
            values: axolotl's keys, as YAML or JSON gives them.
            where: leads every error.

        Raises:
            Invalid: an unknown key (with the nearest name), or a value out of range (with the key as ``param``).
        """
        known = set(cls.model_fields) | set(NOT_OFFERED)
        for key in values:
            if key not in known:
                raise Invalid(f'unknown key "{key}"', where=where, remedy=did_you_mean(str(key), known), param=str(key))
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ")
            raise Invalid(f"{param}: {what}" if param else what, where=where, param=param or None) from error

    @classmethod
    def resolve(
        cls,
        values: Mapping[str, Any],
        *,
        base_model: str,
        prompt_format: str,
        seed: int | None = None,
        output_dir: str | None = None,
        where: str = "train",
    ) -> TrainConfig:
        """`parse`, with everything filled that does not depend on the data.

        Args:
            base_model, prompt_format: the job's; a config that names others contradicts its job.
            seed: the job's, used where the config gives none.

        Raises:
            Invalid: as `parse`, or the config contradicts the job.
        """
        config = cls.parse(values, where=where)
        for key, job in (("base_model", base_model), ("chat_template", prompt_format)):
            given = getattr(config, key)
            if given is not None and given != job:
                raise Invalid(
                    f'{key} is "{given}", and the job says "{job}"', where=where, remedy=f"Leave {key} out.", param=key
                )
        filled: dict[str, Any] = {"base_model": base_model, "chat_template": prompt_format}
        if output_dir is not None:
            filled["output_dir"] = output_dir
        if seed is not None and "seed" not in config.model_fields_set:
            filled["seed"] = seed
        if config.adapter is not None and not config.lora_target_modules:
            filled["lora_target_linear"] = True
        if config.warmup_ratio is None and config.warmup_steps is None:
            filled["warmup_ratio"] = 0.0 if config.lr_scheduler == "constant" else 0.03
        if config.eval_batch_size is None:
            filled["eval_batch_size"] = config.micro_batch_size
        return cls.model_validate({**config.model_dump(), **filled})

    def effective_batch(self, ranks: int) -> int:
        """Rows per optimiser step over ``ranks`` processes."""
        return self.micro_batch_size * self.gradient_accumulation_steps * ranks

    def schedule(self, *, rows: int, ranks: int = 1) -> Schedule:
        """How many steps ``rows`` training rows make.

        The count is the Hugging Face Trainer's: batches per process, then accumulation, each rounded up. The share
        of warm-up is rounded down: the first step of a warm-up has a rate of 0, which a short run cannot spare.
        """
        if rows < 1:
            raise Invalid("there is no row to train on", where="dataset", remedy="See what was rejected, and why.")
        batches = math.ceil(rows / (self.micro_batch_size * ranks))
        per_epoch = max(1, math.ceil(batches / self.gradient_accumulation_steps))
        steps = self.max_steps or math.ceil(self.num_epochs * per_epoch)
        warmup = self.warmup_steps if self.warmup_steps is not None else int((self.warmup_ratio or 0.0) * steps)
        return Schedule(
            rows=rows,
            steps_per_epoch=per_epoch,
            max_steps=steps,
            epochs=steps / per_epoch,
            warmup_steps=min(warmup, steps),
            logging_steps=self.logging_steps,
            save_steps=_every(self.save_steps, steps),
            eval_steps=_every(self.eval_steps, steps),
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """A run's counts, all in optimiser steps but ``rows`` and ``epochs``."""

    rows: int
    steps_per_epoch: int
    max_steps: int
    epochs: float
    warmup_steps: int
    logging_steps: int
    save_steps: int
    eval_steps: int


def refuse_what_is_set_here(train: Mapping[str, Any], *, where: str) -> None:
    """Raises Invalid where a user's settings name what is the controller's to set."""
    for key, remedy in SET_HERE.items():
        if train.get(key) not in _OFF:
            raise Invalid(
                f'"{key}" is not a user\'s to set', where=where, remedy=f"Leave it out: {remedy}.", param=f"train.{key}"
            )


def _every(setting: float | None, steps: int) -> int:
    share = 0.25 if setting is None else setting
    return int(share) if share >= 1 else max(1, math.ceil(share * steps))
