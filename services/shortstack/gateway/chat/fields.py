"""Reads fields of a request's JSON object, with OpenAI's errors where they are wrong.

Unknown fields are left alone. A validator per field instead of a model per request: this stands in every chat
request's way, and each message names the field as a client wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.gateway.errors import ApiError, invalid

__all__ = ["flag", "integer", "number", "required_string", "string_list"]


def _wrong_type(name: str, expected: str, value: object) -> ApiError:
    return invalid(
        f"Invalid type for '{name}': expected {expected}, but got {_json_type(value)} instead.", name, "invalid_type"
    )


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """A number in [low, high], or None where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number", value)
    if not low <= value <= high:
        raise invalid(f"Invalid '{name}': {value} is not between {low:g} and {high:g}.", name, "invalid_value")
    return float(value)


def integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """An integer in [low, high], or None where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "an integer", value)
    if not low <= value <= high:
        raise invalid(f"Invalid '{name}': {value} is not between {low} and {high}.", name, "invalid_value")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A boolean; absent or null is false."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean", value)
    return value


def required_string(body: Mapping[str, Any], name: str) -> str:
    """A string that must be there and not be empty."""
    value = body.get(name)
    if value is None or value == "":
        raise invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    return value


def string_list(body: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    """A string or a list of up to ``most`` strings, none of them empty; no strings where absent."""
    value = body.get(name)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise _wrong_type(name, "a string or an array of strings", value)
    if len(values) > most:
        raise invalid(f"Invalid '{name}': at most {most} are allowed.", name, "array_above_max_length")
    if "" in values:
        # Every text ends with it: a model server would stop at the first token.
        raise invalid(f"Invalid '{name}': an empty string. Leave it out, or send null.", name, "empty_string")
    return tuple(values)
