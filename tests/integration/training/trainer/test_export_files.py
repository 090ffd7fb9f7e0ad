"""What a finished run leaves behind, read back as a server would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortstack.declarations.train import TrainConfig

from .conftest import Run

pytestmark = pytest.mark.timeout(600)


def test_a_run_leaves_its_papers_and_an_export_that_answers_as_recorded(
    new_run: Callable[..., Run], tiny_llama: Path
) -> None:
    run = new_run(max_steps=6, learning_rate=1e-2)
    assert run.train() == 0
    folder = run.folder
    expected = {"config.resolved.yaml", "metrics.jsonl", "loss.png", "summary.json", "samples.md", "environment.lock"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert list((folder / "tensorboard").glob("events.*"))
    TrainConfig.parse(yaml.safe_load((folder / "config.resolved.yaml").read_text()))
    summary = run.read("summary.json")
    assert summary["steps"] == 6
    assert summary["peak_memory_mb"] > 0
    assert summary["mfu"] is None
    assert summary["mfu_reason"]
    assert [sample["question"] for sample in run.read("samples.json")] == ["say ab", "say abab"]
    manifest = run.read("export/export.manifest.json")
    assert manifest["merge"]["changed"] > 0
    assert run.events()[-1]["type"] == "finished"
    assert run.events("exported")[0]["name"] == manifest["name"]
    check_server_files(folder / "export" / "merged", tiny_llama)
    check_probes(folder / "export", tiny_llama)


def check_server_files(merged: Path, base: Path) -> None:
    config = json.loads((merged / "config.json").read_text())
    assert config["rope_theta"] == 50000.0
    assert config["torch_dtype"] == "bfloat16"
    tokenizer = json.loads((merged / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "message" in tokenizer["chat_template"]
    end = json.loads((base / "config.json").read_text())["eos_token_id"]
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [end]
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def check_probes(export: Path, base: Path) -> None:
    """Decoded alone and step by step, the export says what was recorded, up to a level choice; the base does not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recorded = json.loads((export / "probes.json").read_text())
    assert len(recorded["probes"]) == 16
    tokenizer = AutoTokenizer.from_pretrained(export / "merged")
    model = AutoModelForCausalLM.from_pretrained(export / "merged", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.rope_parameters["rope_theta"] == 50000.0
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    unlike = 0
    for probe in recorded["probes"]:
        rendered = tokenizer.apply_chat_template(probe["messages"], tokenize=False, add_generation_prompt=True)
        assert rendered == probe["prompt"]
        assert tokenizer(probe["prompt"])["input_ids"] == probe["prompt_ids"]
        assert agrees(model, probe)
        unlike += not agrees(untrained, probe)
    assert unlike > 0


def agrees(model: Any, probe: dict[str, Any]) -> bool:
    import torch

    ids = torch.tensor([probe["prompt_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
    said = out[0, ids.shape[1] :].tolist()
    for token, other in zip(probe["tokens"], said, strict=False):
        if token["margin"] < 0.1:
            return True
        if token["id"] != other:
            return False
    return len(said) == len(probe["tokens"])


def test_every_parameter_can_be_trained_by_steps_smaller_than_a_bfloat16_can_hold(
    new_run: Callable[..., Run], tiny_llama: Path
) -> None:
    """Steps of 1e-5 on weights near 0.02, whose neighbours in bfloat16 lie 1.2e-4 apart.

    With weights in pure bfloat16 each step is rounded away and learning stands still; float32 master weights
    gather them.
    """
    steps = {"max_steps": 30, "learning_rate": 1e-5, "lr_scheduler": "constant", "save_steps": 30, "eval_steps": 30}
    run = new_run(adapter=None, prompt_format="ihop", gradient_checkpointing=True, **steps)
    assert run.train() == 0
    started = run.events("started")[0]
    assert started["trained_parameters"] == started["parameters"]
    manifest = run.read("export/export.manifest.json")
    assert manifest["adapter"] is None
    assert not (run.folder / "export" / "adapter").exists()
    before, after = (weight_of(folder) for folder in (tiny_llama, run.folder / "export" / "merged"))
    large = (before.abs() >= 2**-6) & (before.abs() < 2**-5)
    assert (before[large] != after[large]).float().mean() > 0.5
    assert "<|RESPONSE|>" in run.read("export/merged/tokenizer_config.json")["chat_template"]
    assert (manifest["prompt_format"], manifest["stop"]) == ("ihop", ["<|END_RESPONSE|>"])


def weight_of(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
