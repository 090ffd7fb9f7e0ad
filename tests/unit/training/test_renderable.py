"""A dataset is trained on as its model will be asked, or the job says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.world import World

from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import training_pb2 as tr

COUNTS = ds.DatasetCounts(records=80, written=80, train=80)


def outcome(folder: Path, state: tr.JobState.ValueType, train: dict[str, Any], **dataset: Any) -> tr.JobSnapshot:
    """The job that a ready dataset's wish becomes, once it is in ``state``."""
    world = World(folder)
    world.dataset(ds.DATASET_STATE_READY, wishes=[("ftjob-1", train, None)], counts=COUNTS, version="v1", **dataset)
    with world.started() as running:
        return running.settle("ftjob-1", state)


def test_rows_with_a_format_of_their_own_need_the_jobs(tmp_path: Path) -> None:
    """Else they would be trained on in theirs, and the model asked in the base model's own."""
    job = outcome(tmp_path, tr.JOB_STATE_FAILED, {}, row_formats=["human_bot"])
    assert job.error_code == "invalid_request"
    assert "human_bot" in job.error
    assert "prompt_format" in job.remedy


@pytest.mark.parametrize(
    ("train", "published", "rows"),
    [
        ({}, "human_bot", ["human_bot"]),
        ({}, "chatml", ["human_bot"]),
        ({"chat_template": "human_bot"}, "", ["human_bot"]),
        ({}, "", ["base"]),
        ({}, "", []),
    ],
    ids=["the same", "another", "in the settings", "the base model's own", "none"],
)
def test_rows_whose_format_the_job_knows_of_are_trained_on(
    tmp_path: Path, train: dict[str, Any], published: str, rows: list[str]
) -> None:
    publication = {"prompt_format": published}
    assert outcome(tmp_path, tr.JOB_STATE_RUNNING, train, row_formats=rows, publication=publication).run


def test_records_that_declare_tools_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    job = outcome(tmp_path, tr.JOB_STATE_FAILED, {}, with_tools=3)
    assert "3 records declare tools" in job.error
    assert "tools" in job.remedy
