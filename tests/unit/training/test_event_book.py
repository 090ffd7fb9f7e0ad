"""What is kept of a run's events: every one once, and of a long run what was said seldom."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.world import World, export

from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.event_book import EventBook


def event(seq: int, kind: str = "step", *, attempt: int = 1, **payload: object) -> tr.TrainingEvent:
    made = tr.TrainingEvent(
        run="r", attempt=attempt, seq=seq, type=kind, payload_json=orjson.dumps(payload).decode(), message=f"#{seq}"
    )
    made.time.FromNanoseconds(attempt * 10**12 + seq)
    return made


def test_a_long_run_keeps_its_checkpoints_with_their_metrics_and_what_was_said_seldom() -> None:
    book = EventBook()
    assert book.add(event(1, "started"))
    assert book.add(event(2, "warning"))
    seq = 2
    for step in range(1, 5001):
        seq += 1
        book.add(event(seq, step=step, loss=1.0))
        if step % 1000 == 0:
            seq += 2
            book.add(event(seq - 1, "checkpoint", step=step))
            book.add(event(seq, "eval", step=step, eval_loss=2.0))
    found = book.of(["r"])
    kinds = [one.type for one in found]
    assert kinds[:2] == ["started", "warning"]
    assert kinds.count("checkpoint") == kinds.count("eval") == 5
    steps = {orjson.loads(one.payload_json)["step"] for one in found if one.type == "step"}
    assert {1000, 2000, 3000, 4000, 5000, *range(4010, 5001)} <= steps
    assert len(found) < 1100
    assert found == sorted(found, key=lambda one: one.seq)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), max_size=120))
def test_every_event_is_news_once_whatever_the_order(arrivals: list[tuple[int, int]]) -> None:
    book, known = EventBook(), set()
    for attempt, seq in arrivals:
        assert book.add(event(seq, "warning", attempt=attempt)) == ((attempt, seq) not in known)
        known.add((attempt, seq))
    assert [(one.attempt, one.seq) for one in book.of(["r"])] == sorted(known)


@pytest.mark.parametrize("body", ["[]", "3", '"step"', "null"])
def test_a_payload_that_is_no_object_has_no_step(body: str) -> None:
    book = EventBook()
    for seq, kind in enumerate(("step", "checkpoint", "eval")):
        assert book.add(tr.TrainingEvent(run="r", attempt=1, seq=seq, type=kind, payload_json=body))
    assert len(book.of(["r"])) == 3


def test_what_ended_long_ago_is_let_go_and_stays_so_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ready(("ftjob-1", {}, None))
    with world.started() as running:
        running.until(lambda _: bool(world.launcher.orders))
        run = world.launcher.orders[0].run
        world.event(run, 1, 1, type="step", step=1, max_steps=1, loss=1.0)
        running.until(lambda _: running.run().step == 1)
        world.launcher.succeed(run, 1, export())
        running.settle("ftjob-1", tr.JOB_STATE_SUCCEEDED)
        world.clock.advance(timedelta(days=6).total_seconds())
        running.turn(2)
        assert {e.type for e in running.controller.events.of([run, "ftjob-1"])} == {"step", "job"}
        world.clock.advance(timedelta(days=2).total_seconds())
        running.turn(2)
        assert running.controller.events.of([run, "ftjob-1"]) == []
    with world.started() as running:
        running.turn(2)
        assert running.controller.events.owners() == []
