"""The training loop: the Hugging Face Trainer, with whole checkpoints, events and an orderly stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from shortstack.core.failpoints import failpoint
from shortstack.declarations.train import Schedule, TrainConfig
from shortstack.training.trainer.checkpoints import rotate, seal
from shortstack.training.trainer.distributed import Ranks
from shortstack.training.trainer.events import EventLog, MetricLog
from shortstack.training.trainer.failure import TrainingFailed
from shortstack.training.trainer.rows import TrainingRow

__all__ = ["Progress", "RowDataset", "SealingTrainer", "StopSignal", "collate"]


class RowDataset(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Training rows as the Trainer reads them: ``input_ids`` and ``labels``, unpadded."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pads on the right to the longest row of the batch, with token 0.

    What is padding follows from the position alone, never from the id: with SmolLM2 the pad token is the
    end-of-sequence token, which is trained on.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each (rows, longest) of int64.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), -100, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class SealingTrainer(Trainer):
    """A Trainer whose checkpoints count only once every rank has written its part and rank 0 has sealed them."""

    def __init__(self, *args: Any, ranks: Ranks, keep: int, attempt: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = ranks
        self._keep = keep
        self._attempt = attempt

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        dist.barrier()
        if not self._ranks.first:
            return
        step = self.state.global_step
        run_dir = Path(str(self.args.output_dir))
        failpoint(f"before_seal_{step}")
        seal(run_dir / f"checkpoint-{step}", step=step, ranks=self._ranks.world, attempt=self._attempt)
        rotate(run_dir, self._keep)


class StopSignal:
    """SIGTERM as a flag that all ranks see at the same step: the signal may reach one of them alone."""

    def __init__(self) -> None:
        self._here = False

    def install(self) -> None:
        """Takes SIGTERM over for this process."""
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._here = True

    def anywhere(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop. A collective: every rank calls it at the same step."""
        if ranks.world == 1:
            return self._here
        flag = torch.tensor([int(self._here)], device=ranks.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


class Progress(TrainerCallback):
    """Tells events and metrics what the Trainer logs, watches the loss, and stops when asked to.

    ``events`` and ``metrics`` are None on every rank but the first.
    """

    def __init__(
        self,
        config: TrainConfig,
        schedule: Schedule,
        ranks: Ranks,
        stop: StopSignal,
        *,
        events: EventLog | None,
        metrics: MetricLog | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._config = config
        self._schedule = schedule
        self._ranks = ranks
        self._stop = stop
        self._events = events
        self._metrics = metrics
        self._monotonic = monotonic
        self._began = (0.0, 0, 0)
        self._logged = 0.0
        self._above = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of this attempt's steps."""
        self._logged = self._monotonic()
        self._began = (self._logged, state.global_step, state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the run with a checkpoint where any rank was asked to stop."""
        if self._stop.anywhere(self._ranks):
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One step's loss, or one evaluation's.

        Raises:
            TrainingFailed: the loss is not finite, or stood above the watchdog's threshold.
        """
        values = logs or {}
        if "loss" in values:
            self._log_step(state, values)
        elif "eval_loss" in values:
            self._log_evaluation(state, values)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Announces a checkpoint, which is sealed by now."""
        # The ordinal over the whole run, not over this attempt: a resumed attempt does not meet it again.
        ordinal = state.global_step // self._schedule.save_steps
        if self._events is not None:
            path = f"checkpoint-{state.global_step}"
            self._events.write("checkpoint", step=state.global_step, max_steps=state.max_steps, path=path)
            failpoint(f"after_checkpoint_{ordinal}")

    def _log_step(self, state: Any, values: dict[str, Any]) -> None:
        loss = float(values["loss"])
        started, first_step, first_tokens = self._began
        now = self._monotonic()
        seconds = max(now - started, 1e-9)
        since, self._logged = now - self._logged, now
        done = max(state.global_step - first_step, 1)
        if self._events is not None and self._metrics is not None:
            line = {
                "loss": loss,
                "learning_rate": values["learning_rate"],
                "grad_norm": values.get("grad_norm", 0.0),
                "epoch": round(state.epoch or 0.0, 4),
                "seconds": round(since, 4),
                "tokens": state.num_input_tokens_seen,
                "tokens_per_second": round((state.num_input_tokens_seen - first_tokens) / seconds, 1),
            }
            self._metrics.write(state.global_step, **line)
            eta = round((state.max_steps - state.global_step) * seconds / done, 1)
            self._events.write("step", step=state.global_step, max_steps=state.max_steps, eta_s=eta, **line)
        self._watch(loss, state.global_step)

    def _log_evaluation(self, state: Any, values: dict[str, Any]) -> None:
        if self._events is None or self._metrics is None:
            return
        loss = float(values["eval_loss"])
        self._metrics.write(state.global_step, eval_loss=loss)
        self._events.write("eval", step=state.global_step, max_steps=state.max_steps, eval_loss=loss)

    def _watch(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                "non_finite_loss",
                f"the loss is {loss} at step {step}",
                remedy="Lower learning_rate or max_grad_norm, or train with bf16: false.",
            )
        threshold = self._config.loss_watchdog_threshold
        self._above = self._above + 1 if threshold is not None and loss > threshold else 0
        if self._above >= self._config.loss_watchdog_patience:
            raise TrainingFailed(
                "loss_watchdog",
                f"the loss was above {threshold} for {self._above} steps, {loss:.4g} at step {step}",
                remedy="Lower learning_rate, or raise loss_watchdog_threshold.",
            )
