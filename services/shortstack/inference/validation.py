"""The rules of TGI's router on a generate request, in its order and words; the first broken rule wins."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shortstack.inference.errors import Rejected
from shortstack.inference.generate_request import Parameters, TextRequest

__all__ = ["Job", "Limits", "Sampling", "check_best_of", "check_stream", "validate"]

_CHECKED_NEW_TOKENS: Final = 1024
"""TGI checks `inputs + min(max_new_tokens, 1024)` against the total (tgi-real.md)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows; names and meanings as in `/info`."""

    max_input_tokens: int
    max_total_tokens: int
    max_stop_sequences: int
    max_best_of: int
    max_top_n_tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``None`` is off; ``seed`` is None for greedy choice."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    watermark: bool = False
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed every rule.

    Attributes:
        prompt: token ids, 1 ≤ length ≤ max_input_tokens, already truncated.
        max_new_tokens: tokens to generate at most; prompt and answer fit max_total_tokens.
        stop: texts that end the answer.
        top_n: most likely tokens to report at each step; 0 for none.
        adapter_id: the adapter asked for, or None for the base model.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    top_n: int = 0
    adapter_id: str | None = None


def _positive(name: str) -> str:
    return f"`{name}` must be strictly positive"


def _open_unit(value: float | None) -> bool:
    return value is None or 0.0 < value < 1.0


def _reject(message: str, param: str) -> Rejected:
    return Rejected(message, param=param)


def _samples(p: Parameters) -> bool:
    return p.do_sample or any(x is not None for x in (p.temperature, p.top_k, p.top_p, p.typical_p))


def check_best_of(p: Parameters, limits: Limits) -> int:
    """How many answers to draw.

    Raises:
        Rejected: more than the server allows.
    """
    count = 1 if p.best_of is None else max(p.best_of, 1)
    if count > limits.max_best_of:
        raise _reject(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {count}", "best_of")
    return count


def check_stream(p: Parameters) -> None:
    """Refuses what a stream cannot carry.

    Raises:
        Rejected: `best_of` above 1, or prefill details.
    """
    if p.best_of is not None and p.best_of > 1:
        raise _reject("`best_of` != 1 is not supported when streaming tokens", "best_of")
    if p.decoder_input_details:
        message = "`decoder_input_details` == true is not supported when streaming tokens"
        raise _reject(message, "decoder_input_details")


def _check_values(request: TextRequest, limits: Limits) -> None:
    p = request.parameters
    many = p.best_of is not None and p.best_of > 1
    max_stop, max_top = limits.max_stop_sequences, limits.max_top_n_tokens
    frequency = p.frequency_penalty
    rules: tuple[tuple[bool, str, str], ...] = (
        (not many or _samples(p), "you must use sampling when `best_of` is > 1", "best_of"),
        (p.temperature is None or p.temperature > 0, _positive("temperature"), "temperature"),
        (
            p.repetition_penalty is None or p.repetition_penalty > 0,
            _positive("repetition_penalty"),
            "repetition_penalty",
        ),
        (
            frequency is None or -2.0 <= frequency <= 2.0,
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
            "frequency_penalty",
        ),
        (_open_unit(p.top_p), "`top_p` must be > 0.0 and < 1.0", "top_p"),
        (_open_unit(p.typical_p), "`typical_p` must be > 0.0 and < 1.0", "typical_p"),
        (p.top_k is None or p.top_k > 0, _positive("top_k"), "top_k"),
        (p.max_new_tokens != 0, _positive("max_new_tokens"), "max_new_tokens"),
        (len(p.stop) <= max_stop, f"`stop` supports up to {max_stop} stop sequences. Given: {len(p.stop)}", "stop"),
        (not many or p.seed is None, "`seed` must not be set when `best_of` > 1", "seed"),
        (
            (p.top_n_tokens or 0) <= max_top,
            f"`top_n_tokens` must be >= 0 and <= {max_top}. Given: {p.top_n_tokens}",
            "top_n_tokens",
        ),
        (request.inputs != "", "`inputs` cannot be empty", "inputs"),
        (
            p.truncate is None or 0 < p.truncate <= limits.max_input_tokens,
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {p.truncate}",
            "truncate",
        ),
    )
    for passes, message, param in rules:
        if not passes:
            raise _reject(message, param)


def _check_lengths(p: Parameters, tokens: int, limits: Limits) -> int:
    """Tokens to generate at most."""
    room = max(limits.max_total_tokens - tokens, 0)
    wanted = room if p.max_new_tokens is None else p.max_new_tokens
    checked = min(wanted, _CHECKED_NEW_TOKENS)
    if tokens + checked > limits.max_total_tokens or room == 0:
        message = (
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {tokens} `inputs` tokens and {checked} `max_new_tokens`"
        )
        raise _reject(message, "max_new_tokens")
    if tokens > limits.max_input_tokens:
        message = f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {tokens}"
        raise _reject(message, "inputs")
    return min(wanted, room)


def _sampling(p: Parameters) -> Sampling:
    seed = (secrets.randbits(64) if p.seed is None else p.seed) if _samples(p) else None
    return Sampling(
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        typical_p=p.typical_p,
        repetition_penalty=p.repetition_penalty,
        frequency_penalty=p.frequency_penalty,
        watermark=p.watermark,
        seed=seed,
    )


def validate(request: TextRequest, limits: Limits, encode: Callable[[str], list[int]]) -> Job:
    """Checks every rule, tokenizes, and returns what the engine needs.

    Raises:
        Rejected: the first rule that is broken, in TGI's words.
    """
    p = request.parameters
    _check_values(request, limits)
    prompt = encode(request.inputs)
    if p.truncate is not None:
        prompt = prompt[-p.truncate :]
    if not prompt:
        raise _reject("`inputs` cannot be empty", "inputs")
    max_new_tokens = _check_lengths(p, len(prompt), limits)
    if p.grammar is not None:
        raise _reject("grammar is not supported", "grammar")
    return Job(
        prompt=tuple(prompt),
        max_new_tokens=max_new_tokens,
        stop=tuple(p.stop),
        sampling=_sampling(p),
        top_n=p.top_n_tokens or 0,
        adapter_id=p.adapter_id,
    )
