"""The engine's loop around a model that does as a test says: who fails with whom, and when it counts as stuck."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from shortstack.inference.engine.answer import Event, Failure, FinishReason, Step
from shortstack.inference.engine.engine import Engine
from shortstack.inference.metrics import Metrics
from shortstack.inference.validation import Job, Sampling

WAIT_S = 60.0


class Model:
    """Always the same scores; a pass waits while ``gate`` is closed."""

    def __init__(self) -> None:
        self.rows = SimpleNamespace(wipe=lambda *_: None, move=lambda *_: None, clear=lambda: None)
        self.device = torch.device("cpu")
        self.inside = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def read_prompt(self, *_: Any) -> Tensor:
        return self.next_tokens([0])

    def next_tokens(self, last: list[int], *_: Any) -> Tensor:
        self.inside.set()
        assert self.gate.wait(WAIT_S)
        return torch.tensor([[30.0, 40.0, 20.0, -30.0]]).repeat(len(last), 1)


class Codec:
    """A letter a token."""

    special: frozenset[int] = frozenset()
    eos: frozenset[int] = frozenset()

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return "x" * len(ids)


class Bench:
    """An engine on such a model, with a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.model = Model()
        self.engine = Engine(
            self.model,  # type: ignore[arg-type]
            Codec(),  # type: ignore[arg-type]
            Metrics(10, 20),
            max_batch=4,
            prefill_tokens=8,
            clock=lambda: self.now,
        )

    def ask(self, tokens: int, **sampling: Any) -> Queue[Event]:
        events: Queue[Event] = Queue()
        self.engine.submit(Job((1, 2), tokens, (), Sampling(**sampling)), None, events.put)
        return events


@pytest.fixture
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.model.gate.set()
    built.engine.stop(WAIT_S)


def last(events: Queue[Event]) -> Event:
    """The event that ends a request."""
    while True:
        event = events.get(timeout=WAIT_S)
        if isinstance(event, Failure) or event.answer is not None:
            return event


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 1e-38, "seed": 1},
        {"temperature": 1e-320, "top_p": 0.5, "seed": 1},
        {"repetition_penalty": 1e-40, "seed": 1},
    ],
    ids=str,
)
def test_a_request_with_extreme_knobs_leaves_the_one_beside_it_alone(bench: Bench, knobs: dict[str, Any]) -> None:
    innocent, extreme = bench.ask(8), bench.ask(4, **knobs)
    bench.engine.start()
    for events, tokens in ((innocent, 8), (extreme, 4)):
        end = last(events)
        assert isinstance(end, Step)
        assert end.answer is not None
        assert (end.answer.reason, end.answer.tokens) == (FinishReason.LENGTH, tokens)


def test_work_that_comes_after_long_idling_finds_the_engine_responsive(bench: Bench) -> None:
    bench.engine.start()
    bench.now = 1000.0
    assert bench.engine.responsive(60)
    bench.model.gate.clear()
    events = bench.ask(1)
    assert bench.model.inside.wait(WAIT_S)
    assert bench.engine.responsive(60)
    bench.now = 1061.0
    assert not bench.engine.responsive(60)
    bench.model.gate.set()
    assert isinstance(last(events), Step)


def test_more_work_does_not_hide_that_a_step_hangs(bench: Bench) -> None:
    bench.engine.start()
    bench.model.gate.clear()
    bench.ask(1)
    assert bench.model.inside.wait(WAIT_S)
    bench.now = 61.0
    bench.ask(1)
    assert not bench.engine.responsive(60)
