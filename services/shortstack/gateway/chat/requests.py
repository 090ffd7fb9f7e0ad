"""What a client may ask of a model, read from JSON into one shape for chat, completions and IHOP's ``/chat``.

Field names, ranges and defaults: OpenAI's published OpenAPI document. A field that is known and not done here is
refused by name; an unknown one is tolerated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from shortstack.core.digest import canonical_json
from shortstack.core.errors import did_you_mean
from shortstack.gateway.chat.fields import flag, integer, number, required_string, string_list
from shortstack.gateway.errors import invalid, unsupported
from shortstack.records.message import ROLES, Message

__all__ = ["AnswerRequest", "Sampling", "json_object", "read_chat", "read_completion", "read_ihop"]

STOPS_MAX: Final = 4
TOP_LOGPROBS_MAX: Final = 5
"""TGI's limit of ``top_n_tokens``; OpenAI's is 20."""
_TOKENS_MAX: Final = 1 << 31
_ROLE_ALIASES: Final = {"developer": "system"}
_COLDEST: Final = 1e-6
_LEAST_MASS: Final = 1e-6
"""Below these nothing but the likeliest token is left (its probability is at least one over the vocabulary), and a
server that reckons in float32 divides by nought, or finds no token at all, and fails the requests beside this one."""
_ALL_MASS: Final = 1 - 1e-7
"""From here on a `top_p` is 1 in float32, which TGI refuses."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``greedy`` wins over the rest.

    Attributes:
        temperature: above 0, or None for 1.
        top_p: in (0, 1), or None for all.
        frequency_penalty: −2 to 2, 0 for none.
        seed: None for a drawn one.
    """

    greedy: bool = False
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """One answer that a client wants.

    Attributes:
        model: a model's or an alias' name; empty: the default one.
        messages: the conversation, or none where ``prompt`` is the whole text.
        prompt: raw text, for completions.
        max_tokens: None for `default_tokens`.
        default_tokens: what a route gives a client that asked for no number, as far as the context leaves them; None
            for all that it leaves.
        sticky: what chooses among an alias' models, so that one user meets one model; empty: chance.
    """

    model: str
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    default_tokens: int | None = None
    max_tokens_param: str = "max_tokens"
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    sticky: str = ""


def json_object(body: bytes) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        ApiError: 400, it is not one.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.", None, "invalid_json") from error
    if not isinstance(value, dict):
        raise invalid("The request's body must be a JSON object.", None, "invalid_json")
    return value


def _absent(value: Any) -> bool:
    return value in (None, [], {}, False, "none", "auto")


_NOT_DONE: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "tools": (_absent, "Tool calls are not offered; leave it out."),
    "functions": (_absent, "Function calls are not offered; leave it out."),
    "tool_choice": (_absent, "Tool calls are not offered; leave it out."),
    "function_call": (_absent, "Function calls are not offered; leave it out."),
    "response_format": (
        lambda value: value is None or value == {"type": "text"},
        "Only {'type': 'text'} is offered; leave it out and ask for the form in the prompt.",
    ),
    "n": (lambda value: value in (None, 1), "One answer a request is offered; send the request several times."),
    "best_of": (lambda value: value in (None, 1), "One answer a request is offered; leave it out."),
    "logit_bias": (_absent, "Biased tokens are not offered; leave it out."),
    "presence_penalty": (
        lambda value: value in (None, 0),
        "The model server has none; use frequency_penalty, or send 0.",
    ),
    "echo": (_absent, "The prompt is not repeated; leave it out."),
    "suffix": (lambda value: value in (None, ""), "Text after the answer is not offered; leave it out."),
    "modalities": (lambda value: value in (None, ["text"]), "Only text is offered; leave it out."),
    "audio": (_absent, "Only text is offered; leave it out."),
    "chat_template_kwargs": (_absent, "The prompt format decides how a conversation is rendered; leave it out."),
    "chat_template": (_absent, "The prompt format decides how a conversation is rendered; leave it out."),
}
"""Fields with the test that their value asks for nothing, and what to do instead."""


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    for name in _NOT_DONE.keys() & body.keys():
        harmless, remedy = _NOT_DONE[name]
        if not harmless(body[name]):
            raise unsupported(name, remedy)


def _sampling(body: Mapping[str, Any]) -> Sampling:
    temperature = number(body, "temperature", 0, 2)
    top_p = number(body, "top_p", 0, 1)
    seed = integer(body, "seed", -(1 << 63), (1 << 64) - 1)
    return Sampling(
        greedy=(temperature is not None and temperature < _COLDEST) or (top_p is not None and top_p < _LEAST_MASS),
        temperature=temperature,
        top_p=None if top_p is None or top_p >= _ALL_MASS else top_p,
        frequency_penalty=number(body, "frequency_penalty", -2, 2) or 0.0,
        seed=None if seed is None else seed & ((1 << 64) - 1),
    )


def _max_tokens(body: Mapping[str, Any]) -> tuple[int | None, str]:
    old, new = integer(body, "max_tokens", 1, _TOKENS_MAX), integer(body, "max_completion_tokens", 1, _TOKENS_MAX)
    if old is not None and new is not None:
        raise invalid(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("Invalid type for 'stream_options': expected an object.", "stream_options", "invalid_type")
    if not stream:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    return flag(options, "include_usage")


def _sticky(body: Mapping[str, Any]) -> str:
    for name in ("prompt_cache_key", "safety_identifier", "user"):
        if isinstance(value := body.get(name), str) and value:
            return value
    return ""


def _content(value: Any, where: str) -> str:
    """Text of a message: a string, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(
            f"Invalid type for '{where}': expected a string or an array of text parts.", where, "invalid_type"
        )
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid(
                f"Invalid value for '{where}[{index}]': only parts of type 'text' are offered.",
                f"{where}[{index}]",
                "invalid_value",
            )
        texts.append(part["text"])
    return "".join(texts)


