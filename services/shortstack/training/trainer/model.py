"""The base model as it is trained: in one dtype, with an adapter or with every parameter open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.declarations.train import TrainConfig

if TYPE_CHECKING:
    import torch

__all__ = ["load_base", "parameter_counts", "trainable"]


def load_base(path: Path, *, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A causal language model from local files, in ``dtype``, on CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention, local_files_only=True, trust_remote_code=False
    )


def trainable(model: Any, config: TrainConfig) -> Any:
    """The model with its trained parameters marked: an adapter's, or all.

    The adapter's start depends on ``config.seed`` alone, so that every attempt starts from the same weights.

    Raises:
        Invalid: ``lora_target_modules`` names no linear layer of this model.
    """
    from transformers import set_seed

    set_seed(config.seed)
    if config.adapter is None:
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config),
        bias="none",
        task_type="CAUSAL_LM",
    )
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, lora)


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all parameters, trained parameters)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _targets(model: Any, config: TrainConfig) -> str | list[str]:
    if not config.lora_target_modules:
        return "all-linear"
    import torch

    linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    for target in config.lora_target_modules:
        if target not in linear:
            raise Invalid(
                f'lora_target_modules names "{target}", which is no linear layer of {config.base_model}',
                where="config",
                remedy=did_you_mean(target, linear),
                param="lora_target_modules",
            )
    return list(config.lora_target_modules)
