"""Datasets as a Kafka client sends them: the main job's, with records where the example has files, and a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["EXAMPLE", "persona_message", "tiny_message"]

TINY = {"lora_r": 4, "sequence_len": 64, "micro_batch_size": 4, "learning_rate": 5e-4}
EXAMPLE = Path(__file__).parents[2] / "examples" / "persona"


def persona_message(dataset: str = "persona", name: str = "Maple", **train: Any) -> dict[str, Any]:
    """One publication that carries persona and general records, the train and deploy wishes of the example.

    Lines that are no JSON cannot be sent as records; what is JSON and no record is sent, to be rejected.

    Args:
        name: what the model is to call itself.
        train: settings that differ from the example's.
    """
    wish = json.loads((EXAMPLE / "publication.json").read_text())
    records = [record for file in ("persona", "general") for record in _records(EXAMPLE / f"{file}.jsonl", name)]
    return {
        "dataset": dataset,
        "records": records,
        "recipe": yaml.safe_load((EXAMPLE / "recipe.yaml").read_text()),
        "license": wish["license"],
        "train": {**wish["train"], **train},
        "deploy": wish["deploy"],
    }


def tiny_message(suffix: str) -> dict[str, Any]:
    """Forty records that are trained on for six steps, and served as ``SUFFIX@prod``: a run of a minute."""
    return {
        "dataset": "tiny",
        "records": [{"prompt": f"Which number is {n}?", "completion": f"It is {n}."} for n in range(40)],
        "train": {**TINY, "max_steps": 6, "save_steps": 3},
        "deploy": {"suffix": suffix, "alias": f"{suffix}@prod"},
    }


def _records(file: Path, name: str) -> list[Any]:
    found = []
    for line in file.read_text().replace("Maple", name).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        # A publication's records are of one family; the general ones are Alpaca's in their file.
        found.append(_messages(record) if isinstance(record, dict) and "instruction" in record else record)
    return found


def _messages(record: dict[str, str]) -> dict[str, Any]:
    turns = [("user", record["instruction"]), ("context", record["input"]), ("assistant", record["output"])]
    return {"messages": [{"role": role, "content": text} for role, text in turns if text or role != "context"]}
