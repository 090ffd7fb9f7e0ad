"""Gauges of runs: what goes on now and what ended last, and never more series than that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.metrics import Metrics
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.run_gauges import RunGauges

ACTIVE = frozenset({tr.RUN_STATE_RUNNING})
NAMES = ("train_loss", "train_step", "train_max_steps", "train_tokens_per_second")


def run(number: int, state: tr.RunState.ValueType = tr.RUN_STATE_RUNNING, steps: int = 100) -> tr.RunSnapshot:
    made = tr.RunSnapshot(run=f"r{number}", dataset="faq", state=state, step=7, max_steps=steps, loss=1.5)
    made.tokens_per_second = 90.0
    made.updated_at.FromSeconds(1000 + number)
    return made


def shown(metrics: Metrics, name: str) -> dict[str, float]:
    families = {family.name: family for family in metrics.registry.collect()}
    return {sample.labels["run"]: sample.value for sample in families[f"shortstack_{name}"].samples}


def test_an_ended_run_keeps_its_loss_but_trains_no_tokens() -> None:
    metrics = Metrics("training")
    gauges = RunGauges(metrics)
    gauges.show([run(1)], ACTIVE)
    assert shown(metrics, "train_tokens_per_second") == {"r1": 90.0}
    gauges.show([run(1, tr.RUN_STATE_SUCCEEDED)], ACTIVE)
    assert shown(metrics, "train_tokens_per_second") == {"r1": 0.0}
    assert shown(metrics, "train_loss") == {"r1": 1.5}


def test_a_run_that_waits_has_no_loss_yet() -> None:
    metrics = Metrics("training")
    RunGauges(metrics).show([run(1, tr.RUN_STATE_QUEUED, steps=0)], ACTIVE)
    assert shown(metrics, "train_loss") == {}


def test_an_active_run_is_shown_however_many_ended_after_it_began() -> None:
    metrics = Metrics("training")
    ended = [run(number, tr.RUN_STATE_SUCCEEDED) for number in range(2, 40)]
    RunGauges(metrics).show([run(1), *ended], ACTIVE)
    assert set(shown(metrics, "train_step")) == {"r1", *(f"r{number}" for number in range(33, 40))}


@given(st.lists(st.lists(st.integers(0, 30), unique=True), min_size=1, max_size=6))
def test_series_stay_few_and_say_the_same_runs(rounds: list[list[int]]) -> None:
    metrics = Metrics("training")
    gauges = RunGauges(metrics)
    for numbers in rounds:
        gauges.show([run(number) for number in numbers], ACTIVE)
        names = {name: set(shown(metrics, name)) for name in NAMES}
        assert len(set(map(frozenset, names.values()))) == 1
        assert names["train_loss"] == {f"r{number}" for number in sorted(numbers)[-8:]}
