"""Attempts one after the other: what is a death and what is not, pauses, turns, and how a run ends."""

from __future__ import annotations

from pathlib import Path

from tests.unit.training.world import World, export, launched, train

from shortstack.messages.v1 import training_pb2 as tr

SUCCEEDED, FAILED = tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED


def test_an_attempt_that_is_lost_is_followed_by_the_next(world: World) -> None:
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = world.launcher.orders[0].run
        world.launcher.lose(run, 1)
        running.until(lambda _: len(world.launcher.orders) == 2)
        world.launcher.succeed(run, 2, export())
        running.settle("ftjob-1", SUCCEEDED)
    assert launched(world) == [(run, 1), (run, 2)]


def test_attempts_that_die_again_and_again_fail_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 2})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        for attempt in (1, 2):
            running.until(lambda _, attempt=attempt: len(world.launcher.orders) == attempt)
            world.launcher.lose(*launched(world)[-1])
        job = running.settle("ftjob-1", FAILED)
        assert job.error_code == "training_failed"
        assert "died" in job.error
        assert "See " in job.remedy
    assert len(launched(world)) == 2


def test_the_pause_between_attempts_doubles_and_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_back_off_s": 5})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.lose(*launched(world)[-1])
        running.until(lambda _: running.run().state == tr.RUN_STATE_WAITING)
        assert "attempt 1 broke off: its agent died without a word. After a pause of 5 s" in running.run().message
        world.clock.advance(4)
        running.turn(3)
        assert len(launched(world)) == 1
    with world.started() as running:  # the pause is no secret of one process
        running.turn(3)
        assert len(launched(world)) == 1
        world.clock.advance(1.5)
        running.until(lambda _: len(launched(world)) == 2)
        running.until(lambda _: (running.run().state, running.run().message) == (tr.RUN_STATE_STARTING, ""))
        world.launcher.lose(*launched(world)[-1])
        running.until(lambda _: "After a pause of 10 s" in running.run().message)
        world.cancel("ftjob-1")
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
    assert len(launched(world)) == 2


def test_attempts_whose_trainer_never_began_are_no_deaths(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 2, "training_back_off_s": 5})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        for attempt in range(1, 12):
            running.until(lambda _, attempt=attempt: len(launched(world)) == attempt)
            world.launcher.lose(*launched(world)[-1], began=False)
            running.until(lambda _, attempt=attempt: running.run().attempt == attempt + 1)
            world.clock.advance(301)
        train(world, running, 12)
        running.settle("ftjob-1", SUCCEEDED)