def _message(value: Any, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(value, dict):
        raise invalid(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    role = value.get("role")
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise invalid(
            f"Invalid value for '{where}.role': \"{role}\". {did_you_mean(str(role), [*ROLES, *_ROLE_ALIASES])}",
            f"{where}.role",
            "invalid_value",
        )
    if value.get("function_call"):
        raise unsupported(f"{where}.function_call", "Write it as tool_calls.")
    calls = _tool_calls(value, where) if role == "assistant" else None
    content = "" if value.get("content") is None and calls else _content(value.get("content"), f"{where}.content")
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        raise invalid(f"Invalid type for '{where}.name': expected a string.", f"{where}.name", "invalid_type")
    return Message(role, content, name, tool_calls=calls)


def _tool_calls(message: Mapping[str, Any], where: str) -> str | None:
    """Calls of the past in the one form that training has them in, since they stand in the text."""
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise invalid(
            f"Invalid type for '{where}.tool_calls': expected an array.", f"{where}.tool_calls", "invalid_type"
        )
    return canonical_json(calls).decode() if calls else None


def _messages(body: Mapping[str, Any], most: int) -> tuple[Message, ...]:
    messages = body.get("messages")
    if messages is None:
        raise invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise invalid("Invalid type for 'messages': expected an array of objects.", "messages", "invalid_type")
    if not messages:
        raise invalid("Invalid 'messages': an empty array has nothing to answer.", "messages", "empty_array")
    if len(messages) > most:
        raise invalid(
            f"Invalid 'messages': {len(messages)} are more than {most}.", "messages", "array_above_max_length"
        )
    return tuple(_message(value, index) for index, value in enumerate(messages))


def read_chat(body: Mapping[str, Any], messages_max: int) -> AnswerRequest:
    """The body of ``POST /v1/chat/completions``.

    Raises:
        ApiError: 400, naming the field.
    """
    _refuse_what_is_not_done(body)
    model = required_string(body, "model")
    stream = flag(body, "stream")
    max_tokens, param = _max_tokens(body)
    return AnswerRequest(
        model=model,
        messages=_messages(body, messages_max),
        sampling=_sampling(body),
        stop=string_list(body, "stop", STOPS_MAX),
        max_tokens=max_tokens,
        max_tokens_param=param,
        stream=stream,
        include_usage=_include_usage(body, stream),
        logprobs=flag(body, "logprobs"),
        top_logprobs=_top_logprobs(body),
        sticky=_sticky(body),
    )


def _top_logprobs(body: Mapping[str, Any]) -> int:
    asked = integer(body, "top_logprobs", 0, 20) or 0
    if asked and not flag(body, "logprobs"):
        raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    if asked > TOP_LOGPROBS_MAX:
        raise unsupported("top_logprobs", f"The model server gives at most {TOP_LOGPROBS_MAX}.")
    return asked


def read_completion(body: Mapping[str, Any]) -> AnswerRequest:
    """The body of ``POST /v1/completions``: one prompt, as text, given to the model as it stands.

    Raises:
        ApiError: 400, naming the field.
    """
    _refuse_what_is_not_done(body)
    if body.get("logprobs") is not None:
        raise unsupported("logprobs", "Use /v1/chat/completions, where they are offered.")
    stream = flag(body, "stream")
    return AnswerRequest(
        model=required_string(body, "model"),
        prompt=_prompt(body),
        sampling=_sampling(body),
        stop=string_list(body, "stop", STOPS_MAX),
        max_tokens=integer(body, "max_tokens", 1, _TOKENS_MAX),
        # OpenAI's for this route alone.
        default_tokens=16,
        stream=stream,
        include_usage=_include_usage(body, stream),
        sticky=_sticky(body),
    )


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if prompt is None or prompt == "":
        raise invalid("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
    if not isinstance(prompt, str):
        raise unsupported("prompt", "One text is offered a request, not several and not token ids.")
    return prompt


def read_ihop(body: Mapping[str, Any], messages_max: int) -> AnswerRequest:
    """The body of IHOP's ``POST /chat``: ``{"messages": […], "max_tokens": 512}``; a greedy answer as raw text.

    ``model`` may name a model; without it the default one answers.

    Raises:
        ApiError: 400, naming the field.
    """
    model = body.get("model") or ""
    if not isinstance(model, str):
        raise invalid("Invalid type for 'model': expected a string.", "model", "invalid_type")
    return AnswerRequest(
        model=model,
        messages=_messages(body, messages_max),
        sampling=Sampling(greedy=True),
        max_tokens=integer(body, "max_tokens", 1, _TOKENS_MAX),
        default_tokens=512,
    )
