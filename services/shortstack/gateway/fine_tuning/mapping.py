"""Jobs, runs and events of the stack as OpenAI's fine-tuning objects. Pure.

Shapes: ``FineTuningJob``, ``FineTuningJobEvent`` and ``FineTuningJobCheckpoint`` of ``openai``; null members are
present, as that API sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from shortstack.declarations.train import TrainConfig
from shortstack.gateway.fine_tuning.requests import AUTO, DEFAULT_SEED
from shortstack.messages.v1 import training_pb2 as tr

__all__ = ["STATUSES", "checkpoints", "event", "event_cursor", "job", "metadata_of"]

STATUSES: Final[Mapping[int, str]] = {
    tr.JOB_STATE_UNSPECIFIED: "validating_files",
    tr.JOB_STATE_VALIDATING_FILES: "validating_files",
    tr.JOB_STATE_QUEUED: "queued",
    tr.JOB_STATE_RUNNING: "running",
    tr.JOB_STATE_SUCCEEDED: "succeeded",
    tr.JOB_STATE_FAILED: "failed",
    tr.JOB_STATE_CANCELLED: "cancelled",
}
_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
_FILE_CODES: Final[Mapping[str, str]] = {"invalid_training_file": "training_file"}
"""Error codes that are about a parameter."""
_FAILED: Final = "job_failed"
_LEVELS: Final = frozenset({"info", "warn", "error"})
_METRIC_EVENTS: Final = frozenset({"step", "eval"})
_EVENT_PREFIX: Final = "ftevent-"
_HYPERPARAMETERS: Final = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job(snapshot: tr.JobSnapshot, run: tr.RunSnapshot | None, result_files: Sequence[str] = ()) -> dict[str, Any]:
    """A ``FineTuningJob``.

    Args:
        snapshot: the job.
        run: its run, once there is one.
        result_files: ids of what it left (`results.JobResults`).
    """
    request = _object(snapshot.request_json)
    openai = _dict(request.get("openai"))
    status = STATUSES[snapshot.state]
    hyperparameters = _hyperparameters(_dict(openai.get("hyperparameters")), run)
    return {
        "object": "fine_tuning.job",
        "id": snapshot.job,
        "model": _model(request, openai, run),
        "created_at": snapshot.created_at.seconds,
        "finished_at": _seconds(snapshot.finished_at) if status in _ENDED else None,
        "fine_tuned_model": (snapshot.model or None) if status == "succeeded" else None,
        "organization_id": snapshot.owner,
        "result_files": list(result_files),
        "status": status,
        "validation_file": None,
        "training_file": openai.get("training_file") or f"dataset:{snapshot.dataset}",
        "hyperparameters": hyperparameters,
        "trained_tokens": snapshot.trained_tokens if status == "succeeded" else None,
        "error": _error(snapshot) if status == "failed" else None,
        "user_provided_suffix": _dict(request.get("deploy")).get("suffix"),
        "seed": _seed(openai, run),
        "estimated_finish": _estimate(status, run),
        "integrations": [],
        "metadata": metadata_of(snapshot) or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        # Beyond OpenAI's shape: what the job is doing, step by step.
        "shortstack": {"dataset": snapshot.dataset, "run": snapshot.run or None, "steps": _steps(snapshot.steps)},
    }


def metadata_of(snapshot: tr.JobSnapshot) -> dict[str, str]:
    """The pairs that the job was created with."""
    found = _dict(_dict(_object(snapshot.request_json).get("openai")).get("metadata"))
    return {str(key): str(value) for key, value in found.items()}


def event(given: tr.TrainingEvent) -> dict[str, Any]:
    """A ``FineTuningJobEvent``."""
    payload = _object(given.payload_json)
    metrics = given.type in _METRIC_EVENTS
    return {
        "object": "fine_tuning.job.event",
        "id": f"{_EVENT_PREFIX}{given.run or given.job}-{given.attempt}-{given.seq}",
        "created_at": given.time.seconds,
        "level": given.level if given.level in _LEVELS else "info",
        "message": given.message or _message(given.type, payload),
        "type": "metrics" if metrics else "message",
        "data": _metrics(payload) if metrics else {},
    }


def event_cursor(event_id: str) -> str | None:
    """What TrainingService.ListEvents takes as ``after`` for an event's id; None if it is no such id."""
    parts = event_id.removeprefix(_EVENT_PREFIX).rsplit("-", 2)
    if not event_id.startswith(_EVENT_PREFIX) or len(parts) != 3:
        return None
    return "/".join(parts)


