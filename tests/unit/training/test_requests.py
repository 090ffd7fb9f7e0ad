"""What a job's request means: OpenAI's hyperparameters as settings, equal wishes as equal runs."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.declarations.base_models import BaseModels
from shortstack.training.requests import JobRequest, auto_hyperparameters

AUTO = {"batch_size": "auto", "n_epochs": "auto", "learning_rate_multiplier": "auto"}


@given(st.integers(1, 10**6), st.integers(1, 256), st.integers(1, 8))
@example(80, 20, 1)
@example(80, 13, 1)
@example(80, 8, 2)
def test_an_effective_batch_is_what_was_asked_or_refused(records: int, batch: int, ranks: int) -> None:
    asked = {"batch_size": batch}
    if batch % ranks:
        with pytest.raises(Invalid, match="multiple of") as caught:
            auto_hyperparameters(asked, {}, records=records, ranks=ranks)
        assert caught.value.param == "hyperparameters.batch_size"
        return
    found = auto_hyperparameters(asked, {}, records=records, ranks=ranks)
    assert found["micro_batch_size"] * found["gradient_accumulation_steps"] * ranks == batch
    assert 1 <= found["micro_batch_size"] <= 8


@given(st.integers(1, 64))
def test_an_auto_batch_is_eight_or_the_next_lower_number_that_can_be_shared_out(ranks: int) -> None:
    found = auto_hyperparameters(AUTO, {}, records=80, ranks=ranks)
    batch = found["micro_batch_size"] * found["gradient_accumulation_steps"] * ranks
    assert batch % ranks == 0
    assert 8 - ranks < batch <= max(8, ranks)


@given(st.integers(1, 10**6))
def test_auto_epochs_make_about_a_hundred_steps_within_bounds(records: int) -> None:
    epochs = auto_hyperparameters(AUTO, {}, records=records, ranks=1)["num_epochs"]
    assert 1 <= epochs <= 10
    steps = math.ceil(records / 8) * epochs
    assert steps >= 100 or epochs == 10
    assert epochs == 1 or math.ceil(records / 8) * (epochs - 1) < 100 + math.ceil(records / 8)


def test_auto_and_nothing_mean_the_same() -> None:
    for given_ in ({}, dict.fromkeys(AUTO)):
        assert auto_hyperparameters(given_, {}, records=80, ranks=1) == auto_hyperparameters(
            AUTO, {}, records=80, ranks=1
        )


def resolved(folder: Path, **request: object) -> str:
    base = folder / "tiny"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    bases = BaseModels({"tiny": base}, {"gpt-4o-mini": "tiny"})
    parsed = JobRequest.parse(orjson.dumps({"train": {}, **request}), where="job")
    return parsed.resolve(bases, version="v1", records=80, prompt_format="", ranks=1, where="job").run


def test_wishes_that_mean_the_same_are_one_run(tmp_path: Path) -> None:
    one = resolved(tmp_path)
    assert resolved(tmp_path, train={"base_model": "gpt-4o-mini", "seed": 42, "lora_r": 16}) == one
    assert resolved(tmp_path, openai={"seed": 7}) != one
    assert resolved(tmp_path, train={"chat_template": "alpaca"}) != one


@pytest.mark.parametrize("text", [b"[", b"[]", b"{}", b'{"train": 1}', b'{"train": {}, "deploy": 3}'])
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(Invalid):
        JobRequest.parse(text, where="job")
