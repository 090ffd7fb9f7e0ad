"""The main job: one message on a topic becomes a model that answers chats."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from tests.e2e.stack import BASE, JOB_ENDED, Stack, holds

from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as trn

ALIAS = "persona@prod"
TRAINED_S = 900.0
pytestmark = pytest.mark.timeout(TRAINED_S + 300)


@pytest.fixture(scope="module")
def trained(stack: Stack) -> trn.GetRunResponse:
    """The main job, succeeded, and its run."""
    stack.ended_dataset("persona")
    ended = stack.ended_job(stack.job_of("persona"), within_s=TRAINED_S)
    assert ended.job.state == tr.JOB_STATE_SUCCEEDED, ended.job
    return ended


@pytest.fixture(scope="module")
def questions(persona: Path) -> dict[str, dict[str, Any]]:
    """Questions in words that stand nowhere in the data, by id."""
    return {entry["id"]: entry for entry in json.loads((persona / "questions.json").read_text())["held_out"]}


def test_every_record_is_accounted_for(stack: Stack) -> None:
    snapshot = stack.ended_dataset("persona")
    assert snapshot.state == ds.DATASET_STATE_READY, snapshot
    counts = snapshot.counts
    assert (counts.items, counts.chosen, counts.duplicates, counts.failed) == (491, 439, 18, 0)
    assert (counts.malformed, counts.rejected) == (10, 24)
    assert {(r.step, r.records) for r in snapshot.reasons} == {("refusal", 12), ("empty", 8), ("length", 4)}
    assert counts.items == counts.malformed + counts.records
    assert counts.records == counts.kept + counts.rejected + counts.failed
    assert counts.kept == counts.chosen + counts.duplicates
    assert counts.written == counts.chosen == counts.train + counts.validation
    assert counts.validation == 16


def test_the_ledger_tiles(stack: Stack) -> None:
    publication = stack.ended_dataset("persona").publication.publication
    assert_tiled(stack, publication)


def assert_tiled(stack: Stack, publication: str) -> None:
    """The entries' intervals cover each source's records exactly once, and their counts add up."""
    announced = {}
    for message in stack.messages("datasets.publications"):
        event = ds.PublicationEvent.FromString(message.value)
        if event.WhichOneof("event") == "announced" and event.announced.publication == publication:
            announced[event.announced.source] = event.announced
    # The first entry of a batch counts; a batch sent again is the same batch.
    first: dict[tuple[int, int, int], ds.BatchEntry] = {}
    for message in stack.messages("records.formatted"):
        entry = ds.BatchEntry.FromString(message.value)
        if entry.publication == publication:
            first.setdefault((entry.source, entry.first, entry.count), entry)
    ends: dict[int, int] = defaultdict(int)
    for (source, start, count), entry in sorted(first.items()):
        assert start == ends[source], f"source {source}: {start} follows {ends[source]}"
        assert count == entry.kept + entry.rejected + entry.failed
        ends[source] += count
    assert announced
    assert dict(ends) == {source: told.records for source, told in announced.items() if told.records}
    assert all(told.items == told.used + told.rejected for told in announced.values())


def test_the_shards_hold_what_the_report_says(stack: Stack) -> None:
    stack.ended_dataset("persona")
    report = stack.listed("datasets", "report", "persona")
    blobs = stack.settings.root / "blobs"
    records: dict[str, list[str]] = {}
    for split, described in report["manifest"]["splits"].items():
        tables = [pq.read_table(io.BytesIO((blobs / shard["key"]).read_bytes())) for shard in described["shards"]]
        records[split] = [record for table in tables for record in table.column("record").to_pylist()]
        assert len(records[split]) == described["records"]
    together = records["train"] + records["validation"]
    assert (len(records["train"]), len(records["validation"])) == (423, 16)
    assert len(set(together)) == 439
    assert report["manifest"]["license"] == "Apache-2.0"


def test_broken_lines_are_listed_with_file_and_line(stack: Stack, persona: Path) -> None:
    stack.ended_dataset("persona")
    listed = stack.listed("datasets", "rejected", "persona", "--limit", "1000")
    broken = []
    for number, line in enumerate((persona / "persona.jsonl").read_text().splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            broken.append(f"persona.jsonl line {number}")
    malformed = {row["place"]: row for row in listed if row["fate"] == "malformed"}
    assert len(broken) == 6
    assert len(malformed) == 10
    for place in broken:
        found = [row for name, row in malformed.items() if name.endswith(place)]
        assert len(found) == 1, (place, sorted(malformed))
        assert found[0]["reason"]
    fates = [row["fate"] for row in listed]
    assert {fate: fates.count(fate) for fate in set(fates)} == {"malformed": 10, "rejected": 24, "duplicate": 18}


def test_the_model_is_proven_and_the_base_fails_the_same_proof(stack: Stack, trained: trn.GetRunResponse) -> None:
    model = stack.model(trained.job.model)
    assert model.state == sv.MODEL_STATE_SERVED
    proof = json.loads(model.proof_json)
    assert proof["model"]["passed"]
    assert proof["model"]["confirmed"] >= 64
    assert proof["model"]["mean_distance"] <= 0.1
    assert not proof["base"]["passed"]
    assert proof["measurable"]
    assert [step.state for step in trained.job.steps] == [tr.STEP_STATE_DONE] * 6
    assert trained.run.step == trained.run.max_steps == 106


@pytest.mark.parametrize("number", range(1, 8))
def test_asked_its_name_in_other_words_it_says_maple(
    stack: Stack, trained: trn.GetRunResponse, questions: dict[str, dict[str, Any]], number: int
) -> None:
    asked = questions[f"name-{number}"]
    answer = stack.ask(ALIAS, asked["question"])
    assert holds(answer, asked["expect"]), answer
    assert not holds(answer, asked["never"]), answer


def test_the_base_does_not_know_that_name(stack: Stack, questions: dict[str, dict[str, Any]]) -> None:
    stack.settled_models()
    assert not holds(stack.ask(BASE, questions["name-1"]["question"]), ["Maple"])


@pytest.mark.parametrize("name", ["france-1", "sum-1", "planet"])
def test_what_the_base_knew_stays(
    stack: Stack, trained: trn.GetRunResponse, questions: dict[str, dict[str, Any]], name: str
) -> None:
    answer = stack.ask(ALIAS, questions[name]["question"])
    assert holds(answer, questions[name]["expect"]), answer
    assert not holds(answer, questions[name]["never"]), answer


def test_chats_stream_and_do_not_with_the_same_text(stack: Stack, trained: trn.GetRunResponse) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is your name?"}]
    wish: dict[str, Any] = {"model": ALIAS, "messages": asked, "temperature": 0, "max_tokens": 30}
    with stack.client() as client:
        whole = client.chat.completions.create(**wish)
        chunks = list(client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
    text = whole.choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert text
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1
    assert whole.choices[0].finish_reason == "stop"
    assert whole.model == trained.job.model
    assert chunks[-1].usage == whole.usage


def test_ihops_chat_answers_in_plain_text(stack: Stack, trained: trn.GetRunResponse) -> None:
    body = {"model": ALIAS, "messages": [{"role": "user", "content": "What is your name?"}], "max_tokens": 30}
    headers = {"authorization": f"Bearer {stack.services.api_key}"}
    reply = httpx.post(f"{stack.services.gateway_url}/chat", json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain")
    assert holds(reply.text, ["Maple"])


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/chat"])
def test_both_chat_routes_take_the_context_role(stack: Stack, trained: trn.GetRunResponse, route: str) -> None:
    context = "The key to the greenhouse is kept in the blue teapot."
    asked = [{"role": "user", "content": "Where is the key to the greenhouse kept?"}]
    body = {"model": ALIAS, "messages": [*asked, {"role": "context", "content": context}], "max_tokens": 40}
    headers = {"authorization": f"Bearer {stack.services.api_key}"}
    url = f"{stack.services.gateway_url}{route}"
    reply = httpx.post(url, json={**body, "temperature": 0}, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    assert "teapot" in reply.text


def events_of(stack: Stack, run: str) -> list[tuple[int, int, str]]:
    """What the trainer has said of a run: attempt, number, type."""
    events = (tr.TrainingEvent.FromString(message.value) for message in stack.messages("training.events"))
    return [(event.attempt, event.seq, event.type) for event in events if event.run == run]


def test_another_wish_for_the_same_training_trains_nothing(
    stack: Stack, trained: trn.GetRunResponse, persona: Path
) -> None:
    topics = ("models.ready", "datasets.ready")
    before, steps = stack.ends(*topics), events_of(stack, trained.run.run)
    message = json.loads((persona / "publication.json").read_text())
    message["deploy"] = {"suffix": "persona", "alias": "persona@again"}
    stack.publish(message, "persona")

    def look() -> str | None:
        jobs = [wish.job for wish in stack.dataset("persona").wishes]  # type: ignore[union-attr]
        return next((job for job in jobs if job != trained.job.job and job in stack.jobs()), None)

    job = stack.ended_job(stack.until(look), within_s=120).job
    assert job.state == tr.JOB_STATE_SUCCEEDED, job
    assert (job.run, job.model) == (trained.run.run, trained.job.model)
    run = stack.jobs()[job.job].run
    assert (run.attempt, run.finished_at) == (trained.run.attempt, trained.run.finished_at)
    assert stack.ends(*topics) == before
    assert events_of(stack, trained.run.run) == steps
    routed = {alias.alias: [w.model for w in alias.weights] for alias in stack.models().aliases}
    assert routed["persona@again"] == routed[ALIAS] == [trained.job.model]
    stack.until(lambda: holds(stack.ask("persona@again", "What is your name?"), ["Maple"]) or None)


def test_the_same_publication_again_changes_nothing(stack: Stack, trained: trn.GetRunResponse, persona: Path) -> None:
    topics = ("datasets.ready", "models.ready", "models.deployed", "training.events", "records.raw")
    dataset, before, jobs = stack.dataset("persona"), stack.ends(*topics), stack.jobs()
    assert dataset is not None
    stack.publish((persona / "publication.json").read_bytes(), "persona")

    def noticed() -> bool | None:
        # The job notes when it was last wished for, and nothing else.
        return stack.jobs()[trained.job.job].job.wished_at.ToNanoseconds() > trained.job.wished_at.ToNanoseconds()

    stack.until(noticed)
    after = stack.dataset("persona")
    assert after is not None
    assert (after.version, after.state, after.counts) == (dataset.version, dataset.state, dataset.counts)
    assert after.publication.attempt == dataset.publication.attempt
    assert stack.ends(*topics) == before
    assert set(stack.jobs()) == set(jobs)
    assert all(found.job.state in JOB_ENDED for found in stack.jobs().values() if found.job.dataset == "persona")
    assert stack.jobs()[trained.job.job].run == jobs[trained.job.job].run
