"""The last word on an attempt without an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal, NotFound
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.attempt import Attempt, refusal
from shortstack.training.launcher import STOPPED, AttemptOrder


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(AttemptOrder("run-1", 2, "manifest.json", 1, {}), tmp_path, MemoryBlobStore())


@pytest.mark.parametrize(
    ("status", "words", "exit_code"),
    [(None, "was killed", 1), (-9, "was ended by signal 9", 1), (1, "ended with 1", 1), (70, "ended with 70", 70)],
)
def test_a_trainer_without_a_word_is_told_by_its_status(
    attempt: Attempt, status: int | None, words: str, exit_code: int
) -> None:
    word = attempt.failure(status, stopping=False, log="trainer.log")
    assert word["message"] == f"the trainer {words} and left no word; see trainer.log"
    assert (word["code"], word["final"], word["exit_code"]) == ("trainer_died", False, exit_code)


def test_its_own_word_of_this_attempt_counts(attempt: Attempt) -> None:
    events = [
        {"type": "failed", "attempt": 1, "code": "no_rows", "message": "an older attempt's"},
        {
            "type": "failed",
            "attempt": 2,
            "code": "non_finite_loss",
            "message": "the loss is nan",
            "remedy": "Lower it.",
        },
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (attempt.folder / "events.jsonl").write_text(text + '{"type": "fai')  # torn by its death
    word = attempt.failure(1, stopping=False, log="log")
    assert (word["code"], word["message"], word["remedy"]) == ("non_finite_loss", "the loss is nan", "Lower it.")
    assert word["final"] is True


@pytest.mark.parametrize(("status", "stopping"), [(1, True), (None, True), (-15, False)])
def test_being_asked_to_stop_is_no_failure_of_its_own(attempt: Attempt, status: int | None, stopping: bool) -> None:
    word = attempt.failure(status, stopping=stopping, log="log")
    assert (word["code"], word["final"]) == (STOPPED, False)


def test_only_what_can_never_work_is_final() -> None:
    assert refusal(NotFound("there is no object x", remedy="Publish again."))["final"] is True
    word = refusal(Fatal("disk full", remedy="Free space."))
    assert (word["code"], word["final"], word["remedy"]) == ("agent", False, "Free space.")


def test_an_order_reads_as_it_was_written_and_takes_a_later_versions() -> None:
    order = AttemptOrder("run-1", 2, "manifest.json", 4, {"seed": 42, "base_model": {"name": "tiny"}})
    assert AttemptOrder.from_json(order.to_json()) == order
    assert AttemptOrder.from_json(json.dumps({**json.loads(order.to_json()), "more": 1}).encode()) == order
