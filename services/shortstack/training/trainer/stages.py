"""The two stages of an attempt that need torch: training, and the export of what was trained."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import PrinterCallback

from shortstack.core.failpoints import failpoint
from shortstack.declarations.train import Schedule
from shortstack.records.message import Message
from shortstack.training.trainer.arguments import training_arguments
from shortstack.training.trainer.checkpoints import Checkpoint, newest_whole
from shortstack.training.trainer.data import PreparedData
from shortstack.training.trainer.export import MergeReport, copy_adapter, seal_export, write_merged
from shortstack.training.trainer.failure import TrainingFailed
from shortstack.training.trainer.files import write_json
from shortstack.training.trainer.formats import ServedFormat
from shortstack.training.trainer.generate import greedy
from shortstack.training.trainer.loop import Progress, RowDataset, SealingTrainer, StopSignal, collate
from shortstack.training.trainer.model import load_base, parameter_counts, trainable
from shortstack.training.trainer.probes import choose_prompts, record_probes
from shortstack.training.trainer.summary import (
    draw_loss,
    flops_per_token,
    mfu,
    peak_memory_mb,
    samples_page,
    summarise,
)

if TYPE_CHECKING:
    from shortstack.training.trainer.attempt import Work

__all__ = ["export_run", "train_run"]

SAMPLE_TOKENS = 64


def train_run(work: Work, data: PreparedData, schedule: Schedule, start: Checkpoint | None) -> Checkpoint:
    """Trains to ``schedule.max_steps`` and returns the last checkpoint, sealed.

    Raises:
        TrainingFailed: it was asked to stop, or the loss went wrong.
    """
    config, ranks = data.config, work.ranks
    stop = StopSignal()
    stop.install()
    arguments = training_arguments(config, schedule, ranks, work.run_dir, evaluate=bool(data.validation))
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    model = load_base(work.plan.base_model.path, dtype=dtype, attention=config.attn_implementation)
    if ranks.first:
        _answer_before(work, data.served, model)
    if start is not None and start.step >= schedule.max_steps:
        return start
    model = trainable(model, config)
    counts = parameter_counts(model)
    _announce_start(work, data, schedule, start, counts)
    # Before the first step and after the last one: an attempt killed in between leaves a usable account.
    _write_usage(work, counts)
    trainer = _trainer(work, data, schedule, stop, model=model, args=arguments)
    trainer.train(resume_from_checkpoint=str(start.path) if start else None)
    _write_usage(work, counts)
    return _finished(work, schedule, trainer.state.global_step)


def _trainer(work: Work, data: PreparedData, schedule: Schedule, stop: StopSignal, **kwargs: Any) -> SealingTrainer:
    progress = Progress(
        data.config,
        schedule,
        work.ranks,
        stop,
        events=work.events,
        metrics=work.metrics,
        monotonic=work.clocks.monotonic,
    )
    trainer = SealingTrainer(
        ranks=work.ranks,
        keep=data.config.save_total_limit,
        attempt=work.attempt,
        data_collator=collate,
        train_dataset=RowDataset(data.train),
        eval_dataset=RowDataset(data.validation) if data.validation else None,
        callbacks=[progress],
        **kwargs,
    )
    # The events say it all; the Trainer's own printer would repeat them on every rank.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _finished(work: Work, schedule: Schedule, reached: int) -> Checkpoint:
    """The last checkpoint of a training that went all the way: one that was stopped returns as calmly."""
    if reached < schedule.max_steps:
        raise TrainingFailed(
            "stopped",
            f"asked to stop at step {reached} of {schedule.max_steps}; a checkpoint was written",
            remedy="Start another attempt: it goes on from there.",
        )
    last = newest_whole(work.run_dir)
    if last is None or last.step != schedule.max_steps:
        raise TrainingFailed("internal", f"step {schedule.max_steps} left no whole checkpoint")
    return last


def _announce_start(
    work: Work, data: PreparedData, schedule: Schedule, start: Checkpoint | None, parameters: tuple[int, int]
) -> None:
    report = data.train_report
    work.event(
        "started",
        run=work.plan.run,
        ranks=work.ranks.world,
        device=_device_name(work.ranks.device),
        dtype="bfloat16" if data.config.bf16 else "float32",
        deepspeed=data.config.deepspeed,
        records=report.records,
        rows=len(data.train),
        validation_rows=len(data.validation),
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        rejected=dict(report.rejected),
        truncated=report.truncated,
        max_steps=schedule.max_steps,
        step=start.step if start else 0,
        resumed_from=start.path.name if start else None,
        parameters=parameters[0],
        trained_parameters=parameters[1],
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"


def _write_usage(work: Work, parameters: tuple[int, int]) -> None:
    """Keeps what only the training process knows; a later attempt may have nothing left to train."""
    memory = torch.tensor([peak_memory_mb()], dtype=torch.float64, device=work.ranks.device)
    dist.all_reduce(memory)
    if work.ranks.first:
        usage = {
            "peak_memory_mb": round(memory.item(), 1),
            "device": _device_name(work.ranks.device),
            "ranks": work.ranks.world,
            "parameters": parameters[0],
            "trained_parameters": parameters[1],
        }
        write_json(work.run_dir / "usage.json", usage)


def export_run(work: Work, data: PreparedData, schedule: Schedule, last: Checkpoint) -> dict[str, Any]:
    """Exports the last checkpoint, proves it from its files, writes the run's papers, and seals it.

    Returns the export manifest.

    Raises:
        TrainingFailed: merging changed nothing, or a weight is not finite.
    """
    gc.collect()
    failpoint("before_export")
    folder = work.run_dir / "export"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plan, adapter = work.plan, data.config.adapter is not None
    if adapter:
        copy_adapter(last.path, folder / "adapter", plan.base_model.name)
    report = write_merged(plan.base_model.path, last.path, folder / "merged", data.served, adapter=adapter)
    model = load_base(folder / "merged", dtype=torch.bfloat16).to(work.ranks.device).eval()
    _record_probes(work, data, model, folder / "probes.json")
    _answer_after(work, data.served, model)
    _write_papers(work, data, schedule, model)
    del model
    failpoint("before_export_manifest")
    return seal_export(folder, _manifest(work, data, last, report))


def _manifest(work: Work, data: PreparedData, last: Checkpoint, report: MergeReport) -> dict[str, Any]:
    plan = work.plan
    return {
        "schema": "export/1",
        "run": plan.run,
        "attempt": work.attempt,
        "owner": plan.owner,
        "base_model": {"name": plan.base_model.name, "digest": plan.base_model.digest},
        "dataset_version": plan.dataset.version,
        "prompt_format": plan.prompt_format,
        "stop": list(data.served.format.stop),
        "eos_ids": data.served.eos_ids,
        "adapter": "adapter" if data.config.adapter else None,
        "merged": "merged",
        "probes": "probes.json",
        "step": last.step,
        "dtype": "bfloat16",
        "merge": {
            "onto": "the unquantised base, in float32, rounded once to bfloat16",
            "tensors": report.tensors,
            "changed": report.changed,
        },
    }


def _record_probes(work: Work, data: PreparedData, model: Any, path: Path) -> None:
    served = data.served
    prompts = choose_prompts(
        work.plan.sample_questions,
        data.prompts,
        lambda prompt: len(served.encoder.prompt_ids(prompt)),
        seed=data.config.seed,
    )
    write_json(path, record_probes(model, served, prompts))


def _answers(served: ServedFormat, model: Any, questions: list[str]) -> list[str]:
    prompts = [served.encoder.prompt_ids([Message("user", question)]) for question in questions]
    answers = greedy(model, prompts, new_tokens=SAMPLE_TOKENS, stop_ids=served.eos_ids) if prompts else []
    return [served.decode(answer).strip() for answer in answers]


def _answer_before(work: Work, served: ServedFormat, model: Any) -> None:
    path = work.run_dir / "samples.before.json"
    if not path.exists():
        questions = work.plan.sample_questions
        answers = _answers(served, model.to(work.ranks.device).eval(), questions)
        write_json(path, {"questions": questions, "answers": answers})


def _answer_after(work: Work, served: ServedFormat, model: Any) -> None:
    questions = work.plan.sample_questions
    before = json.loads((work.run_dir / "samples.before.json").read_bytes())["answers"]
    after = _answers(served, model, questions)
    both = [
        {"question": question, "before": old, "after": new}
        for question, old, new in zip(questions, before, after, strict=True)
    ]
    write_json(work.run_dir / "samples.json", both)
    samples_page(questions, before, after, work.run_dir / "samples.md")


def _write_papers(work: Work, data: PreparedData, schedule: Schedule, model: Any) -> None:
    metrics = work.metrics.read() if work.metrics else []
    usage = json.loads((work.run_dir / "usage.json").read_bytes())
    totals = summarise(metrics, rows_per_step=data.config.effective_batch(work.ranks.world))
    flops = flops_per_token(
        sum(parameter.numel() for parameter in model.parameters()),
        model.config.num_hidden_layers,
        model.config.hidden_size,
        data.train_report.tokens / data.train_report.rows,
        adapter=data.config.adapter is not None,
    )
    share, reason = mfu(totals["tokens_per_second"], flops, usage["device"])
    summary = {"run": work.plan.run, **totals, "mfu": share, "mfu_reason": reason, **usage}
    write_json(work.run_dir / "summary.json", {**summary, "max_steps": schedule.max_steps})
    draw_loss(metrics, work.run_dir / "loss.png")
