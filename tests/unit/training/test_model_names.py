"""What the model of a job is called, and that a name once given stays."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.training.world import BASE, World, train

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr


def name(suffix: str) -> str:
    return f"ft:{BASE}:default:{suffix}:{'a' * 12}"


@pytest.mark.parametrize(
    ("deploy", "suffix"), [({"alias": "help@prod"}, "faq"), ({}, "faq"), ({"suffix": "given"}, "given")]
)
def test_without_a_suffix_a_model_has_its_dataset_s_name(world: World, deploy: dict[str, Any], suffix: str) -> None:
    world.ready(("ftjob-1", {}, deploy))
    with world.started() as running:
        train(world, running)
        running.until(lambda _: bool(running.job("ftjob-1").model))
        assert running.job("ftjob-1").model == name(suffix)


def test_a_job_of_openai_without_a_suffix_says_model(world: World) -> None:
    world.submit("ftjob-1", deploy={}, openai={"model": BASE})
    world.ready()
    with world.started() as running:
        train(world, running)
        running.until(lambda _: bool(running.job("ftjob-1").model))
        assert running.job("ftjob-1").model == name("model")


def test_weights_that_are_known_as_model_get_no_second_name(world: World) -> None:
    world.model(name("model"), sv.MODEL_STATE_WITHDRAWN)
    world.ready(("ftjob-1", {}, {"alias": "help@prod"}))
    with world.started() as running:
        train(world, running)
        running.until(lambda _: bool(running.job("ftjob-1").model))
        assert running.job("ftjob-1").model == name("model")


def test_jobs_named_by_an_earlier_version_keep_their_model_also_for_equal_wishes(world: World) -> None:
    wish: dict[str, Any] = {"alias": "help@prod"}
    world.ready(("ftjob-1", {}, wish))
    with world.started() as running:
        train(world, running)
        running.until(lambda _: bool(running.job("ftjob-1").model))
        stored = running.controller.shown()
    stored["job/ftjob-1"].job.model = name("model")
    world.write(stored)

    world.ready(("ftjob-1", {}, wish), ("ftjob-2", {}, wish))
    with world.started() as again:
        again.until(lambda shown: "job/ftjob-2" in shown and bool(again.job("ftjob-2").model))
        assert {again.job(job).model for job in ("ftjob-1", "ftjob-2")} == {name("model")}
        world.model(name("model"), sv.MODEL_STATE_SERVED)
        for job in ("ftjob-1", "ftjob-2"):
            again.settle(job, tr.JOB_STATE_SUCCEEDED)
    assert len(world.launcher.orders) == 1
