"""Runs a chat template that somebody else wrote: in Jinja's immutable sandbox, within limits of time and output.

Templates come from the folder of a base model that an operator allows, never from a dataset row.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shortstack.core.errors import Invalid

__all__ = ["ChatTemplate", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may cost.

    Attributes:
        seconds: wall-clock time, looked at on every call, attribute, operator and piece of output.
        characters: length of the output, and of any string that an operator makes.
    """

    seconds: float = 2.0
    characters: int = 8_000_000


class _LimitExceeded(jinja2.TemplateError):
    """A rendering took too long or grew too large."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks an answer for training in some templates; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares a variable of the instance)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedSandbox(ImmutableSandboxedEnvironment):
    """A sandbox that looks at the clock, and at sizes, wherever a template does something."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, limits: Limits) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self.limits = limits
        self.render = threading.local()

    def look_at_clock(self) -> None:
        if time.monotonic() > self.render.until:
            raise _LimitExceeded(f"the template ran for more than {self.limits.seconds:g} s")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.look_at_clock()
        return super().call(__context, __obj, *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.look_at_clock()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.look_at_clock()
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.look_at_clock()
        if operator == "**":
            raise _LimitExceeded("powers are not for chat templates")
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            times, what = (left, right) if isinstance(left, int) else (right, left)
            if len(what) * times > self.limits.characters:
                raise _LimitExceeded(f"the template made a value of more than {self.limits.characters} items")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        clock: for ``strftime_now``.
        variables: what the template sees beside ``messages``: ``bos_token``, ``eos_token``.
        limits: what one rendering may cost.

    Raises:
        Invalid: the source is no Jinja.
    """

    def __init__(
        self,
        source: str,
        *,
        clock: Callable[[], datetime],
        variables: Mapping[str, str],
        limits: Limits | None = None,
    ) -> None:
        self.source = source
        self._limits = limits or Limits()
        self._variables = dict(variables)
        self._sandbox = _BoundedSandbox(self._limits)
        self._sandbox.filters["tojson"] = _tojson
        self._sandbox.globals["raise_exception"] = _raise_exception
        self._sandbox.globals["strftime_now"] = lambda form: clock().strftime(form)
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateError as error:
            raise Invalid(f"the chat template is no Jinja: {error}", param="chat_template") from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of ``messages``.

        Raises:
            Invalid: the template refuses the messages, fails, or exceeds a limit.
        """
        self._sandbox.render.until = time.monotonic() + self._limits.seconds
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._variables
            ):
                self._sandbox.look_at_clock()
                size += len(piece)
                if size > self._limits.characters:
                    raise _LimitExceeded(f"the template wrote more than {self._limits.characters} characters")
                pieces.append(piece)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Invalid(f"the chat template cannot render the messages: {error}", param="messages") from error
        return "".join(pieces)
