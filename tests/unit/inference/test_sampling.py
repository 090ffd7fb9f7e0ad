"""Choosing tokens: what each knob leaves, ties, seeds, and rows that are not numbers."""

from __future__ import annotations

import math

import pytest
import torch

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
