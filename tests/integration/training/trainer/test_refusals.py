"""What ends an attempt, each with a code and a remedy; in this process, where torchrun adds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shortstack.core.errors import Invalid
from shortstack.declarations.train import TrainConfig
from shortstack.records.message import Message
from shortstack.records.schema import Record
from shortstack.training.trainer.attempt import Clocks, run_attempt
from shortstack.training.trainer.distributed import Ranks
from shortstack.training.trainer.failure import TrainingFailed
from shortstack.training.trainer.main import main

from .conftest import Run

# peft 0.21 still asks transformers 5.23 by the old name; nothing of ours does.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers")

ALONE = Ranks(rank=0, local_rank=0, world=1, device="cpu")
CLOCKS = Clocks(now=lambda: 0.0, monotonic=lambda: 0.0)


def test_a_setting_that_does_not_exist_is_refused_before_anything_is_loaded(new_run: Callable[..., Run]) -> None:
    run = new_run(learning_rat=1.0)
    assert run_attempt(run.folder, 1, ALONE, CLOCKS) == 65
    (failed,) = run.events()
    assert (failed["type"], failed["code"], failed["attempt"]) == ("failed", "bad_plan", 1)
    assert 'Did you mean "learning_rate"' in failed["remedy"]


def test_a_dataset_without_an_answer_trains_nothing(new_run: Callable[..., Run]) -> None:
    run = new_run(data=[Record(0, (Message("user", "hello"),))])
    assert run_attempt(run.folder, 1, ALONE, CLOCKS) == 70
    (failed,) = run.events()
    assert failed["code"] == "no_rows"
    assert "no_trained_token: 1" in failed["message"]


def test_a_plan_that_names_what_is_not_there_is_refused(new_run: Callable[..., Run]) -> None:
    run = new_run()
    plan = run.read("plan.json")
    plan["dataset"]["train"] = [str(run.folder / "gone.parquet")]
    (run.folder / "plan.json").write_text(json.dumps(plan))
    assert run_attempt(run.folder, 1, ALONE, CLOCKS) == 66
    assert "gone.parquet is not there" in run.events()[0]["message"]


def test_a_layer_that_the_model_lacks_names_the_nearest(tiny_llama: Path) -> None:
    import torch

    from shortstack.training.trainer.model import load_base, trainable

    config = TrainConfig.resolve({"lora_target_modules": ["q_prj"]}, base_model="tiny", prompt_format="base")
    with pytest.raises(Invalid, match='Did you mean "q_proj"'):
        trainable(load_base(tiny_llama, dtype=torch.float32), config)


def untrained_adapter(base: Path, folder: Path) -> Path:
    import torch

    from shortstack.training.trainer.model import load_base, trainable

    config = TrainConfig.resolve({"lora_r": 4}, base_model="tiny", prompt_format="base")
    trainable(load_base(base, dtype=torch.bfloat16), config).save_pretrained(folder)
    return folder


def merge(base: Path, adapter: Path, out: Path) -> None:
    from datetime import UTC, datetime

    from shortstack.training.trainer.export import write_merged
    from shortstack.training.trainer.formats import ServedFormat

    served = ServedFormat.load("base", base, datetime(2026, 1, 1, tzinfo=UTC))
    write_merged(base, adapter, out, served, adapter=True)


def test_an_adapter_that_moves_no_weight_is_not_exported(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = untrained_adapter(tiny_llama, tmp_path / "adapter")
    with pytest.raises(TrainingFailed, match="none of 21 weight tensors differs") as caught:
        merge(tiny_llama, adapter, tmp_path / "merged")
    assert caught.value.code == "merge_unchanged"


def test_an_adapter_that_holds_nan_is_not_exported(tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    adapter = untrained_adapter(tiny_llama, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    save_file(spoilt, adapter / "adapter_model.safetensors")
    with pytest.raises(TrainingFailed, match="holds NaN") as caught:
        merge(tiny_llama, adapter, tmp_path / "merged")
    assert caught.value.code == "non_finite_weights"


@dataclass
class State:
    global_step: int = 0
    max_steps: int = 10
    epoch: float = 0.0
    num_input_tokens_seen: int = 0


def watched(losses: list[float], **settings: Any) -> None:
    from shortstack.training.trainer.loop import Progress, StopSignal

    config = TrainConfig.resolve(settings, base_model="tiny", prompt_format="base")
    progress = Progress(
        config,
        config.schedule(rows=80),
        ALONE,
        StopSignal(),
        events=None,
        metrics=None,
        monotonic=lambda: 0.0,
    )
    for step, loss in enumerate(losses, start=1):
        progress.on_log(None, State(step), None, {"loss": loss, "learning_rate": 1.0})


def test_the_watchdog_ends_a_run_whose_loss_stays_high() -> None:
    settings = {"loss_watchdog_threshold": 5.0, "loss_watchdog_patience": 2}
    watched([6.0, 4.0, 6.0, 4.0], **settings)
    with pytest.raises(TrainingFailed, match=r"above 5\.0 for 2 steps, 7 at step 3") as caught:
        watched([4.0, 6.0, 7.0], **settings)
    assert caught.value.code == "loss_watchdog"


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(loss: float) -> None:
    with pytest.raises(TrainingFailed, match="at step 2") as caught:
        watched([1.0, loss])
    assert caught.value.code == "non_finite_loss"


def test_explain_says_what_would_happen_and_writes_nothing(
    new_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(num_epochs=2)
    before = sorted(run.folder.iterdir())
    assert main(["--explain", str(run.folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["records"] == 20
    assert told["schedule"]["max_steps"] == 10
    assert told["tokens"] == 2 * told["train"]["tokens"]
    assert told["config"]["lora_r"] == 4
    assert sorted(run.folder.iterdir()) == before


def test_explain_of_a_bad_plan_is_an_error_with_its_place(
    new_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(learning_rat=1.0)
    assert main(["--explain", str(run.folder)]) == 65
    assert 'Did you mean "learning_rate"' in capsys.readouterr().err
