"""From our settings to the Hugging Face Trainer's arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from shortstack.declarations.train import Schedule, TrainConfig
from shortstack.training.trainer.distributed import Ranks, zero_config

__all__ = ["training_arguments"]

_ZERO_STAGES: Final = {"zero1": 1, "zero2": 2}


def training_arguments(config: TrainConfig, schedule: Schedule, ranks: Ranks, run_dir: Path, *, evaluate: bool) -> Any:
    """``transformers.TrainingArguments`` for this run; the process group must be up.

    Rotation of checkpoints is not the Trainer's: it would delete an old one before the new one is sealed.
    """
    import torch
    from transformers import TrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    zero = zero_config(_ZERO_STAGES[config.deepspeed])
    if config.bf16 and ranks.device == "cuda":
        zero["bf16"] = {"enabled": True}
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        max_steps=schedule.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.eval_batch_size or config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        **_optimisation(config, schedule),
        # The Trainer takes bf16 for a GPU's affair; on CPU DeepSpeed is told directly, below.
        bf16=config.bf16 and ranks.device == "cuda",
        activation_checkpointing=config.gradient_checkpointing,
        logging_steps=schedule.logging_steps,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="steps" if evaluate else "no",
        eval_steps=schedule.eval_steps,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=schedule.save_steps,
        save_total_limit=None,
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        dataloader_pin_memory=ranks.device == "cuda",
        disable_tqdm=True,
        log_level="warning",
        report_to=["tensorboard"] if ranks.first else [],
        deepspeed=zero,
        accelerator_config={"use_configured_state": True},
    )
    if config.bf16 and ranks.device == "cpu":
        arguments.hf_deepspeed_config.config["bf16"] = {"enabled": True}
        arguments.hf_deepspeed_config._dtype = torch.bfloat16
    return arguments


def _optimisation(config: TrainConfig, schedule: Schedule) -> dict[str, Any]:
    return {
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": schedule.warmup_steps,
        "optim": config.optimizer,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
    }
