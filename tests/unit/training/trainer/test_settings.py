from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.declarations.train import TrainConfig


def resolve(**values: object) -> TrainConfig:
    return TrainConfig.resolve(values, base_model="smol", prompt_format="chatml")


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(Invalid, match=r'unknown key "learning_rat".*Did you mean "learning_rate"') as caught:
        TrainConfig.parse({"learning_rat": 1e-4})
    assert caught.value.param == "learning_rat"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"lora_r": 0}, "lora_r"),
        ({"lr_scheduler": "cosin"}, "lr_scheduler"),
        ({"save_steps": 2.5}, "save_steps"),
        ({"datasets": [{"path": "a", "typ": "b"}]}, "datasets.0.typ"),
    ],
)
def test_a_bad_value_names_its_key(values: dict[str, object], param: str) -> None:
    with pytest.raises(Invalid, match=param.split(".", maxsplit=1)[0]) as caught:
        TrainConfig.parse(values)
    assert caught.value.param == param


def test_what_is_not_offered_is_refused_when_on_and_accepted_when_off() -> None:
    with pytest.raises(Invalid, match="load_in_4bit: a 4-bit base is not offered"):
        TrainConfig.parse({"load_in_4bit": True})
    assert TrainConfig.parse({"load_in_4bit": False, "sample_packing": False}) == TrainConfig()


def test_a_config_that_contradicts_its_job_is_refused() -> None:
    with pytest.raises(Invalid, match='base_model is "other", and the job says "smol"'):
        resolve(base_model="other")
    with pytest.raises(Invalid, match='chat_template is "alpaca"'):
        resolve(chat_template="alpaca")


def test_two_ways_of_warming_up_exclude_each_other() -> None:
    with pytest.raises(Invalid, match="warmup_ratio and warmup_steps"):
        TrainConfig.parse({"warmup_ratio": 0.1, "warmup_steps": 3})


def test_the_resolved_config_says_everything_and_reads_back_as_itself() -> None:
    resolved = resolve(learning_rate=5e-4, max_steps=35)
    assert resolved.base_model == "smol"
    assert resolved.chat_template == "chatml"
    assert resolved.lora_target_linear is True
    assert TrainConfig.resolve(resolved.model_dump(), base_model="smol", prompt_format="chatml") == resolved


def test_the_job_s_seed_holds_unless_the_config_gives_one() -> None:
    assert TrainConfig.resolve({}, base_model="a", prompt_format="b", seed=7).seed == 7
    assert TrainConfig.resolve({"seed": 3}, base_model="a", prompt_format="b", seed=7).seed == 3


def test_a_schedule_by_epochs_and_by_steps() -> None:
    by_epochs = resolve(num_epochs=2, micro_batch_size=4, gradient_accumulation_steps=2).schedule(rows=50, ranks=2)
    # ceil(50 / 8) = 7 batches a process, ceil(7 / 2) = 4 steps an epoch
    assert (by_epochs.steps_per_epoch, by_epochs.max_steps) == (4, 8)
    by_steps = resolve(max_steps=35, save_steps=10, eval_steps=0.2, warmup_ratio=0.1).schedule(rows=400)
    assert (by_steps.max_steps, by_steps.save_steps, by_steps.eval_steps, by_steps.warmup_steps) == (35, 10, 7, 3)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(Invalid, match="no row to train on"):
        resolve().schedule(rows=0)


@given(
    rows=st.integers(1, 10_000),
    ranks=st.integers(1, 8),
    micro=st.integers(1, 32),
    accumulate=st.integers(1, 8),
    epochs=st.floats(0.01, 10),
)
def test_an_epoch_sees_every_row_once(rows: int, ranks: int, micro: int, accumulate: int, epochs: float) -> None:
    config = resolve(micro_batch_size=micro, gradient_accumulation_steps=accumulate, num_epochs=epochs)
    schedule = config.schedule(rows=rows, ranks=ranks)
    batch = config.effective_batch(ranks)
    assert schedule.steps_per_epoch * batch >= rows
    assert (schedule.steps_per_epoch - 1) * batch < rows
    assert schedule.max_steps >= 1
    assert 1 <= schedule.save_steps <= schedule.max_steps
    assert schedule.warmup_steps <= schedule.max_steps


def test_the_settings_need_no_torch() -> None:
    code = (
        "import sys, shortstack.declarations.train; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
