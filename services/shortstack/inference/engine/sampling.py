"""Choosing the next token, after TGI's processors and warpers, in their order and in float32.

Penalties first (greedy choice too), then for sampling: temperature, top-k, top-p, typical-p. The log
probabilities reported are those of the scores after all of these, as TGI reports them (tgi-wire/02).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from shortstack.inference.validation import Sampling

__all__ = ["Choice", "Chooser", "choose"]

_GAMMA: Final = 0.5
_DELTA: Final = 2.0
_HASH_KEY: Final = 15_485_863
"""Watermark of Kirchenbauer et al. 2023 with TGI's constants: half of the vocabulary, raised by 2."""
_LEAST: Final = torch.finfo(torch.float32).tiny
_MOST: Final = torch.finfo(torch.float32).max
"""Divisors below the one are 0 in float32; scores beyond the other are infinite, and no softmax takes those."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One chosen token: id, natural log probability, and the most likely ones as (id, logprob), best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def _repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    values, penalty = scores[seen], min(max(penalty, _LEAST), _MOST)
    moved = torch.where(values < 0, values * penalty, values / penalty).clamp(-_MOST, _MOST)
    return scores.index_put((seen,), moved)


def _frequency(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    counts = torch.bincount(seen, minlength=scores.numel()).to(scores)
    return scores - penalty * counts


def _watermark(scores: Tensor, last: int) -> Tensor:
    generator = torch.Generator().manual_seed(_HASH_KEY * last)
    green = torch.randperm(scores.numel(), generator=generator)[: int(scores.numel() * _GAMMA)]
    return scores.index_add(0, green.to(scores.device), scores.new_full((green.numel(),), _DELTA))


def _temperature(scores: Tensor, temperature: float) -> Tensor:
    """The best score becomes 0, so that none overflows however cold it is: only the unlikely ones fall to -inf."""
    return (scores - scores.max()) / max(temperature, _LEAST)


def _top_k(scores: Tensor, k: float) -> Tensor:
    kept = torch.topk(scores, min(int(k), scores.numel())).values[-1]
    return scores.masked_fill(scores < kept, -torch.inf)


def _top_p(scores: Tensor, p: float) -> Tensor:
    ordered, indices = torch.sort(scores)
    unlikely = ordered.softmax(-1).cumsum(-1) <= 1 - p
    unlikely[-1] = False
    return scores.masked_fill(unlikely.scatter(0, indices, unlikely), -torch.inf)


def _typical_p(scores: Tensor, p: float) -> Tensor:
    """Keeps the tokens whose surprise is nearest the entropy, up to mass ``p`` (Meister et al. 2022)."""
    logs = scores.log_softmax(-1)
    entropy = -(logs.exp() * logs).nansum()
    _, indices = torch.sort((-logs - entropy).abs())
    mass = logs.exp()[indices].cumsum(-1)
    last = min(int((mass < p).sum()), scores.numel() - 1)
    drop = torch.ones_like(scores, dtype=torch.bool)
    drop[indices[: last + 1]] = False
    return scores.masked_fill(drop, -torch.inf)


_WARPERS: Final[tuple[tuple[str, Callable[[Tensor, float], Tensor]], ...]] = (
    ("temperature", _temperature),
    ("top_k", _top_k),
    ("top_p", _top_p),
    ("typical_p", _typical_p),
)


class Chooser:
    """How one request chooses; holds its random state, so that its seed decides whatever batch it runs in."""

    def __init__(self, sampling: Sampling, top_n: int, device: torch.device) -> None:
        self._sampling = sampling
        self._top_n = top_n
        self._generator = None
        if sampling.seed is not None:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """Whether the scores are used as they come."""
        return self._sampling == Sampling()

    def process(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        """Scores float32 ``[vocab]`` after penalties and warpers; ``ids`` is prompt and answer so far."""
        s = self._sampling
        if s.repetition_penalty is not None and s.repetition_penalty != 1.0:
            scores = _repetition(scores, torch.tensor(ids, device=scores.device), s.repetition_penalty)
        if s.frequency_penalty:
            scores = _frequency(scores, torch.tensor(ids, device=scores.device), s.frequency_penalty)
        if s.watermark:
            scores = _watermark(scores, ids[-1])
        for name, warp in _WARPERS if s.seed is not None else ():
            value = getattr(s, name)
            if value is not None:
                scores = warp(scores, float(value))
        return scores

    def pick(self, logprobs: Tensor, best: int) -> Choice:
        """Draws from float32 ``[vocab]`` log probabilities, or takes ``best``, their argmax."""
        token = best
        if self._generator is not None:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=self._generator))
        return Choice(token, float(logprobs[token]), self._top(logprobs))

    def _top(self, logprobs: Tensor) -> tuple[tuple[int, float], ...]:
        """The ``top_n`` most likely tokens; ties with the last one are all reported, as in TGI."""
        if not self._top_n:
            return ()
        least = torch.topk(logprobs, self._top_n).values[-1]
        ids = torch.nonzero((logprobs >= least) & (logprobs > -torch.inf)).flatten()
        values, order = torch.sort(logprobs[ids], descending=True, stable=True)
        return tuple(zip(ids[order].tolist(), values.tolist(), strict=True))


def choose(logits: Tensor, choosers: Sequence[Chooser], histories: Sequence[Sequence[int]]) -> list[Choice | None]:
    """One token for each row of ``logits`` ``[rows, vocab]``.

    A row with a NaN or an infinity, or of which its own processors make no distribution, gives None: its request
    has failed, and no other row is touched.
    """
    scores = logits.to(torch.float32, copy=True)
    sound = scores.isfinite().all(-1)
    given = sound.tolist()
    for row, (chooser, ids) in enumerate(zip(choosers, histories, strict=True)):
        if given[row] and not chooser.plain:
            scores[row] = chooser.process(scores[row], ids)
    logprobs = scores.log_softmax(-1)
    # A softmax is NaN throughout where a score is +inf or NaN, or all are -inf: a draw from it raises.
    usable = (sound & ~logprobs.isnan().any(-1)).tolist()
    best = logprobs.argmax(-1).tolist()
    return [chooser.pick(logprobs[row], best[row]) if usable[row] else None for row, chooser in enumerate(choosers)]
