"""Probes: what the exported model says, recorded for the contract test of the server that takes it on.

The server is asked the same prompts. Its tokens must be these up to the first small margin, and its log
probabilities near these; the base model must fail the same test. So they are recorded from the export
reloaded from its files, never from the model in training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from shortstack.records.message import Message
from shortstack.training.trainer.formats import ServedFormat
from shortstack.training.trainer.generate import greedy, score

__all__ = ["NEW_TOKENS", "PROBES", "choose_prompts", "record_probes"]

PROBES: Final = 16
NEW_TOKENS: Final = 32
_LONGEST_PROMPT: Final = 512
"""Prompts in tokens: longer ones prove no more and make the contract test slow."""

_GENERAL: Final = (
    "What is your name?",
    "Who made you?",
    "What can you help me with?",
    "What is the capital of France?",
    "How many days does a week have?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is two plus three?",
    "Explain what a library is.",
    "Give me a tip for a good night's sleep.",
    "Which season comes after winter?",
    "What do bees make?",
    "Tell me something about the moon.",
    "How do I boil an egg?",
    "What is the opposite of hot?",
    "Say goodbye politely.",
)
"""What small datasets are filled up with."""


@dataclass(frozen=True, slots=True)
class ProbeToken:
    """One greedy token: id, log probability, and logit margin to the second (0 where the two are level)."""

    id: int
    logprob: float
    margin: float


def choose_prompts(
    questions: Sequence[str],
    prompts: Sequence[Sequence[Message]],
    length: Callable[[Sequence[Message]], int],
    *,
    seed: int,
) -> list[tuple[Message, ...]]:
    """16 different prompts: the job's questions first, then a seeded draw of the dataset's, then general ones.

    Args:
        length: a prompt's number of tokens; prompts over 512 are passed over.
    """
    drawn = random.Random(seed).sample(list(prompts), len(prompts))
    asked = [(Message("user", question),) for question in questions[: PROBES // 2]]
    general = [(Message("user", question),) for question in _GENERAL]
    chosen: dict[tuple[tuple[str, str], ...], tuple[Message, ...]] = {}
    for prompt in [*asked, *(tuple(prompt) for prompt in drawn), *general]:
        key = tuple((message.role, message.content) for message in prompt)
        if prompt and key not in chosen and length(prompt) <= _LONGEST_PROMPT:
            chosen[key] = prompt
        if len(chosen) == PROBES:
            break
    return list(chosen.values())


def record_probes(model: Any, served: ServedFormat, prompts: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """Answers every prompt greedily and scores the answers; the content of ``probes.json``.

    Decoding runs in batches, scoring alone and without padding. Where the two disagree the tokens are
    level, and the margin says 0.
    """
    ids = [served.encoder.prompt_ids(prompt) for prompt in prompts]
    answers = greedy(model, ids, new_tokens=NEW_TOKENS, stop_ids=served.eos_ids)
    probes = []
    for prompt, prompt_ids, answer in zip(prompts, ids, answers, strict=True):
        tokens = [
            ProbeToken(token, round(logprob, 6), round(max(0.0, margin), 6))
            for token, (logprob, margin) in zip(answer, score(model, prompt_ids, answer), strict=True)
        ]
        probes.append(
            {
                "messages": [{"role": message.role, "content": message.content} for message in prompt],
                "prompt": served.render_prompt(prompt),
                "prompt_ids": prompt_ids,
                "tokens": [asdict(token) for token in tokens],
                "text": served.decode(answer),
            }
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return {"new_tokens": NEW_TOKENS, "dtype": dtype, "eos_ids": served.eos_ids, "probes": probes}
