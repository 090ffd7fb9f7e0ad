"""An estimate counts with the trainer's own eyes, in a child process, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.training.conftest import MANIFEST, put_dataset
from tests.integration.training.trainer.conftest import records

from shortstack.core.errors import Invalid
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.estimate import Estimator
from shortstack.training.launcher import AttemptOrder


def order(base: Path, **config: object) -> AttemptOrder:
    plan = {
        "run": "run-1",
        "base_model": {"name": "tiny-llama", "path": str(base), "digest": "d" * 64},
        "prompt_format": "base",
        "config": {"micro_batch_size": 4, **config},
        "seed": 42,
    }
    return AttemptOrder("run-1", 1, MANIFEST, 2, plan)


def test_an_estimate_counts_records_tokens_and_steps(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "estimate"
    blobs = MemoryBlobStore()
    put_dataset(blobs)
    found = Estimator("memory://", folder).explain(order(tiny_llama, num_epochs=3), blobs)
    train = found["train"]
    assert train["records"] == train["rows"] == len(records()) - 4
    assert found["tokens"] == 3 * train["tokens"] > 0
    assert (found["ranks"], found["effective_batch"]) == (2, 8)
    assert found["schedule"]["max_steps"] == 3 * -(-train["rows"] // 8)
    with pytest.raises(Invalid, match="can be trained on"):
        Estimator("memory://", folder).explain(order(tiny_llama, sequence_len=8, excess_length_strategy="drop"), blobs)
    with pytest.raises(Invalid, match="not counted within"):
        Estimator("memory://", folder, count_s=0.001).explain(order(tiny_llama), blobs)
    assert list(tmp_path.iterdir()) == []
