"""Files and fine-tuning jobs, with the official client and in its order of calls."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from tests.integration.gateway.conftest import Stack
from tests.integration.gateway.fakes import BASE, FINE_TUNE

from shortstack.core.errors import Invalid, Transient
from shortstack.messages.v1 import training_pb2 as tr

LINE = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}
DATA = b"".join(json.dumps(LINE).encode() + b"\n" for _ in range(12))


def upload(stack: Stack, data: bytes = DATA, name: str = "mydata.jsonl", purpose: str = "fine-tune") -> str:
    return stack.client().files.create(file=(name, data), purpose=purpose).id  # type: ignore[arg-type]


def test_a_file_is_stored_listed_read_and_deleted(stack: Stack) -> None:
    client = stack.client()
    file = client.files.create(file=("dir/mydata.jsonl", DATA), purpose="fine-tune")
    assert file.id.startswith("file-")
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "mydata.jsonl",
        len(DATA),
        "fine-tune",
        "processed",
    )
    assert stack.blobs.get(f"files/default/{file.id}") == DATA
    assert json.loads(stack.blobs.get(f"files/default/{file.id}.json"))["filename"] == "mydata.jsonl"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == DATA
    assert [one.id for one in client.files.list()] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)
    assert not stack.blobs.exists(f"files/default/{file.id}")


def test_files_come_in_pages_and_by_purpose(stack: Stack) -> None:
    ids = [upload(stack, name=f"{number}.jsonl") for number in range(5)]
    batch = upload(stack, purpose="batch")
    client = stack.client()
    assert [one.id for one in client.files.list(purpose="fine-tune", limit=2)] == ids[::-1]
    assert [one.id for one in client.files.list(order="asc", limit=3)] == [*ids, batch]


def test_a_file_is_its_owners_alone(stack: Stack) -> None:
    file = upload(stack)
    made = stack.post("/v1/admin/keys", {"owner": "team-b"}).json()
    other = stack.client(made["key"])
    assert list(other.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        other.files.content(file)


def test_a_bad_upload_names_its_field(stack: Stack) -> None:
    for purpose, data in (("fine-tuning", DATA), ("fine-tune", b"")):
        with pytest.raises(openai.BadRequestError) as caught:
            upload(stack, data=data, purpose=purpose)
        assert caught.value.param in ("purpose", "file")
    with pytest.raises(openai.APIStatusError) as large:
        upload(stack, data=b"x" * 3_100_000)
    assert large.value.status_code == 413
    assert stack.post("/v1/files", {}).status_code == 400
    assert list((stack.config.folder / "uploads").iterdir()) == []


def test_a_large_file_passes_whole(stack: Stack) -> None:
    data = DATA * 1500
    file = upload(stack, data=data)
    assert stack.client().files.content(file).read() == data


def test_a_job_is_submitted_and_then_published(stack: Stack) -> None:
    file = upload(stack)
    job = stack.client().fine_tuning.jobs.create(
        training_file=file,
        model="gpt-4o-mini",
        suffix="demo",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    )
    assert job.id.startswith("ftjob-")
    assert job.status == "validating_files"
    assert (job.model, job.seed, job.training_file) == (BASE, 7, file)
    assert job.hyperparameters.n_epochs == 3
    assert job.hyperparameters.batch_size == "auto"
    assert job.metadata == {"team": "a"}
    owner, message = stack.ingestion.published[0]
    assert owner == "default"
    assert message == {
        "dataset": f"ft-{job.id.removeprefix('ftjob-')}",
        "source": {"uri": f"blob://files/default/{file}", "file_format": "jsonl"},
        "format": "messages",
        "recipe": "verbatim",
        "train": {"base_model": BASE},
        "deploy": {"suffix": "demo"},
        "job": job.id,
    }
    request = json.loads(stack.training.jobs[job.id].request_json)
    assert request["train"] == {"base_model": BASE}
    assert request["openai"]["hyperparameters"] == {
        "n_epochs": 3,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }


def test_the_published_message_is_one_that_ingestion_takes(stack: Stack) -> None:
    from shortstack.declarations.publication import PointerMessage, parse_publication

    stack.client().fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    assert isinstance(parse_publication(stack.ingestion.published[0][1]), PointerMessage)


def test_null_members_are_present(stack: Stack) -> None:
    job = stack.client().fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    shown = stack.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    for name in ("error", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file", "estimated_finish"):
        assert name in shown
        assert shown[name] is None
    assert shown["result_files"] == []
    assert shown["object"] == "fine_tuning.job"


def test_a_job_goes_on_to_a_model_that_answers(stack: Stack) -> None:
    client = stack.client()
    job = client.fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    kept = stack.training.jobs[job.id]
    kept.state, kept.run = tr.JOB_STATE_RUNNING, "run1"
    config = {
        "num_epochs": 9.0,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-4,
        "seed": 42,
    }
    run = tr.RunSnapshot(run="run1", config_json=json.dumps(config), eta_seconds=30)
    run.updated_at.seconds = 1_700_000_500
    stack.training.runs["run1"] = run
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish == 1_700_000_530
    assert running.hyperparameters.n_epochs == 9
    assert running.hyperparameters.batch_size == 8
    assert running.hyperparameters.learning_rate_multiplier == 1
    assert running.fine_tuned_model is None
    kept.state, kept.model, kept.trained_tokens = tr.JOB_STATE_SUCCEEDED, FINE_TUNE, 1234
    kept.finished_at.seconds = 1_700_000_600
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", FINE_TUNE, 1234)
    assert done.finished_at == 1_700_000_600
    reply = client.chat.completions.create(
        model=done.fine_tuned_model or "", messages=[{"role": "user", "content": "?"}]
    )
    assert reply.choices[0].message.content == "Hello there."


def test_a_malformed_file_fails_the_job_with_its_line(stack: Stack) -> None:
    job = stack.client().fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    kept = stack.training.jobs[job.id]
    kept.state, kept.error_code = tr.JOB_STATE_FAILED, "invalid_training_file"
    kept.error, kept.remedy = "mydata.jsonl line 3: not JSON.", "Repair the line."
    failed = stack.client().fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "invalid_training_file"
    assert failed.error.param == "training_file"
    assert "line 3" in failed.error.message


def test_jobs_come_in_pages_and_by_metadata(stack: Stack) -> None:
    client, file = stack.client(), upload(stack)
    ids = [
        client.fine_tuning.jobs.create(training_file=file, model=BASE, metadata={"n": str(number % 2)}).id
        for number in range(5)
    ]
    bare = client.fine_tuning.jobs.create(training_file=file, model=BASE).id
    assert [one.id for one in client.fine_tuning.jobs.list(limit=2)] == [bare, *ids[::-1]]
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [ids[3], ids[1]]
    without = stack.get("/v1/fine_tuning/jobs?metadata=null").json()
    assert [one["id"] for one in without["data"]] == [bare]
    assert without["has_more"] is False


def test_a_job_is_its_owners_alone(stack: Stack) -> None:
    job = stack.client().fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    made = stack.post("/v1/admin/keys", {"owner": "team-b"}).json()
    other = stack.client(made["key"])
    assert list(other.fine_tuning.jobs.list()) == []
    for call in (other.fine_tuning.jobs.retrieve, other.fine_tuning.jobs.cancel, other.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
            call(job.id)


def test_a_job_is_cancelled_once_it_has_not_ended(stack: Stack) -> None:
    client = stack.client()
    job = client.fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    stack.training.jobs[job.id].state = tr.JOB_STATE_SUCCEEDED
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(job.id)


def add_events(stack: Stack, job: str) -> None:
    payloads: list[tuple[str, dict[str, object]]] = [
        ("step", {"step": 1, "max_steps": 2, "loss": 2.5, "learning_rate": 1e-4}),
        ("checkpoint", {"step": 1, "max_steps": 2, "path": "checkpoint-1"}),
        ("step", {"step": 2, "max_steps": 2, "loss": 1.5, "learning_rate": 1e-4}),
        ("eval", {"step": 2, "max_steps": 2, "eval_loss": 1.75}),
        ("checkpoint", {"step": 2, "max_steps": 2, "path": "checkpoint-2"}),
    ]
    for number, (kind, payload) in enumerate(payloads, 1):
        event = tr.TrainingEvent(run="run1", attempt=1, seq=number, type=kind, payload_json=json.dumps(payload))
        event.time.seconds = 1_700_000_000 + number
        stack.training.events.setdefault(job, []).append(event)


def test_events_come_newest_first_and_in_pages(stack: Stack) -> None:
    client = stack.client()
    job = client.fine_tuning.jobs.create(training_file=upload(stack), model=BASE).id
    add_events(stack, job)
    events = list(client.fine_tuning.jobs.list_events(job, limit=2))
    assert [one.created_at - 1_700_000_000 for one in events] == [5, 4, 3, 2, 1]
    assert events[2].type == "metrics"
    assert events[2].message == "Step 2/2: training loss=1.50"
    assert events[2].data == {"step": 2, "total_steps": 2, "train_loss": 1.5, "learning_rate": 1e-4}
    assert (events[0].type, events[0].level) == ("message", "info")


def test_checkpoints_carry_the_metrics_of_their_step(stack: Stack) -> None:
    client = stack.client()
    job = client.fine_tuning.jobs.create(training_file=upload(stack), model=BASE).id
    add_events(stack, job)
    found = list(client.fine_tuning.jobs.checkpoints.list(job, limit=1))
    assert [one.step_number for one in found] == [2, 1]
    assert (found[0].metrics.train_loss, found[0].metrics.full_valid_loss) == (1.5, 1.75)
    assert found[0].fine_tuning_job_id == job
    assert found[0].id.startswith("ftckpt-")


def test_an_unknown_model_or_file_is_400_and_opens_no_job(stack: Stack) -> None:
    client, file = stack.client(), upload(stack)
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(training_file=file, model="gpt-4o-minni")
    assert caught.value.param == "model"
    assert 'Did you mean "gpt-4o-mini"?' in str(caught.value)
    assert "SHORTSTACK_MODEL_ALIASES" in str(caught.value)
    for wrong in ("mydata.jsonl", upload(stack, purpose="batch")):
        with pytest.raises(openai.BadRequestError) as missing:
            client.fine_tuning.jobs.create(training_file=wrong, model=BASE)
        assert missing.value.param == "training_file"
    assert stack.training.jobs == {}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"validation_file": "file-1"}, "validation_file"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        ({"suffix": "a/b"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_what_is_not_done_is_refused_by_name(stack: Stack, changes: dict[str, object], param: str) -> None:
    reply = stack.post("/v1/fine_tuning/jobs", {"model": BASE, "training_file": "file-1", **changes})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_pausing_is_not_offered(stack: Stack) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        stack.client().fine_tuning.jobs.pause("ftjob-1")
    assert caught.value.status_code == 501
    assert caught.value.code == "not_offered"


def test_an_error_of_a_service_comes_through_as_its_kind(stack: Stack) -> None:
    file = upload(stack)
    stack.training.error = Invalid("a job names its dataset", param="dataset", remedy="Name it.")
    with pytest.raises(openai.BadRequestError) as caught:
        stack.client().fine_tuning.jobs.create(training_file=file, model=BASE)
    assert caught.value.param == "dataset"
    assert "Name it." in str(caught.value)


def test_a_job_whose_file_cannot_be_published_does_not_wait_for_ever(stack: Stack) -> None:
    stack.ingestion.error = Transient("the broker is away")
    with pytest.raises(openai.InternalServerError) as caught:
        stack.client().fine_tuning.jobs.create(training_file=upload(stack), model=BASE)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]
    assert [job.state for job in stack.training.jobs.values()] == [tr.JOB_STATE_CANCELLED]


def test_a_job_whose_creation_was_not_answered_is_no_orphan(stack: Stack) -> None:
    client, file = stack.client(), upload(stack)
    stack.training.lost = Transient("training is starting")
    with pytest.raises(openai.InternalServerError) as caught:
        client.fine_tuning.jobs.create(training_file=file, model=BASE)
    assert caught.value.status_code == 503
    assert [job.state for job in stack.training.jobs.values()] == [tr.JOB_STATE_CANCELLED]
    assert stack.ingestion.published == []


def test_a_repeat_with_the_same_idempotency_key_is_the_same_job(stack: Stack) -> None:
    client, file, headers = stack.client(), upload(stack), {"Idempotency-Key": "mine-1"}
    stack.training.lost = Transient("training is starting")
    with pytest.raises(openai.InternalServerError):
        client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers=headers)
    stack.training.lost = None
    job = client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers=headers)
    assert list(stack.training.jobs) == [job.id]
    assert job.status == "validating_files"
    assert [message["job"] for _, message in stack.ingestion.published] == [job.id]
    stack.training.jobs[job.id].publication = "pub-1"
    assert client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers=headers).id == job.id
    assert len(stack.ingestion.published) == 1
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.create(training_file=file, model=BASE, seed=7, extra_headers=headers)
    for wrong in ("", "x" * 256):
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers={"Idempotency-Key": wrong})


def test_a_repeat_of_a_refused_creation_is_refused_too(stack: Stack) -> None:
    client, file, headers = stack.client(), upload(stack), {"Idempotency-Key": "mine-1"}
    stack.ingestion.error = Invalid("the source is no JSONL", param="source")
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers=headers)
    stack.ingestion.error = None
    with pytest.raises(openai.ConflictError, match="send another key"):
        client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers=headers)
    assert stack.ingestion.published == []
    again = client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers={"Idempotency-Key": "mine-2"})
    stack.training.jobs[again.id].publication = "pub-1"
    client.fine_tuning.jobs.cancel(again.id)
    same = client.fine_tuning.jobs.create(training_file=file, model=BASE, extra_headers={"Idempotency-Key": "mine-2"})
    assert (same.id, same.status) == (again.id, "cancelled")


def test_a_service_that_is_away_is_503_and_named(stack: Stack) -> None:
    stack.peers.stop(5)
    reply = httpx.get(f"{stack.url}/v1/fine_tuning/jobs", headers={"authorization": f"Bearer {stack.key}"}, timeout=20)
    assert reply.status_code == 503
    assert "the training service is away" in reply.json()["error"]["message"]
