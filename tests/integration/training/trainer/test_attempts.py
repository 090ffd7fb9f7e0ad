"""Attempts that are killed, stopped and resumed, as torchrun runs them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable

import pytest

from .conftest import Run

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("failpoint", ["after_checkpoint_2", "before_seal_6"])
def test_a_killed_run_goes_on_with_the_very_losses_of_an_unbroken_one(
    new_run: Callable[..., Run], failpoint: str
) -> None:
    """Killed after its second checkpoint, or while its third is written: over the border of an epoch (5 steps)."""
    settings = {"bf16": False, "max_steps": 9, "save_steps": 2, "lora_dropout": 0.1}
    unbroken, broken = new_run("unbroken", **settings), new_run("broken", **settings)
    assert unbroken.train() == 0

    assert broken.train(1, failpoint=failpoint) != 0
    reached = broken.events()[-1]["step"]
    assert reached < 9
    assert broken.train(2) == 0

    started = broken.events("started")
    assert [event["attempt"] for event in started] == [1, 2]
    assert started[1]["resumed_from"] == "checkpoint-4"
    second = [event["step"] for event in broken.events("step") if event["attempt"] == 2]
    assert second == list(range(5, 10))
    assert [event["seq"] for event in broken.events()] == list(range(1, len(broken.events()) + 1))
    assert broken.losses() == unbroken.losses()
    assert sorted(broken.losses()) == list(range(1, 10))
    exports = [run.read("export/export.manifest.json") for run in (unbroken, broken)]
    assert exports[0]["files"] == exports[1]["files"]
    assert exports[0]["name"] == exports[1]["name"]


@pytest.mark.parametrize("failpoint", ["before_export_manifest", "after_export"])
def test_a_run_killed_at_its_export_exports_once_and_trains_no_step_more(
    new_run: Callable[..., Run], failpoint: str
) -> None:
    run = new_run(max_steps=3)
    assert run.train(1, failpoint=failpoint) != 0
    assert run.events("exported") == []
    losses = run.losses()
    assert run.train(2) == 0
    assert [event["attempt"] for event in run.events("exported")] == [2]
    assert [event["attempt"] for event in run.events("finished")] == [2]
    assert run.losses() == losses
    assert {event["attempt"] for event in run.events("step")} == {1}


def test_a_run_asked_to_stop_leaves_a_checkpoint_and_says_so(new_run: Callable[..., Run]) -> None:
    run = new_run(max_steps=2000, save_steps=1000)
    process = run.start()
    deadline = time.monotonic() + 120
    while not (run.folder / "events.jsonl").exists() or not run.events("step"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    failed = run.events("failed")
    assert [event["code"] for event in failed] == ["stopped"]
    step = run.events("checkpoint")[-1]["step"]
    assert (run.folder / f"checkpoint-{step}" / "checkpoint.manifest.json").exists()
    assert not (run.folder / "export").exists()


def test_two_processes_train_resume_and_refuse_another_number(new_run: Callable[..., Run]) -> None:
    run = new_run(bf16=False, max_steps=3, save_steps=1, micro_batch_size=2)
    assert run.train(1, ranks=2, failpoint="after_checkpoint_2") != 0
    assert run.train(2, ranks=1) != 0
    failed = run.events("failed")[-1]
    assert failed["code"] == "ranks_changed"
    assert "Start it with 2 processes" in failed["remedy"]
    assert run.train(3, ranks=2) == 0
    assert run.events("started")[-1]["ranks"] == 2
    assert sorted(run.losses()) == [1, 2, 3]


def test_two_processes_learn_what_one_learns(new_run: Callable[..., Run]) -> None:
    """ZeRO-2 over two ranks with half the batch each: the losses agree with one rank's to rounding."""
    one = new_run("one", bf16=False, max_steps=4, micro_batch_size=4)
    two = new_run("two", bf16=False, max_steps=4, micro_batch_size=2)
    assert one.train() == 0
    assert two.train(ranks=2) == 0
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)


def test_a_broken_export_is_made_again(new_run: Callable[..., Run]) -> None:
    run = new_run(max_steps=2)
    assert run.train(1) == 0
    name = run.read("export/export.manifest.json")["name"]
    shutil.rmtree(run.folder / "export" / "merged")
    assert run.train(2) == 0
    assert run.read("export/export.manifest.json")["name"] == name
