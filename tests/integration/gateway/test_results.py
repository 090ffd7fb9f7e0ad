"""What a job that ended leaves as files: named in `result_files`, read like any file, made once."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.integration.gateway.conftest import Stack
from tests.integration.gateway.fakes import BASE, FINE_TUNE

from shortstack.core.errors import Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.pod.objects import put_papers

STEPS: list[tuple[str, dict[str, Any]]] = [
    ("step", {"step": 1, "max_steps": 2, "loss": 2.5, "learning_rate": 1e-4}),
    ("checkpoint", {"step": 1, "max_steps": 2, "path": "checkpoint-1"}),
    ("step", {"step": 2, "max_steps": 2, "loss": 1.5, "learning_rate": 5e-5}),
    ("eval", {"step": 2, "max_steps": 2, "eval_loss": 1.75}),
]
TABLE = """step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate
1,2.5,,,,0.0001
2,1.5,,1.75,,5e-05
"""


DAY_S = 86_400


def ended(stack: Stack, state: tr.JobState.ValueType = tr.JOB_STATE_SUCCEEDED, *, days: int = 0, **job: Any) -> str:
    """A job whose run did two steps, and that has ended, so many days ago."""
    client = stack.client()
    file = client.files.create(file=("mydata.jsonl", b"{}\n"), purpose="fine-tune").id
    made = client.fine_tuning.jobs.create(training_file=file, model=BASE).id
    kept = stack.training.jobs[made]
    kept.MergeFrom(tr.JobSnapshot(state=state, run="run1", model=FINE_TUNE, **job))
    kept.finished_at.seconds = int(time.time()) - 60 - days * DAY_S
    stack.training.runs["run1"] = tr.RunSnapshot(run="run1", attempt=1, step=2, max_steps=2)
    for number, (kind, payload) in enumerate(STEPS, 1):
        event = tr.TrainingEvent(run="run1", attempt=1, seq=number, type=kind, payload_json=json.dumps(payload))
        stack.training.events.setdefault(made, []).append(event)
    return made


def results(stack: Stack, job: str) -> list[str]:
    return stack.client().fine_tuning.jobs.retrieve(job).result_files


def test_the_metrics_of_a_finished_run_are_a_file_of_the_owner(stack: Stack) -> None:
    client, job = stack.client(), ended(stack)
    (named,) = results(stack, job)
    file = client.files.retrieve(named)
    finished = stack.training.jobs[job].finished_at.seconds
    assert (file.filename, file.purpose, file.created_at) == ("step_metrics.csv", "fine-tune-results", finished)
    assert client.files.content(named).text == TABLE
    assert file.bytes == len(TABLE)
    assert [one.id for one in client.files.list(purpose="fine-tune-results")] == [named]


def test_it_is_made_once_whatever_is_told_later(stack: Stack) -> None:
    job = ended(stack)
    (named,) = results(stack, job)
    stack.training.events[job].clear()
    assert [one.result_files for one in stack.client().fine_tuning.jobs.list()] == [[named]]
    assert results(stack, job) == [named]
    assert len(list(stack.client().files.list(purpose="fine-tune-results"))) == 1
    assert stack.client().files.content(named).text == TABLE


def test_a_deleted_result_is_not_made_again(stack: Stack) -> None:
    job = ended(stack)
    (named,) = results(stack, job)
    stack.client().files.delete(named)
    assert results(stack, job) == []


def test_a_result_is_its_owners_alone(stack: Stack) -> None:
    (named,) = results(stack, ended(stack))
    other = stack.client(stack.post("/v1/admin/keys", {"owner": "team-b"}).json()["key"])
    with pytest.raises(openai.NotFoundError):
        other.files.content(named)


@pytest.mark.parametrize("state", [tr.JOB_STATE_RUNNING, tr.JOB_STATE_CANCELLED])
def test_a_job_that_goes_on_or_was_given_up_has_none(stack: Stack, state: tr.JobState.ValueType) -> None:
    assert results(stack, ended(stack, state)) == []


def test_the_file_waits_until_the_last_step_is_told(stack: Stack) -> None:
    job = ended(stack)
    last = stack.training.events[job][2:]
    del stack.training.events[job][2:]
    assert results(stack, job) == []
    stack.training.events[job] += last
    (named,) = results(stack, job)
    assert stack.client().files.content(named).text == TABLE


def test_metrics_that_a_pod_stored_are_taken_whole(stack: Stack, tmp_path: Path) -> None:
    job = ended(stack)
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": float("nan")}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    put_papers(stack.blobs, "run1", 1, tmp_path)
    stack.training.events[job].clear()
    (named,) = results(stack, job)
    table = list(csv.DictReader(io.StringIO(stack.client().files.content(named).text)))
    assert [(row["step"], row["train_loss"], row["valid_loss"]) for row in table] == [
        ("1", "3.0", ""),
        ("2", "2.0", "nan"),
    ]


def refused(stack: Stack) -> str:
    """A job whose model failed the contract test."""
    proof = {"model": {"passed": False, "why": "token 3 is 7", "confirmed": 2, "mean_distance": 0.4}}
    stack.serving.put(
        sv.ModelSnapshot(
            name=FINE_TUNE,
            owner="default",
            state=sv.MODEL_STATE_REFUSED,
            message="contract test: token 3 is 7",
            proof_json=json.dumps(proof),
        )
    )
    return ended(stack, tr.JOB_STATE_FAILED, error_code="deployment_failed", error="contract test: token 3 is 7")


def test_a_failed_contract_leaves_its_proof_beside_the_metrics(stack: Stack) -> None:
    client, job = stack.client(), refused(stack)
    files = {client.files.retrieve(one).filename: one for one in results(stack, job)}
    assert list(files) == ["step_metrics.csv", "contract_test.json"]
    verdict = json.loads(client.files.content(files["contract_test.json"]).text)
    assert (verdict["model"], verdict["state"]) == (FINE_TUNE, "refused")
    assert verdict["proof"]["model"]["confirmed"] == 2


def test_a_job_is_told_while_serving_is_away_and_its_proof_later(stack: Stack) -> None:
    job = refused(stack)
    stack.serving.error = Transient("serving is starting")
    assert len(results(stack, job)) == 1
    assert "contract_test.json" in stack.logs.getvalue()
    stack.serving.error = None
    assert len(results(stack, job)) == 2


def listed(stack: Stack) -> dict[str, list[str]]:
    return {job.id: job.result_files or [] for job in stack.client().fine_tuning.jobs.list(limit=100)}


def test_a_list_makes_a_few_files_at_a_time(stack: Stack) -> None:
    jobs = [ended(stack) for _ in range(12)]
    made = [sum(map(len, listed(stack).values())) for _ in range(4)]
    assert made == [5, 10, 12, 12]
    assert sorted(stack.training.events_asked) == sorted(jobs)


def test_of_a_job_that_ended_long_ago_only_what_is_stored_is_made(stack: Stack, tmp_path: Path) -> None:
    job = ended(stack, days=8)
    assert listed(stack) == {job: []}
    assert results(stack, job) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    put_papers(stack.blobs, "run1", 1, tmp_path)
    assert listed(stack) == {job: []}
    (named,) = results(stack, job)
    assert listed(stack) == {job: [named]}
    assert stack.training.events_asked == []


def test_a_run_without_a_step_is_not_asked_for_metrics(stack: Stack) -> None:
    job = ended(stack, tr.JOB_STATE_FAILED, error_code="training_failed")
    stack.training.runs["run1"].step = 0
    assert listed(stack) == {job: []}
    assert results(stack, job) == []
    assert stack.training.events_asked == []


def test_a_service_that_is_away_is_asked_once_for_a_whole_list(stack: Stack) -> None:
    for _ in range(4):
        ended(stack)
    stack.training.events_error = Transient("training is starting")
    assert not any(listed(stack).values())
    assert len(stack.training.events_asked) == 1
    stack.training.events_error = None
    assert all(listed(stack).values())


def test_a_job_that_ends_anew_leaves_other_files(stack: Stack) -> None:
    job = ended(stack, tr.JOB_STATE_FAILED, error_code="training_failed")
    first = results(stack, job)
    stack.training.jobs[job].state = tr.JOB_STATE_SUCCEEDED
    stack.training.jobs[job].finished_at.seconds += 60
    second = results(stack, job)
    assert len(first) == len(second) == 1
    assert first != second
