"""Greedy answers of a model in memory: for the samples before and after, and for the probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["greedy", "score"]

_BATCH = 8


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, new_tokens: int, stop_ids: Sequence[int]
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to ``new_tokens`` and including the stop token that ends it.

    Prompts are padded on the left in batches of 8: decoding alone is five times slower on a CPU.
    """
    return [
        answer
        for start in range(0, len(prompts), _BATCH)
        for answer in _greedy_batch(model, prompts[start : start + _BATCH], new_tokens, frozenset(stop_ids))
    ]


@torch.inference_mode()
def _greedy_batch(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, stop_ids: frozenset[int]
) -> list[list[int]]:
    device = model.device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), device=device)
        mask[row, longest - len(prompt) :] = 1
    answers: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    cache = None
    step = ids
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step.shape[1] :]
        out = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if running[row]:
                answers[row].append(token)
                running[row] = token not in stop_ids
        if not any(running):
            break
        step = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
    return answers


@torch.inference_mode()
def score(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[tuple[float, float]]:
    """For each token of ``answer`` after ``prompt``: its log probability, and its margin.

    The margin is the token's logit less the best other token's: negative where another one would be chosen.
    One forward pass without padding, the softmax in fp32.
    """
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    logprobs = logits.log_softmax(-1)
    scores = []
    for position, token in enumerate(answer):
        others = logits[position].clone()
        others[token] = -torch.inf
        margin = (logits[position, token] - others.max()).item()
        scores.append((logprobs[position, token].item(), margin))
    return scores
