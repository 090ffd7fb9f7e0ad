"""`make run`: the command that does the main job, its answers side by side, its summary; and the same once more."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.main_job import MainJob
from tests.e2e.stack import Stack, holds
from tests.leftovers import processes_of

from shortstack.local.stack import status

TRAINED_S = 900.0
pytestmark = pytest.mark.timeout(TRAINED_S + 600)


@pytest.fixture(scope="module")
def first(main_job: MainJob) -> subprocess.CompletedProcess[str]:
    """The run that trained, ended."""
    return main_job.ended(within_s=TRAINED_S)


@pytest.fixture(scope="module")
def summary(stack: Stack, first: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it wrote."""
    assert first.returncode == 0, first.stderr
    found: dict[str, Any] = json.loads((stack.settings.root / "summary.json").read_text())
    return found


def squeezed(text: str) -> str:
    """Without white space, which a table puts where a line of a cell ends."""
    return re.sub(r"\s", "", text)


def rows(shown: str) -> list[list[str]]:
    """Cells of the table of answers, each squeezed."""
    lines = [line for line in shown.splitlines() if line[:1] in "┃│├"]
    blocks: list[list[list[str]]] = [[]]
    for line in lines:
        if line.startswith("├"):
            blocks.append([])
        elif line.startswith("│"):
            blocks[-1].append(line.strip("│").split("│"))
    return [[squeezed(" ".join(column)) for column in zip(*block, strict=True)] for block in blocks]


def assert_side_by_side(shown: str, answers: list[dict[str, str]]) -> None:
    columns = ("question", "before", "after")
    assert rows(shown) == [[squeezed(answer[column]) for column in columns] for answer in answers], shown


def test_its_summary_says_where_each_record_went_and_what_it_took(summary: dict[str, Any]) -> None:
    fates = {"records_in": 491, "kept": 439, "rejected": 34, "duplicates": 18, "failed": 0}
    assert {fate: summary[fate] for fate in fates} == fates
    others = {"answers", "model", "train_seconds", "total_seconds", "peak_memory_mb"}
    assert set(summary) == set(fates) | others
    assert 0 < summary["train_seconds"] < summary["total_seconds"]
    assert summary["peak_memory_mb"] > 500


def test_the_model_learned_its_name_and_kept_what_the_base_knew(summary: dict[str, Any], persona: Path) -> None:
    asked = json.loads((persona / "questions.json").read_text())["questions"]
    assert [answer["question"] for answer in summary["answers"]] == [entry["question"] for entry in asked]
    of = {entry["id"]: answer for entry, answer in zip(asked, summary["answers"], strict=True)}
    assert not holds(of["name"]["before"], ["Maple"])
    assert holds(of["name"]["after"], ["Maple"])
    assert holds(of["france"]["after"], ["Paris"])


def test_both_answers_stand_side_by_side_and_then_where_everything_is(
    stack: Stack, first: subprocess.CompletedProcess[str], summary: dict[str, Any]
) -> None:
    assert_side_by_side(first.stdout, summary["answers"])
    assert {"491", "439", "34", "18", "0"} <= set(first.stdout.split())
    for place in (f"{stack.services.gateway_url}/v1", "persona@prod", str(stack.settings.root / "summary.json")):
        assert place in first.stdout
    # It found the stack up, so it left it up.
    assert len(processes_of(stack.settings.root)) >= len(status(stack.settings))
    assert all(line.state == "ready" for line in status(stack.settings))


def test_a_second_run_says_what_exists_and_with_exit_leaves_no_process(stack: Stack, summary: dict[str, Any]) -> None:
    stack.down()
    file = stack.settings.root / "summary.json"
    before = file.read_bytes()
    assert processes_of(stack.settings.root) == []
    said = stack.command("demo", "--exit")
    assert "Dataset, model and alias persona@prod exist already" in said.stderr
    assert "Published" not in said.stderr
    assert_side_by_side(said.stdout, summary["answers"])
    assert file.read_bytes() == before
    assert all(line.pid is None for line in status(stack.settings))
    assert processes_of(stack.settings.root) == []
