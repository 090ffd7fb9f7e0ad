from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from shortstack.core.errors import Fatal
from shortstack.training.trainer.export import (
    EXPORT_MANIFEST,
    copy_adapter,
    legacy_config,
    seal_export,
    tokenizer_config,
    whole_export,
)
from shortstack.training.trainer.formats import ServedFormat


@dataclass(frozen=True)
class Format:
    chat_template: str = "{{ messages }}"
    eos_token: str | None = "<|im_end|>"


SERVED = cast(ServedFormat, Format())


def test_the_model_config_is_in_the_form_of_transformers_4() -> None:
    config = {
        "model_type": "llama",
        "dtype": "float32",
        "_name_or_path": "/somewhere",
        "eos_token_id": 7,
        "use_cache": False,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    }
    assert legacy_config(config, eos_ids=[2]) == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
        "use_cache": True,
        "rope_theta": 100000.0,
        "rope_scaling": None,
    }
    assert legacy_config(config, eos_ids=[2, 0])["eos_token_id"] == [2, 0]


def test_rope_scaling_stands_at_the_top_and_linear_reads_as_llama3() -> None:
    yarn = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}
    assert legacy_config({"rope_parameters": yarn}, eos_ids=[2])["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    linear = {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}
    assert legacy_config({"rope_parameters": linear}, eos_ids=[2])["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 4.0,
        "original_max_position_embeddings": 1,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
    }


def test_rope_parameters_by_layer_type_stay_as_they_are() -> None:
    nested = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}
    assert legacy_config({"rope_parameters": nested}, eos_ids=[2])["rope_parameters"] == nested


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_linear_written_as_llama3_turns_every_frequency_alike(factor: float) -> None:
    """The rule of Llama 3's rotary scaling, after transformers' ``_compute_llama3_parameters``."""
    scaling = legacy_config(
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": factor}}, eos_ids=[0]
    )["rope_scaling"]
    frequencies = [1e4 ** -(i / 64) for i in range(0, 64, 2)]
    longest = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    scaled = [f / scaling["factor"] if 2 * 3.141592653589793 / f > longest else f for f in frequencies]
    assert scaled == [f / factor for f in frequencies]


def test_the_tokenizer_config_is_one_that_4_51_knows() -> None:
    base = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "extra_special_tokens": ["<|im_start|>"],
        "eos_token": "</s>",
        "model_max_length": 8192,
    }
    assert tokenizer_config(base, SERVED) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_start|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": "{{ messages }}",
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
    }


def exported(folder: Path) -> dict[str, Any]:
    (folder / "merged").mkdir(parents=True)
    (folder / "merged" / "model.safetensors").write_bytes(b"weights")
    (folder / "probes.json").write_text("{}")
    return seal_export(folder, {"run": folder.name, "prompt_format": "base"})


def test_the_digest_is_of_the_files_alone(tmp_path: Path) -> None:
    first, second = exported(tmp_path / "a"), exported(tmp_path / "b")
    assert first["run"] != second["run"]
    assert {key: first[key] for key in ("digest", "name", "weights_digest", "files")} == {
        key: second[key] for key in ("digest", "name", "weights_digest", "files")
    }
    assert first["name"] == first["digest"][:12]


def test_an_export_is_whole_only_with_every_byte_of_it(tmp_path: Path) -> None:
    manifest = exported(tmp_path / "x")
    assert whole_export(tmp_path / "x") == manifest
    (tmp_path / "x" / "merged" / "model.safetensors").write_bytes(b"weight?")
    assert whole_export(tmp_path / "x") is None
    (tmp_path / "x" / EXPORT_MANIFEST).unlink()
    assert whole_export(tmp_path / "x") is None


def test_an_export_without_weights_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="no merged weights"):
        seal_export(tmp_path, {})


def test_the_adapter_s_config_is_the_same_bytes_every_time_and_names_no_path(tmp_path: Path) -> None:
    texts = []
    for index, modules in enumerate((["q_proj", "a_proj"], ["a_proj", "q_proj"])):
        source = tmp_path / f"checkpoint-{index}"
        source.mkdir()
        config = {"r": 8, "target_modules": modules, "base_model_name_or_path": str(source), "use_bdlora": None}
        (source / "adapter_config.json").write_text(json.dumps(config))
        (source / "adapter_model.safetensors").write_bytes(b"w")
        copy_adapter(source, tmp_path / f"adapter-{index}", "smol")
        texts.append((tmp_path / f"adapter-{index}" / "adapter_config.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == {"r": 8, "target_modules": ["a_proj", "q_proj"], "base_model_name_or_path": "smol"}
