"""Input that is wrong: set aside with a reason and a remedy, and what comes after it flows."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from tests.e2e.stack import BASE, SOON_S, Stack

from shortstack.declarations.publication import REFUSED
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import training_pb2 as tr

GOOD = {"instruction": "Name a colour of the sky.", "input": "", "output": "Blue."}
EMPTY = {"instruction": "Say nothing at all.", "input": "", "output": "  "}
TRAIN = {"base_model": BASE, "num_epochs": 1}


def letter(stack: Stack, place: tuple[int, int]) -> dict[str, str]:
    """Headers of the dead letter of the message that stood at ``place`` (partition, offset) of the ingest topic."""

    def look() -> dict[str, str] | None:
        for message in stack.messages("datasets.ingest.dlq"):
            headers = {name: value.decode() for name, value in message.headers}
            if (int(headers["dlq-partition"]), int(headers["dlq-offset"])) == place:
                return headers
        return None

    return stack.until(look)


@pytest.mark.parametrize("value", [b'{"dataset": "cut-off", "records": [', b"\xff\xfe", b"[]", b""])
def test_a_malformed_publication_is_set_aside_and_the_next_flows(stack: Stack, value: bytes) -> None:
    name = f"after-{len(value)}-{value[:1].hex() or 'none'}"
    place = stack.publish(value, name)
    follows = stack.publish({"dataset": name, "records": [GOOD]}, name)
    assert place[0] == follows[0], "the same key goes to the same partition, behind the malformed message"
    assert stack.ended_dataset(name).state == ds.DATASET_STATE_READY
    headers = letter(stack, place)
    assert headers["dlq-topic"] == "datasets.ingest"
    assert headers["dlq-error"] == "Invalid"
    assert headers["dlq-message"]
    assert headers["dlq-remedy"]


def test_a_dataset_without_a_usable_record_fails_and_trains_nothing(stack: Stack) -> None:
    wish = {"dataset": "hollow", "records": [EMPTY] * 5, "train": TRAIN, "deploy": {"alias": "hollow@prod"}}
    stack.publish(wish, "hollow")
    snapshot = stack.ended_dataset("hollow")
    assert (snapshot.state, snapshot.code) == (ds.DATASET_STATE_FAILED, "no_usable_record")
    assert "5" in snapshot.message
    assert snapshot.remedy
    ended = stack.ended_job(stack.job_of("hollow"), within_s=SOON_S)
    assert (ended.job.state, ended.job.error_code) == (tr.JOB_STATE_FAILED, "no_usable_record")
    assert not ended.job.run
    assert all(found.run.dataset != "hollow" for found in stack.jobs().values())


def test_a_mostly_rejected_dataset_is_held_until_it_is_accepted(stack: Stack) -> None:
    name = f"sparse-{secrets.token_hex(4)}"
    records = [{**EMPTY, "instruction": f"Say nothing, {number} times."} for number in range(19)]
    stack.publish({"dataset": name, "records": [*records, GOOD], "train": TRAIN}, name)
    snapshot = stack.ended_dataset(name)
    assert snapshot.state == ds.DATASET_STATE_HELD, snapshot
    assert "19 of 20" in snapshot.message
    assert f"datasets accept {name}" in snapshot.remedy
    job = stack.job_of(name)

    def told() -> tr.JobSnapshot | None:
        """The job, once it says what it waits for."""
        found = stack.jobs().get(job)
        waits = found is not None and any("19 of 20" in step.message for step in found.job.steps)
        return found.job if found is not None and waits else None

    waiting = stack.until(told, what=lambda: stack.jobs().get(job))
    assert waiting.state == tr.JOB_STATE_VALIDATING_FILES
    assert not waiting.run, "nothing held is trained"
    # Cancelled, so that letting the dataset through need not train on its one record.
    stack.command("runs", "cancel", job)
    stack.command("datasets", "accept", name)

    def ready() -> ds.DatasetSnapshot | None:
        dataset = stack.dataset(name)
        return dataset if dataset is not None and dataset.state == ds.DATASET_STATE_READY else None

    released = stack.until(ready, what=lambda: stack.dataset(name))
    assert (released.counts.rejected, released.counts.written) == (19, 1)
    assert released.accepted_by_operator
    assert stack.jobs()[job].job.state == tr.JOB_STATE_CANCELLED


WRONG = [
    ({"train": {"base_model": "smollm2-135m-instuct"}}, ["smollm2-135m-instuct"], f'Did you mean "{BASE}"'),
    ({"prompt_format": "chatlm"}, ["chatlm"], 'Did you mean "chatml"'),
    ({"format": "alpacca"}, ["alpacca"], 'Did you mean "alpaca"'),
    ({"recipie": "default"}, ["recipie"], 'Did you mean "recipe"'),
    ({"recipe": "verbatum"}, ["verbatum"], 'Did you mean "verbatim"'),
    ({"train": {"chat_template": "chatmll"}}, ["chatmll"], 'Did you mean "chatml"'),
    ({"train": {"chat_template": "plain"}, "prompt_format": "human_bot"}, ["plain", "human_bot"], "chat_template"),
    ({"train": {"lora_target_modules": ["q_prj"]}}, ["q_prj"], 'Did you mean "q_proj"'),
    ({"train": {"output_dir": "/etc"}}, ["output_dir"], "Leave it out"),
    ({"train": {"datasets": [{"path": "other"}]}}, ["datasets"], "mix"),
    ({"train": {"learning_rat": 1e-4}}, ["learning_rat"], 'Did you mean "learning_rate"'),
    ({"train": {}, "deploy": {"alais": "x@prod"}}, ["alais"], 'Did you mean "alias"'),
    ({"train": {"adapter": None}, "deploy": {}}, ["adapter"], '"adapter": "lora"'),
]


@pytest.mark.parametrize(("wrong", "named", "remedy"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_at_publication(
    stack: Stack, wrong: dict[str, Any], named: list[str], remedy: str
) -> None:
    message = {"dataset": "mistaken", "records": [GOOD], **wrong}
    said = stack.refusal(message)
    assert all(word in said for word in named), said
    assert remedy in said, said
    headers = letter(stack, stack.publish(message, "mistaken"))
    assert remedy in headers["dlq-message"] + headers["dlq-remedy"]
    shown = stack.dataset("mistaken")  # none where nothing but the message's JSON could be read
    assert shown is None or (shown.state, shown.code) == (ds.DATASET_STATE_FAILED, REFUSED)


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/passwd", "../../README.md", "s3://bucket/x.jsonl"])
def test_only_declared_places_are_read(stack: Stack, uri: str) -> None:
    said = stack.refusal({"dataset": "elsewhere", "source": {"uri": uri}})
    assert uri.rpartition("/")[2] in said or uri in said, said
    assert stack.dataset("elsewhere") is None
