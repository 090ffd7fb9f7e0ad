"""An answer request in TGI's parameters, and its budget of tokens.

Source of TGI's rules: its source and a running 3.3.7. ``top_p`` 1 and ``temperature`` 0 are refused there;
``do_sample`` is false once ``parameters`` is present; ``max_new_tokens`` above the context passes its check.
"""

from __future__ import annotations

from typing import Any, Final

from shortstack.gateway.chat.requests import AnswerRequest
from shortstack.gateway.errors import ApiError, invalid
from shortstack.gateway.routing.table import ServedModel

__all__ = ["answer_budget", "stop_strings", "tgi_parameters"]

_TGI_STOPS: Final = 4
"""TGI's default MAX_STOP_SEQUENCES. More are cut here all the same; then TGI is stopped by closing the call."""


def tgi_parameters(request: AnswerRequest, model: ServedModel, max_new_tokens: int) -> dict[str, Any]:
    """TGI's ``parameters`` object; only what is set."""
    sampling = request.sampling
    wanted: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "details": True,
        "do_sample": not sampling.greedy,
        "temperature": None if sampling.greedy else sampling.temperature,
        "top_p": None if sampling.greedy else sampling.top_p,
        "seed": None if sampling.greedy else sampling.seed,
        "frequency_penalty": sampling.frequency_penalty or None,
        "stop": list(stop_strings(request, model))[:_TGI_STOPS] or None,
        "top_n_tokens": request.top_logprobs or None,
        "adapter_id": model.adapter_id or None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def stop_strings(request: AnswerRequest, model: ServedModel) -> tuple[str, ...]:
    """What ends an answer: the request's strings, and in a conversation those of the model's format."""
    stops = request.stop if request.prompt is not None else (*request.stop, *model.stop)
    return tuple(dict.fromkeys(stops))


def answer_budget(prompt_tokens: int, request: AnswerRequest, model: ServedModel) -> int:
    """Tokens that the answer may have: what was asked for, else the route's default or all that the context leaves.

    Law: ``prompt_tokens + answer_budget(…) <= model.max_total_tokens``.

    Raises:
        ApiError: 400 ``context_length_exceeded``, with the numbers.
    """
    total, param = model.max_total_tokens, "messages" if request.prompt is None else "prompt"
    if model.max_input_tokens and prompt_tokens > model.max_input_tokens:
        raise _exceeded(
            f"This model takes at most {model.max_input_tokens} prompt tokens; your {param} resulted in "
            f"{prompt_tokens} tokens. Please reduce the length of the {param}.",
            param,
        )
    left = total - prompt_tokens
    if left < 1:
        raise _exceeded(
            f"This model's maximum context length is {total} tokens. However, your {param} resulted in "
            f"{prompt_tokens} tokens, which leaves none for an answer. Please reduce the length of the {param}.",
            param,
        )
    if request.max_tokens is not None and request.max_tokens > left:
        raise _exceeded(
            f"This model's maximum context length is {total} tokens. However, you requested "
            f"{prompt_tokens + request.max_tokens} tokens ({prompt_tokens} in the {param}, {request.max_tokens} in "
            f"the answer). Please reduce the length of the {param} or {request.max_tokens_param} (at most {left}).",
            param,
        )
    if request.max_tokens is not None:
        return request.max_tokens
    return left if request.default_tokens is None else min(left, request.default_tokens)


def _exceeded(message: str, param: str) -> ApiError:
    return invalid(message, param, "context_length_exceeded")
