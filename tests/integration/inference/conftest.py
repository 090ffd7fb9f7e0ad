"""A tiny random Llama with a byte tokenizer, adapters for it, and servers on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.polling import until
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from shortstack.inference.app import Parts, build_app
from shortstack.inference.composition import build_parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.server import GracefulServer, bind

END = 256


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, grouped key/value heads, one token a byte; it never says its end token of itself."""
    folder = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=END + 1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[END].zero_()
    model.save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[..., Path]:
    """Writes an adapter of the tiny model with peft; every weight is ``fill`` where that is given."""

    def make(seed: int, *, fill: float | None = None, **lora: Any) -> Path:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False, **lora}
        base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        if fill is not None:
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.constant_(weight, fill)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return make


@pytest.fixture
def broken_adapter(tmp_path: Path) -> Path:
    """An adapter whose tensor names no layer of the tiny model."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    weight = torch.zeros(2, 64)
    save_file(
        {"base_model.model.model.layers.0.self_attn.q_prj.lora_A.weight": weight},
        tmp_path / "adapter_model.safetensors",
    )
    return tmp_path


@dataclass(frozen=True)
class Served:
    """A server that runs in this process."""

    url: str
    parts: Parts


@contextmanager
def _serving(config: InferenceConfig) -> Iterator[Served]:
    listener = bind(config.hostname, config.port)
    parts = build_parts(config)
    parts.engine.start()
    server = GracefulServer(build_app(parts), config.graceful_termination_timeout, parts.engine.give_up)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until(lambda: server.started, "the server listens")
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", parts)
    finally:
        server.should_exit = True
        thread.join(30)
        parts.engine.stop()
        listener.close()


@pytest.fixture(scope="session")
def serving(tiny_model: Path) -> Callable[..., Any]:
    """Serves the tiny model in float32 with the given settings."""

    def start(**settings: Any) -> Any:
        return _serving(InferenceConfig(**{"model_id": tiny_model, "port": 0, "dtype": "float32", **settings}))

    return start


@pytest.fixture(scope="module")
def served(serving: Callable[..., Any]) -> Iterator[Served]:
    """One server with the recorded limits of the real one."""
    with serving(max_input_tokens=1024, max_total_tokens=2048, max_stop_sequences=4) as running:
        yield running
