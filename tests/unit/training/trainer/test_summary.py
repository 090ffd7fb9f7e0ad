from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.training.trainer.summary import draw_loss, flops_per_token, mfu, samples_page, summarise

METRICS = [
    {"step": 1, "loss": 3.0, "seconds": 2.0, "tokens": 100},
    {"step": 2, "loss": 2.0, "seconds": 3.0, "tokens": 250},
    {"step": 2, "eval_loss": 2.5},
    {"step": 3, "loss": 1.0, "seconds": 5.0, "tokens": 400},
]


def test_totals_are_those_of_the_kept_steps() -> None:
    assert summarise(METRICS, rows_per_step=8) == {
        "steps": 3,
        "train_runtime": 10.0,
        "train_samples_per_second": 2.4,
        "train_steps_per_second": 0.3,
        "train_loss": 2.0,
        "eval_loss": 2.5,
        "tokens": 400,
        "tokens_per_second": 40.0,
    }


def test_nothing_logged_gives_nothing_rather_than_a_number() -> None:
    assert summarise([], rows_per_step=8)["train_loss"] is None
    assert summarise([], rows_per_step=8)["tokens_per_second"] is None


def test_an_adapter_costs_four_operations_a_weight_and_full_training_six() -> None:
    assert flops_per_token(1000, 2, 10, 5, adapter=True) == 4000 + 3 * 4 * 2 * 10 * 5
    assert flops_per_token(1000, 2, 10, 5, adapter=False) == 6000 + 3 * 4 * 2 * 10 * 5


def test_utilisation_is_known_or_says_why_not() -> None:
    assert mfu(1000.0, 98.9e9, "NVIDIA H200") == (0.1, None)
    share, reason = mfu(1000.0, 1e9, "cpu")
    assert share is None
    assert reason is not None
    assert "cpu" in reason


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    draw_loss(METRICS, tmp_path / "loss.png")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (800, 450)


def test_samples_stand_side_by_side(tmp_path: Path) -> None:
    samples_page(["Who?"], ["one\ntwo"], [""], tmp_path / "samples.md")
    text = (tmp_path / "samples.md").read_text()
    assert "## Who?" in text
    assert "> one\n> two" in text
    assert "> (nothing)" in text


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"])
def test_the_peak_is_that_of_the_very_card(device: str) -> None:
    assert mfu(1.0, 756e12, device)[0] == (1.0 if "PCIe" in device else 0.7644)
