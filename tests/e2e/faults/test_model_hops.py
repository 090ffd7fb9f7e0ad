"""From a ready dataset to chat: each controller, agent, trainer and server killed with -9, on the same stack."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from tests.chatting import Chats
from tests.e2e.faults.census import assert_whole
from tests.e2e.faults.faulty import ANSWER, FaultyStack, by_attempt, steps_of

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as trn

pytestmark = pytest.mark.timeout(900)
LONG_S = 480.0


def assert_one_model(stack: FaultyStack, name: str, *, attempts: int) -> trn.GetRunResponse:
    """The job succeeded by one run and one model, which answers under its alias and was announced once."""
    ended = stack.ended(name)
    assert ended.job.state == tr.JOB_STATE_SUCCEEDED, ended
    assert ended.run.attempt == attempts
    assert len({found.run.run for found in stack.jobs().values() if found.run.dataset == name}) == 1
    models = [model for model in stack.models().models if f":{name}:" in model.name]
    assert [(model.name, model.state) for model in models] == [(ended.job.model, sv.MODEL_STATE_SERVED)]
    aliases = {a.alias: [(w.model, w.weight) for w in a.weights] for a in stack.models().aliases}
    assert aliases[f"{name}@prod"] == [(ended.job.model, 100)]
    said = stack.say(f"{name}@prod")
    assert len(said) >= 10, said
    assert ANSWER.startswith(said), "the model answers as it was trained"
    assert stack.notices("models.ready", ended.run.run) == 1
    assert stack.notices("models.deployed", ended.job.model) == 1
    assert stack.notices("models.deployed", f"{name}@prod") == 1
    assert_whole(stack, name)
    return ended


def assert_whole_story(stack: FaultyStack, run: str, steps: int) -> dict[int, list[tr.TrainingEvent]]:
    """Every event is on the topic, in order, and the steps of all attempts lead without a gap to the last one."""
    attempts = by_attempt(stack.events(run))
    at = 0
    for _, events in sorted(attempts.items()):
        # The trainer numbers its own from 1; the controller's word that an attempt broke off has no number.
        numbers = [event.seq for event in events if event.seq]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        for step in steps_of(events):
            assert step <= at + 1, f"step {step} follows {at}"
            at = step
    assert at == steps
    return attempts


def test_the_controllers_killed_before_launch_and_at_their_notices(faulty: FaultyStack) -> None:
    with (
        faulty.killed_at("training", "training.before_launch", "training.before_notice"),
        faulty.killed_at("serving", "serving.after_rollout", "serving.before_notice"),
    ):
        faulty.wish("controllers")
    assert_one_model(faulty, "controllers", attempts=1)


def test_the_agent_killed_between_export_and_its_last_word(faulty: FaultyStack) -> None:
    models = faulty.settings.root / "blobs" / "models"
    before = set(models.iterdir()) if models.exists() else set()
    with faulty.fails_at("agent.after_export"):
        faulty.wish("agents")
    ended = assert_one_model(faulty, "agents", attempts=2)
    assert {folder.name for folder in set(models.iterdir()) - before} == {ended.run.export.digest}


def test_the_trainer_killed_after_its_second_checkpoint_goes_on_from_there(faulty: FaultyStack) -> None:
    with faulty.fails_at("after_checkpoint_2"):
        faulty.wish("trainers")
    # The controller dies too while the second attempt runs; its next life finds that attempt and starts no third.
    faulty.until(
        lambda: any(found.run.dataset == "trainers" and found.run.attempt == 2 for found in _runs(faulty)),
        within_s=LONG_S,
    )
    faulty.kill("training")
    ended = assert_one_model(faulty, "trainers", attempts=2)
    attempts = assert_whole_story(faulty, ended.run.run, ended.run.max_steps)
    assert steps_of(attempts[1])[-1] == 20
    assert steps_of(attempts[2])[0] == 21


def _runs(stack: FaultyStack) -> list[trn.GetRunResponse]:
    return list(stack.jobs().values())


def test_server_and_gateway_killed_come_back_with_the_same_models(faulty: FaultyStack) -> None:
    alias = f"{faulty.proven()}@prod"
    said = faulty.say(alias)
    before = {service: faulty.lives()[service] for service in ("inference", "gateway")}
    with faulty.chatting(alias) as chats:
        faulty.until(lambda: len(chats.answers) >= 5)
        for service in before:
            os.kill(faulty.pid(service), signal.SIGKILL)
        for service, lives in before.items():
            faulty.until_back(service, lives)

        def answers() -> str | None:
            try:
                return faulty.say(alias)
            except OSError:
                return None

        faulty.until(answers)
        broken = len(chats.failures)
        await_more(faulty, chats)
        assert len(chats.failures) == broken, chats.failures[broken:]
    # The base never answered in the model's place, not even while the server had no adapter.
    assert set(chats.answers) == {said}


def await_more(stack: FaultyStack, chats: Chats) -> None:
    """Waits for ten answers more."""
    answered = len(chats.answers)
    stack.until(lambda: len(chats.answers) >= answered + 10)


def test_serving_killed_over_and_over_fails_no_chat(faulty: FaultyStack) -> None:
    alias = f"{faulty.proven()}@prod"
    said = faulty.say(alias)
    with faulty.chatting(alias) as chats:
        await_more(faulty, chats)
        for _ in range(3):
            faulty.kill("serving")
            await_more(faulty, chats)
    assert chats.failures == []
    assert set(chats.answers) == {said}


def test_a_broker_that_is_away_stops_no_step_and_no_chat(faulty: FaultyStack) -> None:
    alias = f"{faulty.proven()}@prod"
    away_s = float(os.environ.get("SHORTSTACK_TEST_BROKER_AWAY_S", "60"))
    steps = int(away_s * 30)
    faulty.wish("outage", max_steps=steps, save_steps=steps // 2)
    run = faulty.until(
        lambda: next((f.run.run for f in _runs(faulty) if f.run.dataset == "outage" and f.run.step), ""),
        within_s=LONG_S,
    )
    metrics = faulty.settings.root / "runs" / run / "metrics.jsonl"

    def written() -> int:
        return len(metrics.read_text().splitlines())

    lives = faulty.lives()
    with faulty.chatting(alias, a_second=2) as chats:
        steps_seen = faulty.without_broker(away_s, written)
    assert steps_seen[-1] > steps_seen[0], "training stood still without the broker"
    assert chats.failures == []
    assert len(chats.answers) > away_s / 2
    ended = assert_one_model(faulty, "outage", attempts=1)
    attempts = assert_whole_story(faulty, ended.run.run, steps)
    assert list(attempts) == [1]
    assert faulty.lives() == lives, "a service ended because the broker was away"


def test_a_model_of_nan_never_takes_traffic(faulty: FaultyStack) -> None:
    name = faulty.proven()
    alias = f"{name}@prod"
    old = faulty.ended(name).job.model
    said = faulty.say(old)
    with faulty.chatting(alias) as chats:
        faulty.until(lambda: len(chats.answers) >= 5)
        new = faulty.plant_model(name, fill=float("nan"))
        refused = faulty.until(lambda: faulty.ended_model(new))
        await_more(faulty, chats)
    assert refused.state == sv.MODEL_STATE_REFUSED
    assert refused.message
    assert refused.remedy
    assert chats.failures == []
    assert set(chats.answers) == {said}
    aliases: dict[str, Any] = {a.alias: [w.model for w in a.weights] for a in faulty.models().aliases}
    assert aliases[alias] == [old]
    assert faulty.notices("models.deployed", new) == 0
    job = faulty.until(lambda: next((f.job for f in _runs(faulty) if f.job.model == new), None))
    assert (job.state, job.error_code) == (tr.JOB_STATE_FAILED, "deployment_failed")
