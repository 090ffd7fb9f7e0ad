"""The training controller on an in-memory broker, with attempts that a test ends."""

from __future__ import annotations

import itertools
from pathlib import Path

import orjson
import pytest
from tests.unit.training.world import BASE, World, export, launched, sample, train

from shortstack.core.errors import Fatal, Forbidden, Transient
from shortstack.declarations.publication import REFUSED
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.streams import topics

SUCCEEDED, FAILED, CANCELLED = tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED
MODEL = f"ft:{BASE}:default:demo:{'a' * 12}"


def test_a_ready_dataset_with_a_wish_is_trained_exactly_once(world: World) -> None:
    world.ready(("ftjob-1", {"lora_r": 4}, None))
    with world.started() as running:
        train(world, running)
        running.settle("ftjob-1", SUCCEEDED)
        running.turn(3)

        order = world.launcher.orders[0]
        assert launched(world) == [(running.run().run, 1)]
        assert order.manifest.endswith("v1/manifest.json")
        assert order.plan["config"]["lora_r"] == 4
        assert order.plan["base_model"]["path"] == str((world.folder / BASE).resolve())
        assert running.run().export.digest == "a" * 64
        assert sample("shortstack_jobs", running, state="succeeded") == 1
        assert sample("shortstack_runs", running, state="succeeded") == 1
        assert len(world.messages(topics.MODELS_READY)) == 1


def test_a_replay_from_the_beginning_launches_and_announces_nothing(world: World) -> None:
    world.submit("ftjob-0")
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        train(world, running)
        running.settle("ftjob-0", SUCCEEDED)
        running.settle("ftjob-1", SUCCEEDED)
    named = (topics.TRAINING_EVENTS, topics.MODELS_READY)
    before = [len(world.messages(topic)) for topic in named]

    with world.started() as again:
        again.turn(4)
        assert again.job("ftjob-1").state == SUCCEEDED

    assert len(launched(world)) == 1
    assert [len(world.messages(topic)) for topic in named] == before


