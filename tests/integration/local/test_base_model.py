"""The converted base model: whole, readable by old and new transformers, and able to answer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shortstack.local.base_model import ensure_base_model, inspect_base_model

CHECKOUT_VAR = Path(__file__).parents[3] / "var"


@pytest.fixture(scope="module")
def var() -> Path:
    return Path(os.environ.get("SHORTSTACK_VAR", CHECKOUT_VAR))


@pytest.fixture(scope="module")
def model(var: Path) -> Path:
    return ensure_base_model(var)


def read(file: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(file.read_text())
    return content


def test_each_file_is_as_the_manifest_says(var: Path, model: Path) -> None:
    assert inspect_base_model(var, full=True) == []
    named = set(read(model / "manifest.json")["files"])
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= named


def test_transformers_4_51_reads_what_5_wrote(model: Path) -> None:
    config, tokenizer = read(model / "config.json"), read(model / "tokenizer_config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000
    assert config["torch_dtype"] == "bfloat16"
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|im_start|>" in tokenizer["chat_template"]
    assert not (model / "chat_template.jinja").exists()


def test_digits_and_the_blanks_before_them_are_split_as_the_model_learned(model: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.encode("a:\n\n12").tokens == ["a", ":", "ĊĊ", "1", "2"]


def test_it_knows_the_capital_of_france(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = network.generate(**prompt, max_new_tokens=16, do_sample=False)
    text = tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])
    assert "Paris" in text
    assert text.endswith("<|im_end|>")
