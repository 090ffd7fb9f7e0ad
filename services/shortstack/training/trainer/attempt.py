"""One attempt of a run: prepare, train from the newest whole checkpoint, export, prove.

All or nothing: it ends with a sealed export and exit code 0, or with a ``failed`` event and another code.
What an earlier attempt finished is not done again.
"""

from __future__ import annotations

import json
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml

from shortstack.core.failpoints import failpoint
from shortstack.declarations.train import Schedule
from shortstack.training.trainer.checkpoints import Checkpoint, newest_whole, remove_broken
from shortstack.training.trainer.data import PreparedData, dataset_manifest, prepare, resolved_config
from shortstack.training.trainer.distributed import Ranks, process_group
from shortstack.training.trainer.events import EventLog, MetricLog
from shortstack.training.trainer.export import EXPORT_MANIFEST, whole_export
from shortstack.training.trainer.failure import TrainingFailed, failure_of
from shortstack.training.trainer.files import write_atomic, write_json
from shortstack.training.trainer.plan import RunPlan

__all__ = ["Clocks", "Work", "run_attempt"]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Wall time in seconds since 1970, and seconds that never go back."""

    now: Callable[[], float]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Work:
    """What every stage of an attempt needs. ``events`` and ``metrics`` are None on every rank but the first."""

    run_dir: Path
    attempt: int
    plan: RunPlan
    ranks: Ranks
    clocks: Clocks
    events: EventLog | None
    metrics: MetricLog | None

    def event(self, kind: str, **fields: Any) -> None:
        """Writes an event, on the first rank."""
        if self.events is not None:
            self.events.write(kind, **fields)


def run_attempt(run_dir: Path, attempt: int, ranks: Ranks, clocks: Clocks) -> int:
    """Runs an attempt in this process and returns its exit code.

    This is the edge: whatever goes wrong becomes a ``failed`` event with code and remedy, a line on stderr,
    and an exit code.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    events = EventLog(run_dir / "events.jsonl", attempt, clocks.now) if ranks.first else None
    try:
        plan = RunPlan.read(run_dir / "plan.json")
        metrics = MetricLog(run_dir / "metrics.jsonl") if ranks.first else None
        _run(Work(run_dir, attempt, plan, ranks, clocks, events, metrics))
    except Exception as error:  # noqa: BLE001 the edge: reported in full, and the process ends with a code
        failure = failure_of(error)
        traceback.print_exc()
        print(f"error: rank {ranks.rank}: {failure.code}: {failure.message}", file=sys.stderr, flush=True)
        if events is not None:
            events.write("failed", code=failure.code, message=failure.message, remedy=failure.remedy)
        return failure.exit_code
    finally:
        if events is not None:
            events.close()
    return 0


def _run(work: Work) -> None:
    manifest = whole_export(work.run_dir / "export")
    if manifest is not None:
        _announce(work, manifest)
        return
    data = prepare(work.plan)
    schedule = data.schedule(work.ranks.world)
    checkpoint = _starting_point(work, data)
    if work.ranks.first:
        _write_records(work, data, schedule)
    with process_group(work.ranks):
        # Imported late: torch and transformers take seconds, and what was refused so far needs neither.
        from shortstack.training.trainer.stages import export_run, train_run

        last = train_run(work, data, schedule, checkpoint)
    if work.ranks.first:
        _announce(work, export_run(work, data, schedule, last))


def _starting_point(work: Work, data: PreparedData) -> Checkpoint | None:
    """The checkpoint to go on from; removes what is broken. Every rank finds the same one.

    Raises:
        TrainingFailed: another number of processes wrote it; ZeRO's parts do not fit then.
    """
    found = newest_whole(work.run_dir) if data.config.resume_from_checkpoint else None
    if found is not None and found.ranks != work.ranks.world:
        raise TrainingFailed(
            "ranks_changed",
            f"{found.path.name} was written by {found.ranks} processes, and this attempt has {work.ranks.world}",
            where=f"run {work.plan.run}",
            remedy=f"Start it with {found.ranks} processes, or set resume_from_checkpoint: false.",
        )
    if work.ranks.first and work.metrics is not None:
        for name in remove_broken(work.run_dir, found):
            work.event("warning", code="broken_checkpoint", message=f"{name} was not whole and has been removed")
        work.metrics.resume_at(found.step if found else 0)
    return found


def _write_records(work: Work, data: PreparedData, schedule: Schedule) -> None:
    """The run folder's account of itself: resolved settings, dataset, environment."""
    config = yaml.safe_dump(resolved_config(data.config, schedule), sort_keys=False, allow_unicode=True)
    write_atomic(work.run_dir / "config.resolved.yaml", config.encode())
    write_json(work.run_dir / "dataset.manifest.json", dataset_manifest(work.plan, data))
    versions = sorted({f"{found.name}=={found.version}" for found in distributions()}, key=str.lower)
    lock = [f"# Python {platform.python_version()}, {platform.platform()}", *versions]
    write_atomic(work.run_dir / "environment.lock", ("\n".join(lock) + "\n").encode())
    for reason, count in data.train_report.rejected.items():
        example = next(item for item in data.train_report.examples if item.reason == reason)
        message = f"{count} not trained on: {reason}; for example {example.place}: {example.detail}"
        work.event("warning", code=reason, count=count, message=message)


def _announce(work: Work, manifest: dict[str, Any]) -> None:
    failpoint("after_export")
    named = {key: manifest[key] for key in ("digest", "name", "weights_digest", "prompt_format")}
    work.event("exported", path="export", manifest=f"export/{EXPORT_MANIFEST}", **named)
    summary = json.loads((work.run_dir / "summary.json").read_bytes())
    work.event("finished", summary=summary)
