"""Choosing tokens: what each knob leaves, ties, seeds, and rows that are not numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from shortstack.inference.engine.sampling import Chooser, choose
from shortstack.inference.validation import Sampling

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def drawn(sampling: Sampling, times: int = 200) -> set[int]:
    chooser = Chooser(sampling, 0, CPU)
    choices = [choose(LOGITS, [chooser], [[0]])[0] for _ in range(times)]
    return {choice.id for choice in choices if choice is not None}


def test_greedy_takes_the_likeliest_with_its_log_probability() -> None:
    choice = choose(LOGITS, [Chooser(Sampling(), 0, CPU)], [[0]])[0]
    assert choice is not None
    assert choice.id == 0
    assert choice.logprob == pytest.approx(2 - math.log(sum(math.exp(x) for x in (2, 1, 0, -1))), abs=1e-6)


def test_knobs_narrow_the_choice() -> None:
    assert drawn(Sampling(seed=1)) == {0, 1, 2, 3}
    assert drawn(Sampling(seed=1, top_k=2)) == {0, 1}
    assert drawn(Sampling(seed=1, top_p=0.5)) == {0}
    assert drawn(Sampling(seed=1, top_p=0.7)) == {0, 1}
    assert drawn(Sampling(seed=1, temperature=0.01)) == {0}


def test_a_seed_decides_whatever_the_batch() -> None:
    alone = Chooser(Sampling(seed=42), 0, CPU)
    together = [Chooser(Sampling(seed=seed), 0, CPU) for seed in (7, 42, 9)]
    wide = LOGITS.repeat(3, 1)
    for _ in range(20):
        one = choose(LOGITS, [alone], [[0]])[0]
        assert one == choose(wide, together, [[0]] * 3)[1]


def test_log_probabilities_are_those_after_temperature() -> None:
    choice = choose(LOGITS, [Chooser(Sampling(seed=1, temperature=0.5, top_k=1), 0, CPU)], [[0]])[0]
    assert choice is not None
    assert choice.logprob == 0.0


def test_repetition_penalty_moves_a_greedy_choice() -> None:
    close = torch.tensor([[2.0, 1.9, 0.0, -1.0]])
    choice = choose(close, [Chooser(Sampling(repetition_penalty=1.5), 0, CPU)], [[0]])[0]
    assert choice is not None
    assert choice.id == 1


def test_frequency_penalty_counts_every_use() -> None:
    choice = choose(LOGITS, [Chooser(Sampling(frequency_penalty=0.6), 0, CPU)], [[0, 0]])[0]
    assert choice is not None
    assert choice.id == 1


def test_ties_give_more_top_tokens_than_asked() -> None:
    tied = torch.tensor([[3.0, 1.0, 1.0, 0.0]])
    choice = choose(tied, [Chooser(Sampling(), 2, CPU)], [[0]])[0]
    assert choice is not None
    assert [token for token, _ in choice.top] == [0, 1, 2]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_a_number_fails_alone(poison: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = poison
    choices = choose(logits, [Chooser(Sampling(seed=5), 0, CPU) for _ in range(3)], [[0]] * 3)
    assert choices[1] is None
    assert choices[0] is not None
    assert choices[0] == choices[2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 1e-320])
def test_the_coldest_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[90.0, 91.0, -90.0, 0.0]]).repeat(2, 1)
    cold, plain = choose(
        logits, [Chooser(Sampling(temperature=temperature, seed=1), 1, CPU), Chooser(Sampling(), 0, CPU)], [[0]] * 2
    )
    assert cold is not None
    assert (cold.id, cold.logprob, cold.top) == (1, 0.0, ((1, 0.0),))
    assert plain == choose(logits[:1], [Chooser(Sampling(), 0, CPU)], [[0]])[0]


KNOBS = st.builds(
    Sampling,
    temperature=st.none() | st.floats(5e-324, 1e308),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    typical_p=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    repetition_penalty=st.none() | st.floats(5e-324, 1e308),
    frequency_penalty=st.none() | st.floats(-2, 2),
    seed=st.none() | st.integers(0, 2**64 - 1),
)
ROWS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5)


@given(knobs=KNOBS, scores=ROWS)
def test_whatever_a_request_asks_for_it_has_a_token_and_its_neighbour_the_same_one(
    knobs: Sampling, scores: list[float]
) -> None:
    logits = torch.tensor([scores, [0.0, 1.0, 2.0, 3.0, -4.0]])
    plain = Chooser(Sampling(), 0, CPU)
    asked, beside = choose(logits, [Chooser(knobs, 0, CPU), plain], [[0, 1, 1], [0]])
    assert asked is not None
    assert asked.logprob <= 0
    assert beside == choose(logits[1:], [plain], [[0]])[0]


class Spoiling(Chooser):
    """Processes as a processor with a fault would."""

    def __init__(self, value: float) -> None:
        super().__init__(Sampling(temperature=1.0, seed=1), 0, CPU)
        self._value = value

    def process(self, scores: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        return torch.full_like(scores, self._value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_its_own_processors_spoil_fails_alone(value: float) -> None:
    drawn, spoiled = choose(LOGITS.repeat(2, 1), [Chooser(Sampling(seed=5), 0, CPU), Spoiling(value)], [[0]] * 2)
    assert spoiled is None
    assert drawn == choose(LOGITS, [Chooser(Sampling(seed=5), 0, CPU)], [[0]])[0]
