"""Families whose records are conversations: ShareGPT's turns and OpenAI's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from shortstack.core.digest import canonical_json
from shortstack.core.errors import Invalid, did_you_mean
from shortstack.ingestion.families.family import Draft, Family, carried
from shortstack.records.message import Message

__all__ = ["MESSAGES", "SHAREGPT"]

_SHAREGPT_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "context": "context",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_OPENAI_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "context": "context",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_MESSAGE_KEYS: Final = frozenset(
    {"role", "content", "name", "weight", "train", "tool_calls", "tool_call_id", "function_call", "refusal"}
)


def _role(given: Any, roles: Mapping[str, str], param: str) -> str:
    if not isinstance(given, str) or given not in roles:
        raise Invalid(f'"{param}" is "{given}"', remedy=did_you_mean(str(given), roles), param=param)
    return roles[given]


def _json_text(value: Any, param: str) -> str | None:
    """Tools and calls in one form, whether given as JSON or as a string that holds JSON."""
    if value is None or value in ("", []):
        return None
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Invalid(f'"{param}" is not JSON: {error}', param=param) from error
    if not isinstance(value, list):
        raise Invalid(f'"{param}" is {type(value).__name__}, not a list', param=param)
    return canonical_json(value).decode() if value else None


def _sharegpt_turn(turn: Any, index: int) -> Message:
    param = f"conversations[{index}]"
    if not isinstance(turn, dict):
        raise Invalid(f'"{param}" is {type(turn).__name__}, not an object', param=param)
    speaker = turn.get("from", turn.get("role"))
    role = _role(speaker, _SHAREGPT_ROLES, f"{param}.from")
    value = turn.get("value", turn.get("content"))
    if not isinstance(value, str):
        raise Invalid(f'"{param}.value" is {type(value).__name__}, not text', param=f"{param}.value")
    if speaker == "function_call":
        return Message(role, "", tool_calls=_function_calls(value, index))
    return Message(role, value)


def _function_calls(value: str, index: int) -> str:
    """ShareGPT's ``{"name", "arguments"}``, or a list of these, as OpenAI's tool calls."""
    param = f"conversations[{index}].value"
    try:
        given = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Invalid(f'"{param}" is a function call that is not JSON: {error}', param=param) from error
    calls = given if isinstance(given, list) else [given]
    shaped = []
    for number, call in enumerate(calls):
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise Invalid(f'"{param}" is a function call without a name', param=param)
        arguments = call.get("arguments", {})
        packed = arguments if isinstance(arguments, str) else canonical_json(arguments).decode()
        function = {"name": call["name"], "arguments": packed}
        shaped.append({"id": f"call_{index}_{number}", "type": "function", "function": function})
    return canonical_json(shaped).decode()


def _sharegpt(item: Mapping[str, Any]) -> Draft:
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise Invalid('"conversations" is not a list with turns', param="conversations")
    messages = [_sharegpt_turn(turn, index) for index, turn in enumerate(turns)]
    system = item.get("system")
    if isinstance(system, str) and system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    tools = _json_text(item.get("tools"), "tools")
    return Draft(tuple(messages), tools, **carried(item, frozenset({"conversations", "system", "tools"})))


def _content(value: Any, param: str, *, optional: bool) -> str:
    """Text, or a list of text parts, which are joined; null stands beside tool calls."""
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(value):
            return "".join(texts)
        raise Invalid(f'"{param}" holds a part that is not text', remedy="Only text can be trained on.", param=param)
    raise Invalid(f'"{param}" is {"missing" if value is None else type(value).__name__}, not text', param=param)


def _train(message: Mapping[str, Any], role: str, param: str) -> bool:
    """OpenAI's ``weight``, 0 or 1, on answers; our own ``train`` says the same."""
    weight = message.get("weight", message.get("train", True))
    if weight is None:
        return True
    if weight not in (0, 1):
        raise Invalid(f'"{param}.weight" is {weight}; it is 0 or 1', param=f"{param}.weight")
    if not weight and role != "assistant":
        raise Invalid(
            f'"{param}.weight" stands on a turn of {role}; only answers are trained on', param=f"{param}.weight"
        )
    return bool(weight)


def _message(message: Any, index: int) -> Message:
    param = f"messages[{index}]"
    if not isinstance(message, dict):
        raise Invalid(f'"{param}" is {type(message).__name__}, not an object', param=param)
    for key in message:
        if key not in _MESSAGE_KEYS:
            raise Invalid(f'"{param}" has the key "{key}"', remedy=did_you_mean(str(key), _MESSAGE_KEYS), param=param)
    role = _role(message.get("role"), _OPENAI_ROLES, f"{param}.role")
    calls = _json_text(message.get("tool_calls"), f"{param}.tool_calls") or _legacy_call(message, index)
    if calls and role != "assistant":
        raise Invalid(f'"{param}.tool_calls" stands on a turn of {role}', param=f"{param}.tool_calls")
    content = _content(message.get("content"), f"{param}.content", optional=calls is not None)
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise Invalid(f'"{param}.name" is {type(name).__name__}, not text', param=f"{param}.name")
    return Message(role, content, name, _train(message, role, param), calls)


def _legacy_call(message: Mapping[str, Any], index: int) -> str | None:
    call = message.get("function_call")
    return _function_calls(orjson.dumps(call).decode(), index) if call else None


def _messages(item: Mapping[str, Any]) -> Draft:
    """OpenAI's chat fine-tuning format: messages, with ``tools`` (or ``functions``) beside."""
    given = item.get("messages")
    if not isinstance(given, list) or not given:
        raise Invalid('"messages" is not a list with messages', param="messages")
    messages = tuple(_message(message, index) for index, message in enumerate(given))
    if not any(message.role == "assistant" for message in messages):
        raise Invalid('"messages" holds no answer: no message has the role "assistant"', param="messages")
    tools = _json_text(item.get("tools"), "tools") or _functions(item)
    used = frozenset({"messages", "tools", "functions", "parallel_tool_calls"})
    return Draft(messages, tools, **carried(item, used))


def _functions(item: Mapping[str, Any]) -> str | None:
    functions = item.get("functions")
    if not functions or not isinstance(functions, list):
        return None
    return canonical_json([{"type": "function", "function": each} for each in functions]).decode()


MESSAGES: Final = Family("messages", lambda item: isinstance(item.get("messages"), list), _messages)
SHAREGPT: Final = Family("sharegpt", lambda item: isinstance(item.get("conversations"), list), _sharegpt)
