"""A message of a conversation: the one shape that every format, file family and API maps to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shortstack.core.errors import Invalid, did_you_mean

__all__ = ["ROLES", "Message"]

ROLES: Final = ("system", "context", "user", "assistant", "tool")
"""Roles of a message. ``context`` is material that the user's turn refers to: IHOP's context, and the
``input`` column of Alpaca's and h2oGPT's three-part records, which stands after the user's turn."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of `ROLES`.
        content: the text; may be empty.
        name: who speaks, where several share a role.
        train: whether an assistant's turn carries loss (OpenAI's ``weight``).
        tool_calls: the calls of an assistant's turn as a JSON array, in OpenAI's shape.
    """

    role: str
    content: str
    name: str | None = None
    train: bool = True
    tool_calls: str | None = None

    @classmethod
    def parse(cls, value: Any, *, where: str) -> Message:
        """Reads ``{"role", "content", "name"?, "train"?, "tool_calls"?}``.

        Raises:
            Invalid: the value is no such object; ``where`` leads the message.
        """
        if not isinstance(value, dict):
            raise Invalid(f"a message is an object, not {type(value).__name__}", where=where)
        role = value.get("role")
        if role not in ROLES:
            raise Invalid(f'role is "{role}"', where=where, remedy=did_you_mean(str(role), ROLES), param="role")
        content = value.get("content")
        if content is None and value.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            raise Invalid(f"content is {type(content).__name__}, not a string", where=where, param="content")
        return cls(role, content, value.get("name"), bool(value.get("train", True)), value.get("tool_calls"))
