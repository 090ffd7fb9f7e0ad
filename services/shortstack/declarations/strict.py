"""Pydantic's complaints as the stack's own errors: one sentence, the place, the nearest valid name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.core.identity import NAME, NAME_RULE

__all__ = ["invalid_from"]


def invalid_from(error: ValidationError, model: type[BaseModel], *, where: str = "") -> Invalid:
    """The first complaint of ``error``, about an input of ``model``, as `Invalid`."""
    # An unknown key first: beside a missing one it is most often that one, misspelt.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    path = first["loc"]
    param = ".".join(str(part) for part in path) or None
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return Invalid(
            f'"{param}" is not a known key', where=where, remedy=did_you_mean(str(path[-1]), known), param=param
        )
    if first["type"] == "missing":
        return Invalid(f'"{param}" is missing', where=where, remedy=f'Add "{path[-1]}".', param=param)
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        given = first["input"]
        return Invalid(f'"{param}" is "{given}"', where=where, remedy=did_you_mean(given, known), param=param)
    if first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] == f"^{NAME.pattern}$":
        what = f'"{param}": "{first["input"][:80]}" is not a name'
        return Invalid(what, where=where, remedy=NAME_RULE, param=param)
    text = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping | list | tuple) else f" (given: {str(first['input'])[:80]!r})"
    subject = f'"{param}": ' if param else ""
    return Invalid(f"{subject}{text[:1].lower()}{text[1:]}{given}", where=where, param=param)


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is not None:
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            found = _model_in(inner)
            if found is not None:
                return found
    return None
