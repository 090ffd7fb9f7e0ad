"""TGI's JSON for answers, steps and headers; shapes as in tgi-wire/02, 03 and 04."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shortstack.inference.engine.answer import Answer, Step, Token
from shortstack.inference.generate_request import Parameters, TextRequest
from shortstack.inference.generation import Completion

__all__ = ["complete_body", "complete_headers", "step_event"]


def _number(logprob: float) -> float:
    """The shortest decimal that is this float32, which is what a log probability is on the wire."""
    return float(str(np.float32(logprob)))


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": _number(token.logprob), "special": token.special}


def _tokens(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    return [_token(token) for token in tokens]


def _full(request: TextRequest, text: str, by_default: bool) -> str:
    asked = request.parameters.return_full_text
    return request.inputs + text if (by_default if asked is None else asked) else text


def _sequence(completion: Completion, p: Parameters) -> dict[str, Any]:
    """Details of one answer. ``prefill`` stays empty, as on TGI's flash path without prefill log probabilities."""
    answer = completion.answer
    details: dict[str, Any] = {
        "finish_reason": answer.reason.value,
        "generated_tokens": answer.tokens,
        "seed": answer.seed,
        "prefill": [],
        "tokens": _tokens(completion.tokens),
    }
    if p.top_n_tokens:
        details["top_tokens"] = [_tokens(top) for top in completion.top]
    return details


def complete_body(request: TextRequest, completions: Sequence[Completion], *, full_text: bool) -> dict[str, Any]:
    """The object `/generate` answers; ``full_text`` is what an unset `return_full_text` means."""
    p, best = request.parameters, completions[0]
    body: dict[str, Any] = {"generated_text": _full(request, best.answer.text, full_text)}
    if p.details or p.decoder_input_details:
        body["details"] = _sequence(best, p)
        if len(completions) > 1:
            body["details"]["best_of_sequences"] = [
                {"generated_text": _full(request, other.answer.text, full_text), **_sequence(other, p)}
                for other in completions[1:]
            ]
    return body


def complete_headers(request: TextRequest, best: Completion, compute_type: str) -> dict[str, str]:
    """Times in ms but for x-compute-time, in s; characters are code points."""
    times = best.answer.times
    return {
        "x-compute-type": compute_type,
        "x-compute-time": repr(best.total),
        "x-compute-characters": str(len(request.inputs)),
        "x-total-time": str(int(best.total * 1000)),
        "x-validation-time": str(int(best.validation * 1000)),
        "x-queue-time": str(int(times.queue * 1000)),
        "x-inference-time": str(int(times.inference * 1000)),
        "x-time-per-token": str(int(times.inference * 1000 / best.answer.tokens)),
        "x-prompt-tokens": str(best.answer.prompt_tokens),
        "x-generated-tokens": str(best.answer.tokens),
    }


def _stream_details(answer: Answer) -> dict[str, Any]:
    return {
        "finish_reason": answer.reason.value,
        "generated_tokens": answer.tokens,
        "seed": answer.seed,
        "input_length": answer.prompt_tokens,
    }


def step_event(request: TextRequest, index: int, step: Step, *, full_text: bool) -> dict[str, Any]:
    """One event of a stream; ``index`` counts from 1."""
    event: dict[str, Any] = {"index": index, "token": _token(step.token)}
    if request.parameters.top_n_tokens:
        event["top_tokens"] = _tokens(step.top)
    answer = step.answer
    event["generated_text"] = _full(request, answer.text, full_text) if answer else None
    event["details"] = _stream_details(answer) if answer and request.parameters.details else None
    return event