def test_a_restarted_controller_follows_the_attempt_that_is_under_way(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
    with world.started() as again:
        again.turn(3)
        train(world, again)
        again.settle("ftjob-1", SUCCEEDED)
    assert len(launched(world)) == 1


def test_a_job_whose_steps_are_not_known_here_is_followed_all_the_same(world: World) -> None:
    """A snapshot of another version may name other steps; it must not stop the controller, and every job with it."""
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        older = tr.TrainingRecord(job=running.job("ftjob-1"))
    del older.job.steps[:]
    world.write({"job/ftjob-1": older})
    with world.started() as again:
        train(world, again)
        done = again.settle("ftjob-1", SUCCEEDED)
    assert {step.name: step.state for step in done.steps}["train"] == tr.STEP_STATE_DONE


def test_equal_wishes_share_a_run_and_only_the_last_cancel_stops_it(world: World) -> None:
    world.ready(("ftjob-1", {}, None), ("ftjob-2", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.cancel("ftjob-1")
        running.settle("ftjob-1", CANCELLED)
        running.turn(2)
        assert running.run().state == tr.RUN_STATE_STARTING

        world.cancel("ftjob-2")
        running.settle("ftjob-2", CANCELLED)
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
    assert len(launched(world)) == 1


def test_another_setting_is_another_run(world: World) -> None:
    world.ready(("ftjob-1", {"lora_r": 4}, None), ("ftjob-2", {"lora_r": 8}, None))
    with world.started() as running:
        train(world, running, 1)
        train(world, running, 2)
        running.settle("ftjob-1", SUCCEEDED)
        running.settle("ftjob-2", SUCCEEDED)
    assert len({run for run, _ in launched(world)}) == 2


def test_a_failure_that_another_attempt_would_repeat_is_final(world: World) -> None:
    world.ready(("ftjob-1", {}, None), ("ftjob-2", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.fail(*launched(world)[0], "non_finite_loss", "the loss is NaN at step 3", final=True)
        for job in ("ftjob-1", "ftjob-2"):
            assert running.settle(job, FAILED).error == "the loss is NaN at step 3"
    assert len(launched(world)) == 1


def test_a_cancel_is_final_at_once_and_wins_over_a_later_success(world: World) -> None:
    world.ready(("ftjob-1", {}, {"suffix": "demo"}))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.cancel("ftjob-1")
        world.launcher.succeed(*launched(world)[0], export())
        job = running.settle("ftjob-1", CANCELLED)
        assert {step.name: step.state for step in job.steps}["train"] == tr.STEP_STATE_CANCELLED
        world.model(MODEL, sv.MODEL_STATE_SERVED)
        running.turn(3)
        assert running.job("ftjob-1").state == CANCELLED


def test_a_job_that_is_cancelled_before_its_attempt_starts_launches_nothing(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.turn()
        assert running.run().state == tr.RUN_STATE_STARTING
        world.cancel("ftjob-1")
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
    assert launched(world) == []


def test_a_job_whose_dataset_never_comes_fails_with_what_to_do(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_dataset_wait_s": 600})
    with world.started() as running:
        world.submit("ftjob-1")
        running.settle("ftjob-1", tr.JOB_STATE_VALIDATING_FILES)
        world.clock.advance(590)
        running.turn(3)
        assert running.job("ftjob-1").state == tr.JOB_STATE_VALIDATING_FILES
    world.clock.advance(9000)  # while nobody looks, nothing can come
    with world.started() as running:
        running.turn(3)
        assert running.job("ftjob-1").state == tr.JOB_STATE_VALIDATING_FILES
        world.clock.advance(601)
        job = running.settle("ftjob-1", FAILED)
    assert (job.error_code, job.error) == ("dataset_not_accepted", 'dataset "faq" was not accepted within 10 minutes')
    assert "publish the dataset" in job.remedy
    assert {step.name: step.state for step in job.steps}["validate"] == tr.STEP_STATE_FAILED


def test_a_job_whose_dataset_comes_after_all_is_trained(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_dataset_wait_s": 600})
    with world.started() as running:
        world.submit("ftjob-1")
        running.settle("ftjob-1", tr.JOB_STATE_VALIDATING_FILES)
        world.clock.advance(601)
        running.settle("ftjob-1", FAILED)
        world.ready(("ftjob-1", {}, None))
        running.until(lambda _: bool(launched(world)))
        train(world, running)
        job = running.settle("ftjob-1", SUCCEEDED)
    assert (job.error, job.error_code, job.publication) == ("", "", "pub-faq")


def test_a_refused_request_fails_the_job_that_it_was_for_and_no_other_of_its_name(world: World) -> None:
    with world.started() as running:
        world.submit("ftjob-1")
        world.dataset(ds.DATASET_STATE_FAILED, code=REFUSED, message="too large", publication={"job": "ftjob-2"})
        running.turn(3)
        assert running.job("ftjob-1").state == tr.JOB_STATE_VALIDATING_FILES
        world.dataset(ds.DATASET_STATE_FAILED, code=REFUSED, message="too large", publication={"job": "ftjob-1"})
        assert running.settle("ftjob-1", FAILED).error == "too large"


def test_a_submitted_job_that_was_cancelled_stays_so_when_its_publication_comes(world: World) -> None:
    with world.started() as running:
        world.submit("ftjob-1")
        running.settle("ftjob-1", tr.JOB_STATE_VALIDATING_FILES)
        world.cancel("ftjob-1")
        running.settle("ftjob-1", CANCELLED)
        world.ready(("ftjob-1", {}, None))
        running.turn(4)
        assert running.job("ftjob-1").state == CANCELLED
    assert launched(world) == []


def test_asked_for_again_after_a_failure_a_job_opens_another_attempt(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.fail(*launched(world)[0], "out_of_memory", "no memory", final=True)
        running.settle("ftjob-1", FAILED)
        world.ready(("ftjob-1", {}, None))
        train(world, running, 2)
        job = running.settle("ftjob-1", SUCCEEDED)
        assert (job.error, job.error_code) == ("", "")
    assert [attempt for _, attempt in launched(world)] == [1, 2]


def test_a_cancel_from_before_a_job_was_asked_for_again_is_stale_after_a_restart(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.cancel("ftjob-1")
        running.settle("ftjob-1", CANCELLED)
        world.ready(("ftjob-1", {}, None))
        running.until(lambda _: len(world.launcher.orders) == 2)
    with world.started() as again:
        again.turn(2)
        assert again.job("ftjob-1").state != CANCELLED


def test_a_held_dataset_keeps_its_job_waiting_with_the_reason(world: World) -> None:
    world.dataset(ds.DATASET_STATE_HELD, wishes=[("ftjob-1", {}, None)], message="95 % rejected", remedy="Accept it.")
    with world.started() as running:
        job = running.settle("ftjob-1", tr.JOB_STATE_VALIDATING_FILES)
        assert {step.name: step.message for step in job.steps}["curate"] == "95 % rejected Accept it."
        running.turn(2)
    assert launched(world) == []


@pytest.mark.parametrize(
    ("code", "expected"), [("invalid_training_file", "invalid_training_file"), ("", "dataset_failed")]
)
def test_a_failed_dataset_fails_its_job_with_its_code(world: World, code: str, expected: str) -> None:
    world.submit("ftjob-1")
    failed = {"code": code, "message": "line 3 is no JSON", "remedy": "Mend line 3."}
    world.dataset(ds.DATASET_STATE_FAILED, publication={"job": "ftjob-1"}, **failed)
    with world.started() as running:
        job = running.settle("ftjob-1", FAILED)
        assert (job.error_code, job.error, job.remedy) == (expected, "line 3 is no JSON", "Mend line 3.")
    assert launched(world) == []


def test_auto_hyperparameters_depend_on_the_records(world: World) -> None:
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": 2}
    world.ready(train=80)
    with world.started() as running:
        world.submit("ftjob-1", openai={"hyperparameters": auto, "seed": 7})
        running.until(lambda _: bool(world.launcher.orders))
        config = world.launcher.orders[0].plan["config"]
        assert (config["num_epochs"], config["micro_batch_size"], config["seed"]) == (10, 8, 7)
        assert config["learning_rate"] == pytest.approx(4e-4)


def test_an_unknown_base_model_fails_naming_the_nearest(world: World) -> None:
    world.ready(("ftjob-1", {"base_model": "tiny-lama"}, None))
    with world.started() as running:
        job = running.settle("ftjob-1", FAILED)
        assert job.error_code == "invalid_request"
        assert 'Did you mean "tiny-llama"' in job.error


def test_full_parameter_models_are_refused_before_training_where_only_adapters_are_served(world: World) -> None:
    world.ready(("ftjob-1", {"adapter": None}, {"suffix": "demo"}), ("ftjob-2", {"adapter": None}, None))
    with world.started() as running:
        assert "takes adapters alone" in running.settle("ftjob-1", FAILED).error
        running.until(lambda _: len(world.launcher.orders) == 1)


def test_a_job_that_deploys_succeeds_only_when_its_model_is_served(world: World) -> None:
    world.ready(("ftjob-1", {}, {"suffix": "demo", "alias": "faq@prod"}))
    with world.started() as running:
        train(world, running)
        running.until(lambda _: running.job("ftjob-1").model == MODEL)
        for state in (sv.MODEL_STATE_LOADING, sv.MODEL_STATE_PROVING):
            world.model(MODEL, state)
            running.turn(2)
            assert running.job("ftjob-1").state == tr.JOB_STATE_RUNNING
        world.model(MODEL, sv.MODEL_STATE_SERVED, message="no measurable change")
        job = running.settle("ftjob-1", SUCCEEDED)
        assert {step.name: step.message for step in job.steps}["deploy"] == "no measurable change"


def test_a_trained_job_says_in_its_events_what_its_model_waits_for(world: World) -> None:
    def told() -> list[str]:
        return [event.message for event in running.controller.events.of(["ftjob-1"])]

    world.ready(("ftjob-1", {}, {"suffix": "demo"}))
    with world.started() as running:
        train(world, running)
        world.clock.advance(2)
        running.until(lambda _: "Job running: waiting for serving" in told())
        for _ in range(2):
            world.model(MODEL, sv.MODEL_STATE_LOADING, message="no node has room")
            world.clock.advance(2)
            running.until(lambda _: "Job running: no node has room" in told())
            running.turn(3)
        world.model(MODEL, sv.MODEL_STATE_SERVED)
        running.settle("ftjob-1", SUCCEEDED)
        running.until(lambda _: "Job succeeded" in told())
        assert told().count("Job running: no node has room") == 1


def test_a_refused_model_fails_its_job_and_may_be_asked_for_again(world: World) -> None:
    world.ready(("ftjob-1", {}, {"suffix": "demo"}))
    with world.started() as running:
        train(world, running)
        running.until(lambda _: running.job("ftjob-1").model == MODEL)
        world.model(MODEL, sv.MODEL_STATE_REFUSED, message="contract test: token 1 is 5", remedy="See the proof.")
        job = running.settle("ftjob-1", FAILED)
        assert (job.error_code, job.error) == ("deployment_failed", "contract test: token 1 is 5")

        world.ready(("ftjob-1", {}, {"suffix": "demo"}))
        running.settle("ftjob-1", tr.JOB_STATE_RUNNING)
        running.turn(2)
        assert running.job("ftjob-1").state == tr.JOB_STATE_RUNNING
        world.model(MODEL, sv.MODEL_STATE_SERVED)
        running.settle("ftjob-1", SUCCEEDED)
    assert len(launched(world)) == 1


def test_events_of_the_attempt_move_its_run(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = world.launcher.orders[0].run
        world.event(run, 1, 1, type="started")
        world.event(run, 1, 2, type="step", step=3, max_steps=10, loss=1.25, tokens=300, eta_s=7.0)
        world.event(run, 2, 9, type="step", step=9, max_steps=10, loss=0.5)
        world.clock.advance(2)
        running.until(lambda _: running.run().step == 3)
        job = running.settle("ftjob-1", tr.JOB_STATE_RUNNING)
        step = next(step for step in job.steps if step.name == "train")
        assert (step.message, step.done, step.total, step.unit) == ("loss 1.250", 3, 10, "steps")
        assert [event.seq for event in running.controller.events.of([run])] == [1, 2, 9]
        labels = {"run": run, "dataset": running.run().dataset}
        assert sample("shortstack_train_loss", running, **labels) == 1.25
        assert sample("shortstack_train_step", running, **labels) == 3
        assert sample("shortstack_train_max_steps", running, **labels) == 10


def test_an_event_whose_payload_is_no_object_is_passed_over(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = launched(world)[0][0]
        bodies, kinds = ("[]", "3", '"step"', "null", "{"), ("step", "checkpoint", "waiting", "started")
        for seq, (kind, body) in enumerate(itertools.product(kinds, bodies)):
            odd = tr.TrainingEvent(run=run, attempt=1, seq=seq, type=kind, payload_json=body)
            world.send(topics.TRAINING_EVENTS, run, odd)
        world.event(run, 1, 99, type="step", step=1, max_steps=2, loss=1.0)
        running.until(lambda _: running.run().step == 1)
        assert [e.seq for e in running.controller.events.of([run])] == [99]


def test_what_is_no_request_is_set_aside_once_and_the_next_flows(world: World) -> None:
    world.send(topics.TRAINING_REQUESTS, "x", b"{broken")
    world.send(topics.TRAINING_REQUESTS, "x", {"kind": "sumbit", "job": "ftjob-1"})
    world.submit("ftjob-2")
    for _ in range(2):
        with world.started() as running:
            running.turn(2)
            assert running.job("ftjob-2").state == tr.JOB_STATE_VALIDATING_FILES
    letters = world.messages(topics.dead_letters(topics.TRAINING_REQUESTS))
    assert len(letters) == 2
    remedies = {dict(letter.headers)["dlq-remedy"].decode() for letter in letters}
    assert any('Did you mean "submit"?' in remedy for remedy in remedies)


@pytest.mark.parametrize("kind", [Transient, Forbidden, Fatal])
def test_what_cannot_be_cleared_away_keeps_no_run_from_its_end(
    world: World, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(run: str) -> None:
        raise kind("s3://bucket: deletes are denied")

    monkeypatch.setattr(world.launcher, "forget", forget)
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        train(world, running)
        running.settle("ftjob-1", SUCCEEDED)
        assert running.run().state == tr.RUN_STATE_SUCCEEDED
    assert "deletes are denied" in "".join(capsys.readouterr())


def test_a_run_whose_dataset_was_deleted_fails_by_name(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.turn()
        world.dataset(ds.DATASET_STATE_DELETED)
        job = running.settle("ftjob-1", FAILED)
        assert "no longer there" in job.error


def test_requests_carry_no_more_than_a_wish(world: World) -> None:
    world.submit("ftjob-1", secret="x")
    with world.started() as running:
        assert orjson.loads(running.settle("ftjob-1", tr.JOB_STATE_VALIDATING_FILES).request_json) == {"train": {}}