def checkpoints(given: Iterable[tr.TrainingEvent], job_id: str, model: str) -> list[dict[str, Any]]:
    """``FineTuningJobCheckpoint`` objects, the newest first, from a job's events in any order.

    A checkpoint is kept to resume from, and is not served: it has no model name of its own but the job's model.
    """
    ordered = sorted(given, key=lambda one: (one.attempt, one.seq))
    values: dict[int, dict[str, Any]] = {}
    found: dict[int, tr.TrainingEvent] = {}
    for one in ordered:
        payload = _object(one.payload_json)
        step = payload.get("step")
        if not isinstance(step, int):
            continue
        values.setdefault(step, {}).update(_metrics(payload))
        if one.type == "checkpoint":
            found[step] = one
    return [_checkpoint(found[step], step, values[step], job_id, model) for step in sorted(found, reverse=True)]


def _checkpoint(
    given: tr.TrainingEvent, step: int, metrics: Mapping[str, Any], job_id: str, model: str
) -> dict[str, Any]:
    names = (
        "step",
        "train_loss",
        "train_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    )
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt-{given.run}-{step}",
        "created_at": given.time.seconds,
        "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{step}",
        "fine_tuning_job_id": job_id,
        "metrics": {name: metrics.get(name) for name in names},
        "step_number": step,
    }


def _metrics(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's names → OpenAI's; evaluation here is on the whole validation split."""
    names = {
        "step": "step",
        "max_steps": "total_steps",
        "loss": "train_loss",
        "eval_loss": "full_valid_loss",
        "learning_rate": "learning_rate",
        "tokens": "tokens",
        "tokens_per_second": "tokens_per_second",
    }
    return {theirs: payload[ours] for ours, theirs in names.items() if payload.get(ours) is not None}


def _message(kind: str, payload: Mapping[str, Any]) -> str:
    if kind == "step":
        return f"Step {payload.get('step')}/{payload.get('max_steps')}: training loss={payload.get('loss', 0.0):.2f}"
    if kind == "eval":
        return f"Step {payload.get('step')}/{payload.get('max_steps')}: validation loss={payload.get('eval_loss')}"
    if kind == "checkpoint":
        return f"Checkpoint at step {payload.get('step')}"
    return str(payload.get("message") or kind)


def _hyperparameters(asked: Mapping[str, Any], run: tr.RunSnapshot | None) -> dict[str, Any]:
    """As resolved in the run's config, once it stands there; before that as asked for."""
    shown, config = {name: asked.get(name, AUTO) for name in _HYPERPARAMETERS}, _config(run)
    if run is None or not config:
        return shown
    resolved = {
        "n_epochs": round(config["num_epochs"]),
        # A run of an earlier version does not say it, and had one rank or a batch that was asked for.
        "batch_size": run.batch_size or config["micro_batch_size"] * config["gradient_accumulation_steps"],
        "learning_rate_multiplier": round(
            config["learning_rate"] / float(TrainConfig.model_fields["learning_rate"].default), 6
        ),
    }
    # A number that was asked for stands as it was: the epochs are rounded here, and a rate has been multiplied.
    return {name: resolved[name] if shown[name] == AUTO else shown[name] for name in _HYPERPARAMETERS}


def _config(run: tr.RunSnapshot | None) -> dict[str, Any]:
    return _object(run.config_json) if run is not None and run.run else {}


def _model(request: Mapping[str, Any], openai: Mapping[str, Any], run: tr.RunSnapshot | None) -> str:
    named = openai.get("model") or _dict(request.get("train")).get("base_model")
    return str(named or (run.base_model if run is not None else ""))


def _seed(openai: Mapping[str, Any], run: tr.RunSnapshot | None) -> int:
    seed = openai.get("seed", _config(run).get("seed"))
    return DEFAULT_SEED if seed is None else int(seed)


def _error(snapshot: tr.JobSnapshot) -> dict[str, Any]:
    code = snapshot.error_code or _FAILED
    text = " ".join(part for part in (snapshot.error, snapshot.remedy) if part)
    return {"code": code, "message": text or "The job failed.", "param": _FILE_CODES.get(code)}


def _estimate(status: str, run: tr.RunSnapshot | None) -> int | None:
    if status != "running" or run is None or run.eta_seconds <= 0:
        return None
    return int(run.updated_at.seconds + run.eta_seconds)


def _steps(steps: Iterable[tr.JobStep]) -> list[dict[str, Any]]:
    return [
        {
            "name": step.name,
            "state": tr.StepState.Name(step.state).removeprefix("STEP_STATE_").lower(),
            "message": step.message,
            "done": step.done,
            "total": step.total,
            "unit": step.unit,
        }
        for step in steps
    ]


def _seconds(time: Timestamp) -> int | None:
    return time.seconds or None


def _object(text: str) -> dict[str, Any]:
    return _dict(orjson.loads(text)) if text else {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
