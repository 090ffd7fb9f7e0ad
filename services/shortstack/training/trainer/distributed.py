"""The processes of an attempt, and DeepSpeed on CPU.

``TrainingArguments(use_cpu=True)`` silently turns DeepSpeed off. So on CPU the process group is made first,
over gloo, with accelerate told that DeepSpeed is wanted, and the Trainer is told to use what is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

__all__ = ["Ranks", "cuda_available", "process_group", "zero_config"]

COLLECTIVE_TIMEOUT: Final = timedelta(minutes=30)
"""A collective may wait as long as rank 0 evaluates or writes; a dead rank ends the attempt by torchrun."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the attempt, and where it computes (``cpu`` or ``cuda``)."""

    rank: int
    local_rank: int
    world: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    @classmethod
    def of(cls, environment: Mapping[str, str], *, cuda: bool) -> Ranks:
        """Reads what torchrun set; alone without it. ``DS_ACCELERATOR=cpu`` keeps away from a GPU that is there."""
        return cls(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            world=int(environment.get("WORLD_SIZE", "1")),
            device="cuda" if cuda and environment.get("DS_ACCELERATOR") != "cpu" else "cpu",
        )


def cuda_available() -> bool:
    """Whether NVIDIA's driver is there; looked up without loading torch, which takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Brings DeepSpeed's process group up for the Trainer, and down afterwards."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ.setdefault("DS_ACCELERATOR", ranks.device)
    if ranks.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # accelerate would take a GPU that is there, against DeepSpeed

    import deepspeed
    import torch.distributed
    from accelerate import PartialState
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    # DeepSpeed would compile its shared-memory kernels at start (g++, ninja, half a minute). With nothing
    # listed as compatible it takes gloo's collectives; reading the attribute instead would run the probes.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    backend = {"cpu": "gloo", "cuda": "nccl"}[ranks.device]
    PartialState(backend=backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def zero_config(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings for ZeRO; ``auto`` is filled from the Trainer's arguments."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "overlap_comm": False},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }
