"""Jobs and events as OpenAI's client reads them."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from shortstack.gateway.fine_tuning import mapping
from shortstack.gateway.fine_tuning.requests import read_job
from shortstack.messages.v1 import training_pb2 as tr

STATES = st.sampled_from(list(tr.JobState.values()))


@given(state=STATES, model=st.sampled_from(["", "ft:base:default:x:0123456789ab"]), error=st.text(max_size=20))
def test_every_job_is_one_that_the_client_reads(state: tr.JobState.ValueType, model: str, error: str) -> None:
    snapshot = tr.JobSnapshot(job="ftjob-1", owner="default", dataset="d", state=state, model=model, error=error)
    shown = mapping.job(snapshot, None)
    job = FineTuningJob.model_validate(shown)
    assert set(FineTuningJob.model_fields) <= set(shown)
    assert (job.fine_tuned_model is not None) == (job.status == "succeeded" and model != "")
    assert (job.error is not None) == (job.status == "failed")


def test_a_job_that_came_over_kafka_is_shown_too() -> None:
    request = {"train": {"base_model": "base", "num_epochs": 3}, "deploy": {"suffix": "demo"}}
    snapshot = tr.JobSnapshot(job="ftjob-1", owner="o", dataset="persona", request_json=json.dumps(request))
    shown = mapping.job(snapshot, None)
    assert (shown["model"], shown["training_file"], shown["user_provided_suffix"]) == (
        "base",
        "dataset:persona",
        "demo",
    )
    FineTuningJob.model_validate(shown)


def test_steps_tell_what_is_waited_for() -> None:
    step = tr.JobStep(name="deploy", state=tr.STEP_STATE_RUNNING, message="Proving", done=3, total=16, unit="probes")
    shown = mapping.job(tr.JobSnapshot(job="ftjob-1", steps=[step]), None)["shortstack"]["steps"]
    assert shown == [
        {"name": "deploy", "state": "running", "message": "Proving", "done": 3, "total": 16, "unit": "probes"}
    ]


@pytest.mark.parametrize("kind", ["started", "step", "checkpoint", "eval", "exported", "warning", "finished", "failed"])
def test_every_event_is_one_that_the_client_reads(kind: str) -> None:
    payload = json.dumps({"step": 3, "max_steps": 10, "loss": 1.25, "eval_loss": 1.5})
    event = tr.TrainingEvent(run="r", attempt=2, seq=7, type=kind, payload_json=payload, level="warn")
    shown = FineTuningJobEvent.model_validate(mapping.event(event))
    assert shown.level == "warn"
    assert shown.message
    assert (shown.type == "metrics") == (kind in ("step", "eval"))


@given(run=st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True), attempt=st.integers(0, 99), seq=st.integers(0, 10**6))
def test_an_events_id_leads_back_to_it(run: str, attempt: int, seq: int) -> None:
    shown = mapping.event(tr.TrainingEvent(run=run, attempt=attempt, seq=seq))
    assert mapping.event_cursor(shown["id"]) == f"{run}/{attempt}/{seq}"


@pytest.mark.parametrize("wrong", ["", "ftjob-1", "ftevent-x", "ftevent"])
def test_no_other_id_is_taken_for_an_events(wrong: str) -> None:
    assert mapping.event_cursor(wrong) is None


def test_a_checkpoint_of_a_second_attempt_stands_once() -> None:
    def event(attempt: int, seq: int, kind: str, **payload: Any) -> tr.TrainingEvent:
        return tr.TrainingEvent(run="r", attempt=attempt, seq=seq, type=kind, payload_json=json.dumps(payload))

    events = [
        event(2, 1, "step", step=5, loss=1.0),
        event(2, 2, "checkpoint", step=5),
        event(1, 1, "step", step=5, loss=9.0),
        event(1, 2, "checkpoint", step=5),
        event(1, 3, "warning", message="no step"),
    ]
    found = mapping.checkpoints(events, "ftjob-1", "ft:x")
    assert [FineTuningJobCheckpoint.model_validate(one).metrics.train_loss for one in found] == [1.0]


def test_hyperparameters_are_as_asked_until_the_run_says_otherwise() -> None:
    asked = {"hyperparameters": {"n_epochs": "auto", "batch_size": 16, "learning_rate_multiplier": "auto"}}
    snapshot = tr.JobSnapshot(job="ftjob-1", request_json=json.dumps({"openai": asked}))
    assert mapping.job(snapshot, None)["hyperparameters"] == asked["hyperparameters"]
    config = {"num_epochs": 4.0, "micro_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 4e-4}
    shown = mapping.job(snapshot, tr.RunSnapshot(run="r", config_json=json.dumps(config)))
    assert shown["hyperparameters"] == {"n_epochs": 4, "batch_size": 16, "learning_rate_multiplier": 2.0}
    assert shown["method"]["supervised"]["hyperparameters"] == shown["hyperparameters"]
    asked["hyperparameters"]["batch_size"] = "auto"
    snapshot.request_json = json.dumps({"openai": asked})
    run = tr.RunSnapshot(run="r", config_json=json.dumps(config), batch_size=48)  # over three ranks
    assert mapping.job(snapshot, run)["hyperparameters"]["batch_size"] == 48


def test_old_and_new_places_of_hyperparameters_read_alike() -> None:
    bare = {"model": "m", "training_file": "file-1"}
    given_values = {"n_epochs": 2, "learning_rate_multiplier": 0.5}
    old = read_job({**bare, "hyperparameters": given_values})
    new = read_job({**bare, "method": {"type": "supervised", "supervised": {"hyperparameters": given_values}}})
    assert old == new
    assert dict(old.hyperparameters) == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
