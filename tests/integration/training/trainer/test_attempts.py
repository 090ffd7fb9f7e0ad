"""Attempts that are killed, stopped and resumed, as torchrun runs them. A start takes ten seconds and more, so each
story is told in one chain of attempts."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from tests.polling import until

from .conftest import Run

pytestmark = pytest.mark.timeout(900)


def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(new_run: Callable[..., Run]) -> None:
    """Killed after its second checkpoint, while a later one is written, and at its export before and after it is whole.

    The losses are those of an unbroken run to the last bit, with dropout, over the border of an epoch (5 steps).
    """
    settings = {"bf16": False, "max_steps": 9, "save_steps": 2, "lora_dropout": 0.1}
    unbroken, broken = new_run("unbroken", **settings), new_run("broken", **settings)
    assert unbroken.train() == 0

    places = ["after_checkpoint_2", "before_seal_8", "before_export_manifest", "after_export"]
    for attempt, place in enumerate(places, start=1):
        assert broken.train(attempt, failpoint=place) != 0
        assert broken.events("finished") == []
    assert broken.train(len(places) + 1) == 0

    started = broken.events("started")
    assert [(event["attempt"], event["resumed_from"]) for event in started] == [
        (1, None),
        (2, "checkpoint-4"),
        (3, "checkpoint-6"),
    ]
    steps = [(event["attempt"], event["step"]) for event in broken.events("step")]
    assert steps == [
        *((1, step) for step in range(1, 5)),
        *((2, step) for step in range(5, 9)),
        *((3, step) for step in range(7, 10)),
    ]
    assert [event["code"] for event in broken.events("warning")] == ["broken_checkpoint"]
    assert [event["seq"] for event in broken.events()] == list(range(1, len(broken.events()) + 1))
    assert broken.losses() == unbroken.losses()
    assert sorted(broken.losses()) == list(range(1, 10))
    assert [event["attempt"] for event in broken.events("exported")] == [5]
    exports = [run.read("export/export.manifest.json") for run in (unbroken, broken)]
    assert exports[0]["files"] == exports[1]["files"]
    assert exports[0]["name"] == exports[1]["name"]


def test_a_run_asked_to_stop_leaves_a_checkpoint_and_says_so(new_run: Callable[..., Run]) -> None:
    run = new_run(max_steps=2000, save_steps=1000)
    process = run.start()
    events = run.folder / "events.jsonl"
    until(lambda: process.poll() is not None or (events.exists() and run.events("step")), "a step", deadline_s=200)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert [event["code"] for event in run.events("failed")] == ["stopped"]
    step = run.events("checkpoint")[-1]["step"]
    assert (run.folder / f"checkpoint-{step}" / "checkpoint.manifest.json").exists()
    assert not (run.folder / "export").exists()


def test_two_processes_learn_what_one_learns_and_resume_as_two(new_run: Callable[..., Run]) -> None:
    """ZeRO-2 over two ranks with half the batch each: the losses agree with one rank's to rounding."""
    settings = {"bf16": False, "max_steps": 3, "save_steps": 1}
    one, two = new_run("one", micro_batch_size=4, **settings), new_run("two", micro_batch_size=2, **settings)
    assert one.train() == 0
    assert two.train(1, ranks=2, failpoint="after_checkpoint_2") != 0
    assert two.train(2, ranks=1) != 0
    refused = two.events("failed")[-1]
    assert refused["code"] == "ranks_changed"
    assert "Start it with 2 processes" in refused["remedy"]
    assert two.train(3, ranks=2) == 0
    assert two.events("started")[-1]["ranks"] == 2
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)
