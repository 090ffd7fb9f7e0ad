"""A tiny Llama on a byte-level tokenizer, trained for real: torchrun, gloo, DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.tiny_model import make_tiny_model

from shortstack.records.message import Message
from shortstack.records.schema import Record, table_of


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, hidden 64, in bfloat16, with one token a byte and two special tokens."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@dataclass(frozen=True)
class Run:
    """A run folder, and the real trainer to start on it."""

    folder: Path

    def start(self, attempt: int = 1, *, ranks: int = 1, failpoint: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "SHORTSTACK_FAILPOINT": failpoint}
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
            *(f"--nproc-per-node={ranks}", "-m", "shortstack.training.trainer.main"),
            *("--run-dir", str(self.folder), "--attempt", str(attempt)),
        ]
        with (self.folder / f"attempt-{attempt}.log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    def train(self, attempt: int = 1, *, ranks: int = 1, failpoint: str = "") -> int:
        return self.start(attempt, ranks=ranks, failpoint=failpoint).wait(timeout=240)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if kind in (None, event["type"])]

    def losses(self) -> dict[int, float]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_bytes())


def records() -> list[Record]:
    """24 short exchanges of different lengths."""
    return [
        Record(n, (Message("user", "say " + "ab" * (n % 5 + 1)), Message("assistant", chr(97 + n) * (n % 7 + 2))))
        for n in range(24)
    ]


@pytest.fixture
def new_run(tmp_path: Path, tiny_llama: Path) -> Callable[..., Run]:
    """Makes a run folder with a plan, as the controller does; keyword arguments are settings."""

    def make(name: str = "run", *, prompt_format: str = "base", data: list[Record] | None = None, **config: Any) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        rows = data if data is not None else records()
        pq.write_table(table_of(rows[:-4] if len(rows) > 4 else rows), folder / "train.parquet")
        pq.write_table(table_of(rows[-4:]), folder / "validation.parquet")
        plan = {
            "run": name,
            "attempt": 1,
            "owner": "default",
            "base_model": {"name": "tiny-llama", "path": str(tiny_llama), "digest": "d" * 64},
            "prompt_format": prompt_format,
            "config": {"micro_batch_size": 4, "learning_rate": 2e-3, "lora_r": 4, **config},
            "dataset": {
                "version": "v" * 32,
                "train": [str(folder / "train.parquet")],
                "validation": [str(folder / "validation.parquet")],
            },
            "sample_questions": ["say ab", "say abab"],
            "seed": 42,
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        return Run(folder)

    return make
