"""Base models: served as they are, missed, taken out of the configuration, and followed to other addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.serving.world import BASE, Running, World

from shortstack.core.errors import Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.rollout import NotReady
from shortstack.streams import topics

SERVED, LOADING, WITHDRAWN = sv.MODEL_STATE_SERVED, sv.MODEL_STATE_LOADING, sv.MODEL_STATE_WITHDRAWN


@pytest.fixture
def world() -> World:
    return World()


def test_bases_are_served_while_their_server_is_up(world: World) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
        world.rollout.base_fails = NotReady("it is loading")
        world.clock.advance(2)
        assert "loading" in running.settle(BASE, LOADING).message
        world.rollout.base_fails = None
        world.clock.advance(2)
        running.settle(BASE, SERVED)


def test_a_base_that_is_missed_once_keeps_its_route(world: World) -> None:
    with world.started() as running:
        for _ in range(4):  # never twice in a row
            running.settle(BASE, SERVED)
            looks, world.rollout.base_fails_once = world.rollout.base_looks, NotReady("the server is busy")
            running.until(lambda looks=looks: world.rollout.base_looks > looks + 2)
        running.turn(3)
    written = [record.model for key, record in world.states() if key == f"model/{BASE}"]
    states = [model.state for model in written]
    assert set(states[states.index(SERVED) :]) == {SERVED}
    assert any("the server is busy" in model.message for model in written)
    assert written[-1].message == ""


def test_models_follow_their_server_to_another_address_and_nothing_is_announced_again(world: World) -> None:
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        running.settle(model, SERVED)
        running.settle(BASE, SERVED)
    before = len(world.messages(topics.MODELS_DEPLOYED))
    world.rollout.url, world.rollout.base_fails = "http://elsewhere", NotReady("it is loading")
    with world.started() as again:
        again.until(lambda: again.controller.shown()[f"model/{BASE}"].model.state == sv.MODEL_STATE_LOADING)
        world.rollout.base_fails = None
        again.until(lambda: again.controller.shown()[f"model/{model}"].model.endpoint.url == "http://elsewhere")
        assert again.settle(BASE, SERVED).endpoint.url == "http://elsewhere"
    assert world.rollout.rolled_out == ["a" * 64]
    assert len(world.messages(topics.MODELS_DEPLOYED)) == before


def test_a_base_that_cannot_be_looked_at_keeps_its_route(world: World) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
        world.rollout.base_fails = Transient("the API server does not answer")
        running.turn(20)
        assert running.controller.shown()[f"model/{BASE}"].model.state == SERVED
        world.rollout.base_fails = NotReady("pod server-1 cannot be scheduled: no room")
        assert "no room" in running.settle(BASE, LOADING).message


def test_a_base_that_is_configured_no_longer_is_withdrawn_and_comes_back_with_its_configuration(world: World) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
    told = len(world.messages(topics.MODELS_DEPLOYED))
    with world.started({"other": Path("other")}) as again:
        again.settle("other", SERVED)
        assert "no longer among the base models" in again.settle(BASE, WITHDRAWN).message
    with world.started() as back:
        assert back.settle(BASE, SERVED).message == ""
        back.settle("other", WITHDRAWN)
    assert len(world.messages(topics.MODELS_DEPLOYED)) == told + 1


def gaps(world: World, running: Running, looks: int) -> list[float]:
    """Seconds of the clock between looks at the base."""
    found = []
    for _ in range(looks):
        seen, since = world.rollout.base_looks, world.clock.monotonic()
        running.until(lambda seen=seen: world.rollout.base_looks > seen)
        found.append(world.clock.monotonic() - since)
    return found


def test_in_a_cluster_where_all_is_well_servers_are_looked_at_less_often(world: World) -> None:
    with world.started(rollout="deployments", serving_watch_s=1.0, serving_quiet_watch_s=5.0) as running:
        running.settle(BASE, SERVED)
        assert min(gaps(world, running, 5)) < 2
        world.clock.advance(100)
        running.turn(20)
        assert min(gaps(world, running, 5)[1:]) > 4
        world.rollout.base_fails = NotReady("pod server-1 cannot be scheduled: no room")
        running.settle(BASE, LOADING)
        assert min(gaps(world, running, 5)) < 2


def test_on_one_machine_the_server_is_looked_at_as_often_as_ever(world: World) -> None:
    with world.started(serving_watch_s=1.0) as running:
        running.settle(BASE, SERVED)
        world.clock.advance(100)
        running.turn(20)
        assert min(gaps(world, running, 5)) < 2
