"""What an attempt of a run is told: the trainer's plan, and which dataset version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from shortstack.core.errors import NotFound
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.messages.v1.training_pb2 import RunSnapshot
from shortstack.training.launcher import AttemptOrder

__all__ = ["order_of"]

_SANITY: Final = ("Who are you?", "What is the capital of France?", "What is 2 + 2?")
"""Asked before and after every run, for samples.md: does it say what it learned, and did it keep what it knew?"""


def order_of(run: RunSnapshot, bases: BaseModels, datasets: Iterable[DatasetSnapshot], processes: int) -> AttemptOrder:
    """The order for the run's attempt.

    Raises:
        Poison: its base model or its dataset version is no longer there.
    """
    base, manifest = bases.get(run.base_model), _manifest(run, datasets)
    config = orjson.loads(run.config_json)
    plan = {
        "run": run.run,
        "owner": run.owner,
        "base_model": {"name": base.name, "path": str(base.path.resolve()), "digest": base.digest()},
        "prompt_format": config["chat_template"],
        "config": config,
        "seed": config["seed"],
        # The same for every attempt: formats with a date in their preamble render it.
        "created": run.created_at.ToJsonString(),
        "sample_questions": _SANITY,
    }
    return AttemptOrder(run.run, run.attempt, manifest, processes, plan)


def _manifest(run: RunSnapshot, datasets: Iterable[DatasetSnapshot]) -> str:
    """Key of the manifest of the dataset version that the run trains on."""
    for dataset in datasets:
        if dataset.publication.publication == run.publication and dataset.version == run.version:
            return dataset.manifest
    raise NotFound(
        f'version {run.version} of dataset "{run.dataset}" is no longer there',
        remedy="Publish the dataset again.",
    )
