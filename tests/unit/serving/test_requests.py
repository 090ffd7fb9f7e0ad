"""Requests on models.requests that were right when they were asked for and are not when they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.serving.world import BASE, Running, World

from shortstack.core.errors import Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.book import ModelBook
from shortstack.serving.grpc_service import ServingServicer
from shortstack.serving.v1 import serving_pb2 as pb
from shortstack.streams import topics

SERVED, WITHDRAWN = sv.MODEL_STATE_SERVED, sv.MODEL_STATE_WITHDRAWN


@pytest.fixture
def world() -> World:
    return World()


def letters(world: World) -> list[str]:
    """What was set aside, in its words."""
    found = world.messages(topics.dead_letters(topics.MODELS_REQUESTS))
    return [dict(letter.headers)["dlq-message"].decode() for letter in found]


def move(**weights: int) -> dict[str, Any]:
    given = [{"model": model, "weight": weight} for model, weight in weights.items()]
    return {"kind": "traffic", "alias": "faq@prod", "weights": given}


@pytest.mark.parametrize(
    ("weights", "words"),
    [({BASE: 90}, "add up to 100"), ({"ft:gone": 100}, 'no model "ft:gone"'), ({}, "add up to 100")],
)
def test_weights_are_checked_when_the_request_is_taken(world: World, weights: Mapping[str, int], words: str) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
        world.request(**move(**weights))
        running.until(lambda: bool(letters(world)))
        assert running.weights("faq@prod") == {}
    (letter,) = letters(world)
    assert words in letter


def test_a_model_that_was_withdrawn_meanwhile_takes_no_alias(world: World) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(model, SERVED)
        world.request(kind="withdraw", model=model)
        world.request(**move(**{model: 100}))  # checked before the withdrawal was taken
        running.until(lambda: bool(letters(world)))
        assert running.controller.shown()[f"model/{model}"].model.state == WITHDRAWN
        assert running.weights("faq@prod") == {}
    assert "is not served" in letters(world)[0]


def test_a_model_that_an_alias_took_meanwhile_is_not_withdrawn(world: World) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(model, SERVED)
        world.request(**move(**{model: 100}))
        world.request(kind="withdraw", model=model)  # checked before the move was taken
        running.until(lambda: bool(letters(world)))
        assert running.controller.shown()[f"model/{model}"].model.state == SERVED
    assert 'alias faq@prod sends traffic to "ft:' in letters(world)[0]


def test_what_was_refused_once_is_not_done_at_a_later_start(world: World) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(BASE, SERVED)
        running.settle(model, SERVED)
        world.request(kind="withdraw", model=model)
        world.request(**move(**{model: 100}))
        running.until(lambda: bool(letters(world)))
        world.request(kind="deploy", run="run-a", model=model)
        running.settle(model, SERVED)
    with world.started() as again:
        again.turn(3)
        assert again.weights("faq@prod") == {}
    assert len(letters(world)) == 1


def test_a_move_that_was_taken_is_not_refused_at_a_later_start(world: World) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(BASE, SERVED)
        running.settle(model, SERVED)
        world.request(**move(**{model: 100}))
        running.until(lambda: running.weights("faq@prod") == {model: 100})
        world.request(**move(**{BASE: 100}))
        running.until(lambda: running.weights("faq@prod") == {BASE: 100})
        world.request(kind="withdraw", model=model)
        running.settle(model, WITHDRAWN)
    with world.started() as again:
        again.turn(3)
        assert again.weights("faq@prod") == {BASE: 100}
        assert again.controller.shown()[f"model/{model}"].model.state == WITHDRAWN
    assert letters(world) == []


def test_a_rollout_that_goes_on_makes_no_withdrawal_stale() -> None:
    book, now = ModelBook(), datetime(2026, 1, 1, tzinfo=UTC)
    run = tr.RunSnapshot(run="run-a", export=tr.Export(digest="a" * 64))
    book.deploy(run, "ft:a", "default", "", now, now)
    asked = now + timedelta(seconds=1)
    book.progressed("ft:a", 0.5)
    assert book.withdraw("ft:a", asked, asked + timedelta(seconds=1))


def call(world: World, running: Running, name: str, model: str) -> Any:
    """A call of the API while the controller does not turn."""
    servicer = ServingServicer(running.controller, world.broker.producer(), world.clock, effect_s=0.05)
    weights = [sv.Weight(model=BASE, weight=100)]
    context: Any = None
    return {
        "traffic": lambda: servicer.SetTraffic(pb.SetTrafficRequest(alias="faq@prod", weights=weights), context),
        "withdraw": lambda: servicer.WithdrawModel(pb.WithdrawModelRequest(model=model), context),
        "deploy": lambda: servicer.DeployModel(pb.DeployModelRequest(run="run-a", suffix="other"), context),
    }[name]()


@pytest.mark.parametrize("name", ["traffic", "withdraw", "deploy"])
def test_a_request_that_does_not_show_in_time_may_be_tried_again(world: World, name: str) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(BASE, SERVED)
        running.settle(model, SERVED)
        with pytest.raises(Transient, match="does not show"):
            call(world, running, name, model)
