"""The serving controller on an in-memory broker, with rollouts that a test decides."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.unit.serving.world import BASE, PASSED, REFUSED, World

from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.contract import Proof
from shortstack.serving.rollout import NotReady
from shortstack.streams import topics

OUTCOMES = ("passed", "refused")
SERVED, LOADING = sv.MODEL_STATE_SERVED, sv.MODEL_STATE_LOADING


@pytest.fixture
def world() -> World:
    return World()


def served_events(world: World, model: str) -> int:
    """How often the model became served, by its writes."""
    states = [record.model.state for key, record in world.states() if key == f"model/{model}"]
    return sum(now == SERVED and before != SERVED for before, now in zip([0, *states], states, strict=False))


def test_a_trained_model_is_served_and_its_alias_moves_with_the_same_write(world: World) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
        model = world.trained("ftjob-1", "a", alias="faq@prod")
        snapshot = running.settle(model, SERVED)
        assert running.weights("faq@prod") == {model: 100}

    assert snapshot.endpoint.adapter_id == "a" * 12
    assert orjson.loads(snapshot.proof_json)["measurable"] is True
    keys = [key for key, _ in world.states()]
    assert keys.count("alias/faq@prod") == 1
    last = max(n for n, (key, r) in enumerate(world.states()) if key == f"model/{model}" and r.model.state == SERVED)
    assert keys[last + 1] == "alias/faq@prod"
    deployed = [(d.key or b"").decode() for d in world.messages(topics.MODELS_DEPLOYED)]
    assert deployed == [BASE, model, "faq@prod"]


def test_a_restart_on_a_finished_stack_does_nothing(world: World) -> None:
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        running.settle(model, SERVED)
    world.ended("ftjob-1", tr.JOB_STATE_SUCCEEDED)
    before = len(world.states()), len(world.messages(topics.MODELS_DEPLOYED))
    with world.started() as again:
        again.turn(4)
    assert world.rollout.rolled_out == ["a" * 64]
    assert (len(world.states()), len(world.messages(topics.MODELS_DEPLOYED))) == before


def test_a_model_that_is_refused_never_takes_traffic(world: World) -> None:
    good = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        running.settle(good, SERVED)
        world.rollout.outcomes["b" * 64] = Proof(REFUSED, REFUSED)
        bad = world.trained("ftjob-2", "b", alias="faq@prod")
        snapshot = running.settle(bad, sv.MODEL_STATE_REFUSED)
        running.until(lambda: world.rollout.held == {"a" * 64})
        assert running.weights("faq@prod") == {good: 100}
        counted = [
            running.registry.get_sample_value("shortstack_contract_tests_total", {"outcome": o}) for o in OUTCOMES
        ]
        assert counted == [1, 1]
        assert running.registry.get_sample_value("shortstack_models", {"state": "refused"}) == 1
    assert snapshot.message.startswith("contract test: token 1 is 5")
    assert not snapshot.HasField("endpoint")
    assert served_events(world, bad) == 0


def test_what_cannot_be_served_at_all_is_refused_with_its_reason(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Poison("the server answers 422: q_prj is no layer", remedy="Train again.")
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        snapshot = running.settle(model, sv.MODEL_STATE_REFUSED)
    assert "q_prj" in snapshot.message
    assert snapshot.remedy == "Train again."


def test_a_rollout_says_how_far_it_is_and_never_goes_back(world: World) -> None:
    world.rollout.outcomes["a" * 64] = NotReady("its pod fetches the weights")
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        for parts, shown in (([0.0], 0.0), ([0.2], 0.2), ([0.1], 0.2), ([0.75, 0.5], 0.75)):
            world.rollout.parts, rolled_out = parts, len(world.rollout.rolled_out)
            world.clock.advance(10)
            running.until(lambda before=rolled_out: len(world.rollout.rolled_out) > before)
            running.turn(3)
            assert running.controller.shown()[f"model/{model}"].model.progress == shown
        del world.rollout.outcomes["a" * 64]
        world.clock.advance(10)
        assert running.settle(model, SERVED).progress == 1
        assert running.settle(BASE, SERVED).progress == 1


def test_no_measurable_change_is_served_with_a_warning(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Proof(PASSED, PASSED)
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        assert "no measurable change" in running.settle(model, SERVED).message


def test_an_older_request_that_finishes_later_leaves_the_alias(world: World) -> None:
    older = world.trained("ftjob-1", "a", alias="faq@prod", state=tr.JOB_STATE_QUEUED)
    world.rollout.outcomes["a" * 64] = Transient("the server is away")
    newer = world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started() as running:
        running.until(lambda: "away" in running.controller.shown()[f"model/{older}"].model.message)
        running.settle(newer, SERVED)
        del world.rollout.outcomes["a" * 64]
        world.clock.advance(10)
        assert 'superseded: a newer request has set alias "faq@prod"' in running.settle(older, SERVED).message
        assert running.weights("faq@prod") == {newer: 100}
        running.turn(3)
    assert [key for key, _ in world.states()].count("alias/faq@prod") == 1


def test_a_rollback_by_hand_is_a_newer_request_and_survives_a_restart(world: World) -> None:
    first, second = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started() as running:
        running.settle(first, SERVED)
        running.settle(second, SERVED)
        assert running.weights("faq@prod") == {second: 100}
        split = [{"model": first, "weight": 90}, {"model": second, "weight": 10}]
        world.request(kind="traffic", alias="faq@prod", weights=split)
        running.until(lambda: running.weights("faq@prod") == {first: 90, second: 10})
    with world.started() as again:
        again.turn(3)
        assert again.weights("faq@prod") == {first: 90, second: 10}


def test_an_alias_of_another_owner_stays_and_the_model_says_so(world: World) -> None:
    with world.started() as running:
        running.settle(BASE, SERVED)
        world.request(kind="traffic", owner="other", alias="faq@prod", weights=[{"model": BASE, "weight": 100}])
        running.until(lambda: running.weights("faq@prod") == {BASE: 100})
        second = world.trained("ftjob-2", "b", alias="faq@prod")
        assert "belongs to another owner" in running.settle(second, SERVED).message
        assert running.weights("faq@prod") == {BASE: 100}


def test_a_server_that_is_away_is_tried_again(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Transient("the server does not answer")
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        running.until(lambda: "does not answer" in running.controller.shown()[f"model/{model}"].model.message)
        del world.rollout.outcomes["a" * 64]
        world.clock.advance(10)
        assert running.settle(model, SERVED).message == ""


def test_an_inference_server_that_was_started_anew_is_given_its_models_again(world: World) -> None:
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        running.settle(model, SERVED)
        world.rollout.held.clear()
        world.clock.advance(2)
        running.until(lambda: world.rollout.held == {"a" * 64})
    assert world.rollout.rolled_out == ["a" * 64]


def test_a_controller_that_died_after_a_rollout_serves_the_model_once(world: World) -> None:
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        # The rollout ends, and the process dies before it is written: the snapshot still says loading.
        running.until(lambda: world.rollout.rolled_out == ["a" * 64])
        running.controller.close()
    with world.started() as again:
        again.settle(model, SERVED)
        again.turn(3)
    assert served_events(world, model) == 1


def test_a_job_that_was_cancelled_moves_no_alias_and_leaves_no_model_behind(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Transient("away")
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        running.settle(model, LOADING)
        world.ended("ftjob-1", tr.JOB_STATE_CANCELLED)
        running.settle(model, sv.MODEL_STATE_WITHDRAWN)
        del world.rollout.outcomes["a" * 64]
        world.clock.advance(10)
        running.until(lambda: not world.rollout.held)
        assert running.weights("faq@prod") == {}
        # Another job that wishes for the same model gets it.
        world.trained("ftjob-2", "a")
        running.settle(model, SERVED)
        assert running.weights("faq@prod") == {}


def test_a_refused_model_is_tried_again_for_a_job_that_is_newer_than_the_refusal(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Proof(REFUSED, REFUSED)
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        running.settle(model, sv.MODEL_STATE_REFUSED)
        world.ended("ftjob-1", tr.JOB_STATE_FAILED)
        running.turn(2)
        del world.rollout.outcomes["a" * 64]
        world.trained("ftjob-1", "a")
        running.settle(model, SERVED)


def test_a_withdrawn_model_leaves_its_server_and_stays_withdrawn(world: World) -> None:
    model = world.trained("ftjob-1", "a")
    with world.started() as running:
        running.settle(model, SERVED)
        world.ended("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        world.request(kind="withdraw", model=model)
        running.settle(model, sv.MODEL_STATE_WITHDRAWN)
        world.clock.advance(2)
        running.until(lambda: not world.rollout.held)
    with world.started() as again:
        again.turn(3)
        assert again.controller.shown()[f"model/{model}"].model.state == sv.MODEL_STATE_WITHDRAWN
        world.request(kind="deploy", run="run-a", model=model)
        again.settle(model, SERVED)


def test_a_withdrawal_from_before_the_model_was_deployed_anew_is_stale(world: World) -> None:
    model = world.trained("ftjob-1", "a", state=tr.JOB_STATE_SUCCEEDED)
    with world.started() as running:
        running.settle(model, SERVED)
        world.request(kind="withdraw", model=model)
        running.settle(model, sv.MODEL_STATE_WITHDRAWN)
        world.request(kind="deploy", run="run-a", model=model)
        running.settle(model, SERVED)
    with world.started() as again:
        again.turn(3)
        assert again.controller.shown()[f"model/{model}"].model.state == SERVED
    assert served_events(world, model) == 2


def test_what_is_no_request_is_set_aside_once(world: World) -> None:
    world.request(kind="deploy", run="run-unknown", model="x")
    world.request(kind="trafic", alias="faq@prod")
    for _ in range(2):
        with world.started() as running:
            running.turn(2)
    letters = world.messages(topics.dead_letters(topics.MODELS_REQUESTS))
    assert len(letters) == 2
    assert 'Did you mean "traffic"?' in dict(letters[1].headers)["dlq-remedy"].decode()


SUPERSEDED: dict[str, Any] = {"serving_keep_superseded": False}


def test_a_superseded_model_is_withdrawn_with_the_write_that_moves_its_alias(world: World) -> None:
    old, new = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started(**SUPERSEDED) as running:
        running.settle(new, SERVED)
        snapshot = running.settle(old, sv.MODEL_STATE_WITHDRAWN)
        running.until(lambda: world.rollout.held == {"b" * 64})
        assert running.weights("faq@prod") == {new: 100}
    assert snapshot.message == (
        f'superseded by {new} on alias "faq@prod"; '
        "serve it again with: shortstack models deploy run-a --suffix demo --alias faq@prod"
    )
    # A reader who takes one record after the other finds the alias on a served model at any time.
    states: dict[str, sv.ModelRecord] = {}
    for key, record in world.states():
        states[key] = record
        if "alias/faq@prod" in states:
            for weight in states["alias/faq@prod"].alias.weights:
                assert states[f"model/{weight.model}"].model.state == SERVED


def test_a_superseded_model_is_served_again_on_request_and_supersedes_in_turn(world: World) -> None:
    old, new = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started(**SUPERSEDED) as running:
        running.settle(old, sv.MODEL_STATE_WITHDRAWN)
        world.request(kind="deploy", run="run-a", model=old, alias="faq@prod")
        running.settle(old, SERVED)
        running.settle(new, sv.MODEL_STATE_WITHDRAWN)
    with world.started(**SUPERSEDED) as again:
        again.turn(3)
        assert again.weights("faq@prod") == {old: 100}


def test_a_model_with_another_alias_or_a_share_stays(world: World) -> None:
    old, new = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@test")
    with world.started(**SUPERSEDED) as running:
        running.settle(old, SERVED)
        running.settle(new, SERVED)
        split = [{"model": old, "weight": 90}, {"model": new, "weight": 10}]
        world.request(kind="traffic", alias="faq@prod", weights=split)
        running.until(lambda: running.weights("faq@prod") == {old: 90, new: 10})
        world.request(kind="traffic", alias="faq@prod", weights=[{"model": new, "weight": 100}])
        running.settle(old, sv.MODEL_STATE_WITHDRAWN)
        world.request(kind="traffic", alias="faq@test", weights=[{"model": new, "weight": 100}])
        running.turn(3)
        assert running.controller.shown()[f"model/{new}"].model.state == SERVED


def test_a_model_that_came_too_late_for_its_alias_goes_once_its_job_has_heard(world: World) -> None:
    older = world.trained("ftjob-1", "a", alias="faq@prod", state=tr.JOB_STATE_QUEUED)
    world.rollout.outcomes["a" * 64] = Transient("the server is away")
    newer = world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started(**SUPERSEDED) as running:
        running.settle(newer, SERVED)
        del world.rollout.outcomes["a" * 64]
        world.clock.advance(10)
        running.settle(older, SERVED)
        running.turn(3)
        assert running.controller.shown()[f"model/{older}"].model.state == SERVED
        world.ended("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        running.settle(older, sv.MODEL_STATE_WITHDRAWN)
        assert running.weights("faq@prod") == {newer: 100}
    with world.started(**SUPERSEDED) as again:
        again.turn(3)
        assert again.controller.shown()[f"model/{newer}"].model.state == SERVED


def test_a_model_that_was_ordered_without_an_alias_is_not_swept_away(world: World) -> None:
    old, new = world.trained("ftjob-1", "a", alias="faq@prod"), world.trained("ftjob-2", "b", alias="faq@prod")
    with world.started(**SUPERSEDED) as running:
        running.settle(new, SERVED)
        running.settle(old, sv.MODEL_STATE_WITHDRAWN)
        for job in ("ftjob-1", "ftjob-2"):
            world.ended(job, tr.JOB_STATE_SUCCEEDED)
        world.request(kind="deploy", run="run-a", model=old)
        running.settle(old, SERVED)
    with world.started(**SUPERSEDED) as again:
        again.turn(4)
        assert again.controller.shown()[f"model/{old}"].model.state == SERVED


def test_models_wait_for_their_drain_before_their_server_goes(world: World) -> None:
    model = world.trained("ftjob-1", "a")
    with world.started(serving_drain_s=1000.0) as running:
        running.settle(model, SERVED)
        world.ended("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        world.request(kind="withdraw", model=model)
        running.settle(model, sv.MODEL_STATE_WITHDRAWN)
        running.turn(20)
        assert world.rollout.held == {"a" * 64}
        world.clock.advance(1000)
        running.until(lambda: not world.rollout.held)


def test_to_replace_the_old_server_goes_first_and_comes_back_if_the_new_one_fails(world: World) -> None:
    old = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started(rollout_strategy="replace", **SUPERSEDED) as running:
        running.settle(old, SERVED)
        world.ended("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        world.rollout.outcomes["b" * 64] = NotReady("the server is starting")
        new = world.trained("ftjob-2", "b", alias="faq@prod")
        running.until(lambda: world.rollout.held == {"b" * 64})
        running.turn(30)
        assert world.rollout.held == {"b" * 64}  # nobody brings the old one back meanwhile
        assert world.rollout.kept == {"a" * 64, "b" * 64}
        world.rollout.outcomes["b" * 64] = Proof(REFUSED, REFUSED)
        world.clock.advance(10)
        running.settle(new, sv.MODEL_STATE_REFUSED)
        running.until(lambda: world.rollout.held == {"a" * 64})
        assert running.weights("faq@prod") == {old: 100}


def test_a_served_model_whose_server_is_lost_says_why_and_keeps_its_route(world: World) -> None:
    world.rollout.outcomes["a" * 64] = Proof(PASSED, PASSED)
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    with world.started() as running:
        before = running.settle(model, SERVED).message
        world.rollout.troubled = {"a" * 64}
        running.until(lambda: "finds no node" in running.controller.shown()[f"model/{model}"].model.message)
        assert running.controller.shown()[f"model/{model}"].model.state == SERVED
        world.rollout.troubled = set()
        running.until(lambda: running.controller.shown()[f"model/{model}"].model.message == before)
    assert "no measurable change" in before


def test_where_servers_cannot_be_looked_after_at_all_the_service_ends(world: World) -> None:
    world.rollout.base_fails = Fatal("the template cannot be read")
    with world.started() as running, pytest.raises(Fatal, match="template"):
        running.until(lambda: False)