def test_a_run_that_never_begins_lets_others_take_its_turn_and_takes_it_back(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_back_off_s": 5})
    world.ready(("ftjob-1", {"seed": 1}, None))
    with world.started() as running:
        running.until(lambda _: len(launched(world)) == 1)
        first = launched(world)[0][0]
        world.ready(("ftjob-1", {"seed": 1}, None), ("ftjob-2", {"seed": 2}, None))
        running.turn(4)
        assert len(launched(world)) == 1
        world.launcher.lose(first, 1, began=False)
        running.until(lambda _: len(launched(world)) == 2)
        second = launched(world)[1][0]
        assert second != first

        world.clock.advance(301)  # its pause is over, its turn is another's
        running.turn(4)
        assert len(launched(world)) == 2
        waits = running.controller.shown()[f"run/{first}"].run
        assert waits.state == tr.RUN_STATE_WAITING
        assert "attempt 2 starts when another run has ended" in waits.message

        world.launcher.succeed(second, 1, export())
        running.settle("ftjob-2", SUCCEEDED)
        running.until(lambda _: launched(world)[2:] == [(first, 2)])
        world.launcher.wait(first, 2, "no node has room")  # launched, so it is its turn, also while it waits
        world.ready(*((f"ftjob-{n}", {"seed": n}, None) for n in (1, 2, 3)))
        world.clock.advance(301)
        running.turn(4)
        assert launched(world)[2:] == [(first, 2)]
        world.launcher.succeed(first, 2, export())
        running.settle("ftjob-1", SUCCEEDED)
        running.until(lambda _: len(launched(world)) == 4)


def test_runs_that_never_begin_take_turns(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_back_off_s": 5})
    world.ready(*((f"ftjob-{n}", {"seed": n}, None) for n in (1, 2)))
    with world.started() as running:
        for number in range(1, 7):
            running.until(lambda _, number=number: len(launched(world)) == number)
            world.launcher.lose(*launched(world)[-1], began=False)
            running.turn(2)
            world.clock.advance(301)
    assert sorted(attempt for _, attempt in launched(world)[:6]) == [1, 1, 2, 2, 3, 3]


def test_a_run_that_died_while_it_trained_keeps_its_turn_over_its_pause(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_back_off_s": 5})
    world.ready(*((f"ftjob-{n}", {"seed": n}, None) for n in (1, 2)))
    with world.started() as running:
        running.until(lambda _: len(launched(world)) == 1)
        run = launched(world)[0][0]
        world.launcher.lose(run, 1)
        running.turn(4)
        assert len(launched(world)) == 1
        world.clock.advance(6)
        running.until(lambda _: launched(world) == [(run, 1), (run, 2)])


def test_a_further_checkpoint_forgives_deaths_and_the_same_one_does_not(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 2})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        for attempt, step in ((1, 10), (2, 20), (3, 30), (4, 30)):
            running.until(lambda _, attempt=attempt: len(launched(world)) == attempt)
            run = launched(world)[-1][0]
            world.event(run, attempt, 1, type="checkpoint", step=step)
            running.until(lambda _, step=step: running.run().checkpoint_step == step)
            running.turn()
            world.launcher.lose(run, attempt)
            running.turn()
        running.settle("ftjob-1", FAILED)
    assert len(launched(world)) == 4


def test_the_deaths_of_a_run_that_begins_anew_are_forgiven_from_its_first_checkpoint_on(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 2})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: len(launched(world)) == 1)
        run = launched(world)[0][0]
        world.event(run, 1, 1, type="checkpoint", step=100)
        running.until(lambda _: running.run().checkpoint_step == 100)
        world.cancel("ftjob-1")
        running.until(lambda _: running.run().state == tr.RUN_STATE_CANCELLED)
        assert world.launcher.forgotten == [run]  # what it had stored is gone
        world.ready(("ftjob-1", {}, None))
        for attempt, step in ((2, 10), (3, 20), (4, 30)):
            running.until(lambda _, attempt=attempt: launched(world)[-1] == (run, attempt))
            world.event(run, attempt, 1, type="checkpoint", step=step)
            running.until(lambda _, step=step: running.run().checkpoint_step == step)
            world.launcher.lose(run, attempt)
        train(world, running, 5)
        running.settle("ftjob-1", SUCCEEDED)


def test_a_run_that_failed_keeps_what_another_attempt_needs(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 1})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.lose(*launched(world)[-1])
        running.settle("ftjob-1", FAILED)
        assert world.launcher.forgotten == []
        world.ready(("ftjob-1", {}, None))
        train(world, running, 2)
        running.settle("ftjob-1", SUCCEEDED)
    assert world.launcher.forgotten == [launched(world)[0][0]]


def test_being_asked_to_stop_is_no_death(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_max_attempts": 1})
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        world.launcher.stop(1)
        train(world, running, 2)
        running.settle("ftjob-1", SUCCEEDED)


def test_runs_wait_for_their_turn(tmp_path: Path) -> None:
    world = World(tmp_path, {"training_parallel": 2})
    world.ready(*((f"ftjob-{n}", {"seed": n}, None) for n in range(4)))
    with world.started() as running:
        running.turn(4)
        assert len(launched(world)) == 2
        world.launcher.succeed(*launched(world)[0], export())
        running.until(lambda _: len(world.launcher.orders) == 3)
        states = [r.run.state for r in running.controller.shown().values() if r.WhichOneof("record") == "run"]
        assert states.count(tr.RUN_STATE_QUEUED) == 1
