"""What a family of records is, and what all families share: columns that travel along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from shortstack.core.errors import Invalid
from shortstack.records.message import Message

__all__ = ["Draft", "Family", "carried", "text"]

_MAX_METADATA: Final = 4096
"""Bytes of JSON that travel beside a record; columns beyond are left out, first come first carried."""

_PLAIN: Final = ("category", "source", "license")


@dataclass(frozen=True, slots=True)
class Draft:
    """A record before it has its place: see `records.schema.Record`."""

    messages: tuple[Message, ...]
    tools: str | None = None
    prompt_format: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    license: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """One shape of an item.

    Attributes:
        name: as `declarations.publication.FAMILIES` has it.
        matches: whether an item with these columns looks like one.
        compile: item → record; raises `Invalid` with the reason, naming the field.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    compile: Callable[[Mapping[str, Any]], Draft]


def text(item: Mapping[str, Any], column: str) -> str:
    """A text column: absent and null are empty strings; numbers and truth values are written out.

    Raises:
        Invalid: it is a list or an object.
    """
    value = item.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    raise Invalid(f"{column} is {_kind(value)}, not text", param=column)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def carried(item: Mapping[str, Any], used: frozenset[str]) -> dict[str, Any]:
    """Fields of `Draft` for the columns that are not ``used``: known ones by name, the rest as bounded metadata."""
    fields: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for column, value in item.items():
        if column in used or value is None or value == "":
            continue
        if column in _PLAIN and isinstance(value, str):
            fields[column] = value
        elif column in ("prompt_format", "prompt_type") and isinstance(value, str):
            fields["prompt_format"] = value
        elif column == "tags" and isinstance(value, list) and all(isinstance(tag, str) for tag in value):
            fields["tags"] = tuple(value)
        else:
            metadata[column] = value
    if metadata:
        fields["metadata"] = _bounded(metadata)
    return fields


def _bounded(metadata: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    size = 2
    for column, value in metadata.items():
        try:
            size += len(orjson.dumps({column: value}))
        except TypeError as error:
            raise Invalid(f"{column} cannot be written as JSON: {error}", param=column) from error
        if size > _MAX_METADATA:
            break
        kept[column] = value
    return kept
