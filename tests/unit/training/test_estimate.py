"""An estimate's child process and files: bounded, and what goes wrong with them is said for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Conflict, Invalid, ShortstackError, Transient
from shortstack.records.message import Message
from shortstack.records.schema import Record, table_of
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training import estimate
from shortstack.training.estimate import Estimator
from shortstack.training.launcher import AttemptOrder
from shortstack.training.trainer import data, rows
from shortstack.training.trainer.plan import RunPlan

ORDER = AttemptOrder("run-1", 1, "manifest.json", 1, {"run": "run-1"})
SHARD = b"four"


def store() -> MemoryBlobStore:
    blobs = MemoryBlobStore()
    blobs.put("train.parquet", SHARD)
    shard = {"key": "train.parquet", "sha256": sha256_hex(SHARD), "bytes": len(SHARD)}
    blobs.put(
        "manifest.json", orjson.dumps({"dataset": "faq", "version": "v1", "splits": {"train": {"shards": [shard]}}})
    )
    return blobs


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the trainer's place, to be written by the test."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(estimate, "TRAINER", "counter")
    return tmp_path / "counter.py"


def test_an_estimate_lies_in_its_folder_only_while_it_counts(tmp_path: Path, counter: Path) -> None:
    folder = tmp_path / "estimate"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "left.parquet").write_text("by a service that was killed")
    counter.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "print(json.dumps({'files': sorted(f.name for f in folder.rglob('*') if f.is_file())}))\n"
    )
    found = Estimator("memory://", folder).explain(ORDER, store())
    assert found == {"files": ["plan.json", "train.parquet"]}
    assert not folder.exists()


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", Conflict, "more memory than the training service has"),
        ("raise MemoryError", Conflict, "training.resources.limits.memory"),
        ("os.kill(os.getpid(), signal.SIGTERM)", Transient, "ended by signal 15"),
        ("sys.exit('error: none of 3 records can be trained on')", Invalid, "none of 3 records can be trained on"),
    ],
)
def test_a_count_that_fails_says_why(
    tmp_path: Path, counter: Path, program: str, kind: type[ShortstackError], words: str
) -> None:
    counter.write_text(f"import os, signal, sys\n{program}\n")
    with pytest.raises(kind) as caught:
        Estimator("memory://", tmp_path / "estimate").explain(ORDER, store())
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert not (tmp_path / "estimate").exists()


def test_a_dataset_that_is_too_large_is_refused_before_it_is_fetched(tmp_path: Path, counter: Path) -> None:
    class Watched(MemoryBlobStore):
        def fetch(self, *_: object) -> None:
            raise AssertionError("fetched")

    blobs = Watched()
    blobs.put("manifest.json", store().get("manifest.json"))
    with pytest.raises(Invalid, match="are 4 bytes, and an estimate counts at most 3"):
        Estimator("memory://", tmp_path / "estimate", bytes_max=3).explain(ORDER, blobs)


class _Row:
    def __init__(self, ids: list[int]) -> None:
        self.ids, self.trained = ids, [True] * len(ids)


class _Letters:
    """One token a letter, all trained."""

    def rows(self, messages: tuple[Message, ...], *, train_on_inputs: bool = False) -> list[_Row]:
        return [_Row([ord(letter) for message in messages for letter in message.content])]


@pytest.mark.parametrize("val_set_size", [0, 0.25])
def test_what_is_explained_is_what_is_trained_and_no_row_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_set_size: float
) -> None:
    turns = [(Message("user", "q" * n), Message("assistant", "a")) for n in range(1, 41)]
    pq.write_table(table_of([Record(n, t) for n, t in enumerate(turns)]), tmp_path / "train.parquet")
    monkeypatch.setattr(data.ServedFormat, "load", lambda *_: None)
    monkeypatch.setattr(data, "FormatsOfRows", lambda *_: {None: _Letters()})
    monkeypatch.setattr(rows, "_prompt", lambda messages: messages)
    given: dict[str, Any] = {
        "run": "run-1",
        "attempt": 1,
        "base_model": {"name": "tiny", "path": str(tmp_path), "digest": "d"},
        "config": {"val_set_size": val_set_size, "micro_batch_size": 4},
        "dataset": {"version": "v1", "train": [str(tmp_path / "train.parquet")]},
    }
    plan = RunPlan.model_validate(given)
    prepared = data.prepare(plan)

    def kept(*_: object) -> None:
        raise AssertionError("a row was kept")

    monkeypatch.setattr(rows, "TrainingRow", kept)
    found = data.explain(plan, 2)
    assert found["tokens_per_epoch"] == sum(len(row.input_ids) for row in prepared.train)
    assert found["schedule"]["max_steps"] == prepared.schedule(2).max_steps
    assert found["train"] == prepared.train_report.as_json()
