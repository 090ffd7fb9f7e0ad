"""A plan's data, ready to train on: rows, counts, schedule. Needs no torch; ``--explain`` ends here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shortstack.core.digest import file_sha256
from shortstack.declarations.train import Schedule, TrainConfig
from shortstack.records.message import Message
from shortstack.training.trainer.failure import TrainingFailed
from shortstack.training.trainer.formats import FormatsOfRows, ServedFormat
from shortstack.training.trainer.plan import RunPlan
from shortstack.training.trainer.rows import RowReport, TrainingRow, TrainingRows, hold_back, read_records

__all__ = ["PreparedData", "dataset_manifest", "explain", "prepare", "resolved_config"]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Rows of a plan with their reports.

    Attributes:
        prompts: the dataset's prompts for probes, validation's before training's.
    """

    config: TrainConfig
    served: ServedFormat
    train: list[TrainingRow]
    validation: list[TrainingRow]
    train_report: RowReport
    validation_report: RowReport
    prompts: list[tuple[Message, ...]]

    def schedule(self, ranks: int) -> Schedule:
        """The steps that the training rows make."""
        return self.config.schedule(rows=len(self.train), ranks=ranks)


def prepare(plan: RunPlan) -> PreparedData:
    """Reads and encodes a plan's dataset, in the same order in every process and attempt.

    Raises:
        Invalid: the settings or the dataset cannot be used.
        TrainingFailed: no row is left; the reasons are named.
    """
    config, served, train, validation = _read(plan, keep=True)
    rows, held = train.rows, validation.rows
    if _holds_back(plan, config):
        rows, held = hold_back(train.rows, config.val_set_size, config.seed)
    prompts = [*validation.prompts, *train.prompts]
    return PreparedData(config, served, rows, held, train.report, validation.report, prompts)


def _holds_back(plan: RunPlan, config: TrainConfig) -> bool:
    return not plan.dataset.validation and bool(config.val_set_size)


def _read(plan: RunPlan, *, keep: bool) -> tuple[TrainConfig, ServedFormat, TrainingRows, TrainingRows]:
    """Settings, format, and the rows of training and validation; with ``keep=False`` only their lengths."""
    config = plan.train_config()
    served = ServedFormat.load(plan.prompt_format, plan.base_model.path, plan.created)
    encoders = FormatsOfRows(served, plan.base_model.path, plan.created)

    def build(paths: Any) -> TrainingRows:
        return TrainingRows.build(
            read_records(paths),
            encoders,
            prompt_format=plan.prompt_format,
            sequence_len=config.sequence_len,
            drop_long=config.excess_length_strategy == "drop",
            train_on_inputs=config.train_on_inputs,
            keep=keep,
        )

    train, validation = build(plan.dataset.train), build(plan.dataset.validation)
    if not train.lengths:
        raise TrainingFailed("no_rows", _nothing_left(train.report), remedy="Correct the dataset or the settings.")
    return config, served, train, validation


def _nothing_left(report: RowReport) -> str:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in report.rejected.most_common()) or "no record"
    example = f"; for example {report.examples[0].place}: {report.examples[0].detail}" if report.examples else ""
    return f"none of {report.records} records can be trained on ({reasons}){example}"


def resolved_config(config: TrainConfig, schedule: Schedule) -> dict[str, Any]:
    """The settings with the counts filled in: what ``config.resolved.yaml`` says, itself a valid config."""
    filled = {
        "max_steps": schedule.max_steps,
        "warmup_steps": schedule.warmup_steps,
        "warmup_ratio": None,
        "save_steps": schedule.save_steps,
        "eval_steps": schedule.eval_steps,
    }
    return {**config.model_dump(), **filled}


def dataset_manifest(plan: RunPlan, data: PreparedData) -> dict[str, Any]:
    """Which bytes were trained on: every file with its SHA-256, the rows they gave, and the dataset's own manifest."""

    def entries(paths: Any) -> list[dict[str, Any]]:
        return [{"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths]

    return {
        "version": plan.dataset.version,
        "name": plan.dataset.name,
        "train": entries(plan.dataset.train),
        "validation": entries(plan.dataset.validation),
        "rows": {"train": data.train_report.as_json(), "validation": data.validation_report.as_json()},
        "manifest": plan.dataset.manifest,
    }


def explain(plan: RunPlan, ranks: int) -> dict[str, Any]:
    """What a run would do, without doing it: settings, records, rows, tokens and steps.

    It is asked for where a run's memory is not: rows are counted as they are read, and not kept.
    """
    config, _, train, validation = _read(plan, keep=False)
    lengths = list(train.lengths)
    if _holds_back(plan, config):
        lengths, _ = hold_back(train.lengths, config.val_set_size, config.seed)
    schedule = config.schedule(rows=len(lengths), ranks=ranks)
    trained_epoch = sum(lengths)
    return {
        "run": plan.run,
        "base_model": plan.base_model.name,
        "prompt_format": plan.prompt_format,
        "dataset": plan.dataset.version,
        "ranks": ranks,
        "effective_batch": config.effective_batch(ranks),
        "schedule": asdict(schedule),
        "tokens_per_epoch": trained_epoch,
        "tokens": round(trained_epoch * schedule.epochs),
        "train": train.report.as_json(),
        "validation": validation.report.as_json(),
        "config": resolved_config(config, schedule),
    }
