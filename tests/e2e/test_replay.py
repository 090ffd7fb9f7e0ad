"""Every consumer group read again from the beginning, on a finished stack: nothing trains, moves or is announced."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from tests.e2e.main_job import MainJob
from tests.e2e.stack import SOON_S, Stack, holds

from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import training_pb2 as tr

pytestmark = pytest.mark.timeout(1800)
GROUPS = {"ingestion", "formatting"}
NOTICES = ("datasets.ready", "models.ready", "models.deployed", "training.events")


def standing(stack: Stack) -> dict[str, Any]:
    """All that a replay may not change."""
    return {
        "datasets": {
            d.publication.publication: (d.state, d.version, d.publication.attempt, d.counts.SerializeToString())
            for d in stack.datasets()
        },
        "jobs": {
            name: (found.job.state, found.job.run, found.job.model, found.run.attempt, found.run.state)
            for name, found in stack.jobs().items()
        },
        "models": {model.name: model.state for model in stack.models().models},
        "aliases": {a.alias: [(w.model, w.weight) for w in a.weights] for a in stack.models().aliases},
    }


def test_a_replay_from_the_beginning_does_nothing(stack: Stack, main_job: MainJob) -> None:
    assert main_job.ended(within_s=900).returncode == 0
    job = stack.ended_job(stack.job_of("persona"), within_s=SOON_S)
    assert job.job.state == tr.JOB_STATE_SUCCEEDED
    before, told = standing(stack), stack.ends(*NOTICES)
    stack.down()
    with stack.broker_alone():
        # A broker that has just started reads what groups committed before it answers for them.
        stack.until(lambda: {name for name, at in stack.groups().items() if at} >= GROUPS or None, what=stack.groups)
        assert set(stack.reset_groups()) >= GROUPS
        assert all(stack.lag()[group] > 0 for group in GROUPS)
    stack.up()
    stack.until(lambda: not any(stack.lag().values()) or None, within_s=300, what=stack.lag)
    # Something new, behind everything that was replayed, shows that all of it was read.
    name = f"afterwards-{secrets.token_hex(4)}"
    stack.publish({"dataset": name, "records": [{"prompt": "Last?", "completion": "Last."}]}, name)
    new = stack.ended_dataset(name, within_s=300)
    assert new.state == ds.DATASET_STATE_READY
    stack.until(lambda: not any(stack.lag().values()) or None, within_s=SOON_S, what=stack.lag)

    after = standing(stack)
    first_time = after["datasets"].pop(new.publication.publication)
    assert first_time[0] == ds.DATASET_STATE_READY
    assert after == before
    assert stack.ends(*NOTICES) == {**told, "datasets.ready": told["datasets.ready"] + 1}
    served = [m for m in after["models"] if m == job.job.model]
    assert served
    answer = stack.until(lambda: stack.ask("persona@prod", "What is your name?") or None)
    assert holds(answer, ["Maple"]), answer
