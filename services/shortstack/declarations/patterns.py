"""Patterns of recipes: RE2, whose time is linear whatever the pattern. Apart from `recipe`, so that who reads recipes
and runs none needs no RE2."""

from __future__ import annotations

from typing import Any, Final

import re2

from shortstack.core.errors import Invalid
from shortstack.declarations.recipe import Recipe, RegexStep

__all__ = ["check_patterns", "compile_pattern"]

_MAX_MEMORY: Final = 16 * 1024 * 1024
"""Bytes that one compiled pattern may take; a larger one is refused."""


def compile_pattern(pattern: str, *, where: str = "recipe", param: str = "pattern") -> Any:
    """A pattern over UTF-8 bytes.

    Raises:
        Invalid: it is no RE2 expression (which has no back-references and no look-around), or too large.
    """
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    options.encoding = re2.Options.Encoding.UTF8
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise Invalid(
            f'pattern "{pattern[:80]}" is not an RE2 expression: {reason}',
            where=where,
            remedy="RE2 has no back-references and no look-around.",
            param=param,
        ) from error


def check_patterns(recipe: Recipe, *, where: str = "recipe") -> None:
    """Compiles what formatting will compile, so that a recipe which cannot run is never frozen.

    Raises:
        Invalid: a pattern is no RE2 expression, or too large.
    """
    for index, step in enumerate(recipe.steps):
        if isinstance(step, RegexStep):
            at = f"{where}.steps[{index}]"
            compile_pattern(step.pattern, where=at, param=f"{at}.pattern")
