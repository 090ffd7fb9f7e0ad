"""A dataset published again with the same wish: nothing is trained, and the alias stands for what was asked last."""

from __future__ import annotations

import pytest
from tests.unit.serving.world import World

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.streams import topics

SERVED = sv.MODEL_STATE_SERVED


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("keep", [True, False])
def test_a_model_that_is_asked_for_again_takes_its_alias_back(world: World, keep: bool) -> None:
    """The same dataset published again, with the same wish, after another one: nothing is trained, the alias moves."""
    old, new = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started(serving_keep_superseded=keep) as running:
        running.settle(new, SERVED)
        world.ended("ftjob-2", tr.JOB_STATE_SUCCEEDED)
        running.settle(old, SERVED if keep else sv.MODEL_STATE_WITHDRAWN)
        running.until(lambda: running.weights("faq@prod") == {new: 100})
        world.wished_again("ftjob-1")
        running.until(lambda: running.weights("faq@prod") == {old: 100})
        running.settle(old, SERVED)
        running.turn(3)
        assert running.weights("faq@prod") == {old: 100}


def test_where_the_alias_stands_already_nothing_is_announced(world: World) -> None:
    """Not at once, and not by a restart; but what was asked for before that has come too late."""
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        running.settle(model, SERVED)
        running.until(lambda: running.weights("faq@prod") == {model: 100})
        told = len(world.messages(topics.MODELS_DEPLOYED))
        before = running.controller.shown()["alias/faq@prod"].alias
        world.wished_again("ftjob-1")
        running.until(
            lambda: (
                running.controller.shown()["alias/faq@prod"].alias.requested_at.ToNanoseconds()
                > before.requested_at.ToNanoseconds()
            )
        )
        assert running.controller.shown()["alias/faq@prod"].alias.updated_at == before.updated_at
        assert len(world.messages(topics.MODELS_DEPLOYED)) == told
    with world.started() as running:
        running.settle(model, SERVED)
        running.turn(3)
        assert len(world.messages(topics.MODELS_DEPLOYED)) == told
