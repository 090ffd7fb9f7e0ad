"""The trainer's README is its interface; what it lists is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import shortstack.training.trainer as trainer
from shortstack.training.trainer.events import EVENT_TYPES
from shortstack.training.trainer.plan import RunPlan

FOLDER = Path(trainer.__path__[0])
README = (FOLDER / "README.md").read_text()
CODE = "\n".join(path.read_text() for path in FOLDER.glob("*.py"))


def first_cells(header: str) -> set[str]:
    """The code words in the first column of the table that begins with ``header``."""
    table = README.split(header, 1)[1].split("\n\n", 1)[0]
    return {
        word
        for line in table.splitlines()
        for word in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }


def test_every_event_is_listed() -> None:
    assert first_cells("| event | fields |") == set(EVENT_TYPES)


def test_every_key_of_the_plan_is_listed() -> None:
    assert first_cells("| key | meaning |") == set(RunPlan.model_fields)


def test_every_failpoint_is_listed() -> None:
    for place in re.findall(r'failpoint\(f?"([a-z_]+)', CODE):
        assert f"`{place}" in README


def test_every_code_of_a_failure_is_explained() -> None:
    explained = (FOLDER / "failure.py").read_text().split('"""', 2)[1]
    raised = set(re.findall(r'TrainingFailed\(\s*"(\w+)"', CODE))
    assert {"no_rows", "stopped", "non_finite_loss"} <= raised
    for code in raised:
        assert re.search(rf"^    {code} ", explained, re.MULTILINE), code
