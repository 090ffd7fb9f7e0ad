"""The main job's dataset as a Kafka client sends it: records, where the example has files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["EXAMPLE", "persona_message"]

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
