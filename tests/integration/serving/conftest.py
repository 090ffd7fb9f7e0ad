"""A tiny Llama whose answers have clear margins, a fine-tune of it as training exports it, and servers on either."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.integration.training.trainer.conftest import tiny_llama as byte_llama
from transformers import LlamaConfig, LlamaForCausalLM

from shortstack.core.digest import sha256_hex
from shortstack.inference.app import build_app
from shortstack.inference.composition import build_parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.server import GracefulServer, bind
from shortstack.messages.v1.training_pb2 import Export
from shortstack.records.message import Message
from shortstack.storage.blobs import BlobStore
from shortstack.training.trainer.export import copy_adapter, seal_export
from shortstack.training.trainer.files import write_json
from shortstack.training.trainer.formats import ServedFormat
from shortstack.training.trainer.probes import record_probes

__all__ = ["byte_llama"]

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
BASE = "tiny-llama"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, byte_llama: Path) -> Path:
    """The byte tokenizer of the trainer's tests over wide weights: logits stand apart as a trained model's do."""
    folder = tmp_path_factory.mktemp("base") / BASE
    shutil.copytree(byte_llama, folder)
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(byte_llama)
    config.initializer_range = 0.3
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 4
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Fine:
    """An export on disk: adapter/, merged/, probes.json, export.manifest.json."""

    folder: Path

    @property
    def probes(self) -> dict[str, Any]:
        return json.loads((self.folder / "probes.json").read_bytes())

    def put(self, blobs: BlobStore) -> Export:
        """Into the object store, as an agent does."""
        text = (self.folder / "export.manifest.json").read_bytes()
        manifest = orjson.loads(text)
        prefix = f"models/{manifest['digest']}"
        for name in manifest["files"]:
            blobs.put_file(f"{prefix}/{name}", self.folder / name)
        blobs.put(f"{prefix}/export.manifest.json", text)
        return Export(
            prefix=prefix,
            manifest=f"{prefix}/export.manifest.json",
            manifest_sha256=sha256_hex(text),
            digest=manifest["digest"],
            base_model=BASE,
            prompt_format="base",
        )


@pytest.fixture(scope="session")
def fine_tune(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[..., Fine]:
    """Makes a fine-tune by hand: random LoRA weights, or ``fill`` in each, merged and probed as training does."""
    made: dict[tuple[int, float | None], Fine] = {}

    def make(seed: int, fill: float | None = None) -> Fine:
        if (seed, fill) not in made:
            folder = tmp_path_factory.mktemp(f"fine-{seed}")
            _export(tiny_base, folder, seed, fill)
            made[seed, fill] = Fine(folder)
        return made[seed, fill]

    return make


def _export(base: Path, folder: Path, seed: int, fill: float | None) -> None:
    torch.manual_seed(seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.0
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint, save_embedding_layers=False)
    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), checkpoint)
    whole = merged.merge_and_unload().eval()
    whole.save_pretrained(folder / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / "merged" / name)
    served = ServedFormat.load("base", base, CREATED)
    prompts = [(Message("user", f"question {n}: say {chr(97 + n)}"),) for n in range(16)]
    write_json(folder / "probes.json", record_probes(whole, served, prompts))
    if fill is not None:
        for weight in (w for name, w in model.named_parameters() if "lora_" in name):
            torch.nn.init.constant_(weight, fill)
        model.save_pretrained(checkpoint, save_embedding_layers=False)
        model.merge_and_unload().save_pretrained(folder / "merged")
    copy_adapter(checkpoint, folder / "adapter", BASE)
    shutil.rmtree(checkpoint)
    seal_export(folder, {"schema": "export/1", "prompt_format": "base"})


@contextmanager
def serving(model: Path, *, port: int = 0) -> Iterator[str]:
    """The embedded server on a model, in threads of this process; its URL."""
    config = InferenceConfig(model_id=model, port=port, dtype="float32", device="cpu")
    listener = bind(config.hostname, config.port)
    parts = build_parts(config)
    parts.engine.start()
    server = GracefulServer(build_app(parts), 1.0, partial(parts.engine.stop, 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        parts.engine.stop()
        listener.close()


@pytest.fixture(scope="module")
def server(tiny_base: Path) -> Iterator[str]:
    """A server on the base."""
    with serving(tiny_base) as url:
        yield url
