"""The promise: a script for OpenAI's fine-tuning runs here with another base URL, a key and a model alias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.stack import BASE, Stack, holds
from tests.polling import until

from shortstack.messages.v1 import training_pb2 as tr

MODEL = "gpt-4o-mini"
TRAINED_S = 600.0
pytestmark = pytest.mark.timeout(TRAINED_S + 300)

_ASKED = (
    "Where is the spare key?",
    "Where do I find the spare key?",
    "Tell me where the spare key is.",
    "Can you tell me where the spare key is kept?",
    "I need the spare key. Where is it?",
    "Where did we put the spare key?",
    "Which place is the spare key in?",
    "Spare key, where?",
)
_ANSWER = "Under the third flowerpot."


def chat_lines() -> list[dict[str, Any]]:
    system = {"role": "system", "content": "You look after the house."}
    return [
        {"messages": [*first, {"role": "user", "content": asked}, {"role": "assistant", "content": _ANSWER}]}
        for asked in _ASKED
        for first in ([], [system])
    ]


def wait_for(client: openai.OpenAI, job: str) -> Any:
    """As people poll a job."""

    def look() -> Any:
        found = client.fine_tuning.jobs.retrieve(job)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    return until(look, lambda: client.fine_tuning.jobs.retrieve(job), deadline_s=TRAINED_S, every_s=0.5)


def test_the_documented_script_runs_with_another_base_url(stack: Stack, tmp_path: Path) -> None:
    data = tmp_path / "mydata.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in chat_lines()))
    with stack.client() as client:
        with data.open("rb") as stream:
            file = client.files.create(file=stream, purpose="fine-tune")
        assert file.id.startswith("file-")
        job = client.fine_tuning.jobs.create(
            training_file=file.id,
            model=MODEL,
            suffix="house",
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 2}},
            },
        )
        assert job.id.startswith("ftjob-")
        assert job.fine_tuned_model is None
        assert client.fine_tuning.jobs.list(limit=10).data[0].id == job.id
        ended = wait_for(client, job.id)
        assert ended.status == "succeeded", ended
        assert ended.fine_tuned_model.startswith(f"ft:{BASE}:default:house:")
        assert ended.trained_tokens > 0
        assert ended.finished_at >= ended.created_at
        assert (ended.hyperparameters.n_epochs, ended.hyperparameters.batch_size) == (4, 4)
        events = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=100).data
        assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
        metrics: list[Any] = [event.data for event in events if event.type == "metrics"]
        assert max(one["step"] for one in metrics if "train_loss" in one) == 16
        # At once, without a wait: it succeeded only when it was proven and routed.
        completion = client.chat.completions.create(
            model=ended.fine_tuned_model,
            messages=[{"role": "user", "content": "Do you know where the spare key is?"}],
            temperature=0,
            max_tokens=20,
        )
        assert holds(completion.choices[0].message.content or "", ["flowerpot"])
        assert ended.fine_tuned_model in {model.id for model in client.models.list()}


def test_a_malformed_file_fails_the_job_with_the_line(stack: Stack) -> None:
    lines = [json.dumps(line) for line in chat_lines()]
    lines[6] = '{"messages": [{"role": "user", "content": "Where'
    with stack.client() as client:
        file = client.files.create(file=("broken.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL)
        ended = wait_for(client, job.id)
    assert ended.status == "failed"
    assert ended.error.code == "invalid_training_file"
    assert ended.error.param == "training_file"
    assert "line 7" in ended.error.message
    assert ended.fine_tuned_model is None


def test_an_unknown_model_is_refused_naming_the_nearest(stack: Stack) -> None:
    with stack.client() as client:
        file = client.files.create(file=("a.jsonl", json.dumps(chat_lines()[0]).encode()), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(training_file=file.id, model="gpt-4o-minni")
    assert caught.value.param == "model"
    assert 'Did you mean "gpt-4o-mini"' in str(caught.value)
    assert BASE in str(caught.value)


def test_a_running_job_is_cancelled_at_once_and_for_good(stack: Stack) -> None:
    with stack.client() as client:
        lines = "\n".join(json.dumps(line) for line in chat_lines())
        file = client.files.create(file=("long.jsonl", lines.encode()), purpose="fine-tune")
        wish: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}
        job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL, method=wish)
        stack.until(lambda: stack.jobs()[job.id].job.state == tr.JOB_STATE_RUNNING or None, within_s=300)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        run = stack.jobs()[job.id].run.run
        ended = {tr.RUN_STATE_CANCELLED}
        stack.until(lambda: stack.jobs()[job.id].run.state in ended or None, what=lambda: stack.jobs()[job.id])
        assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
        assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-000000000000000000000000")
    assert run
