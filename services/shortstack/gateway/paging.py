"""Query parameters of OpenAI's lists, and the page itself."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from shortstack.gateway.errors import invalid

__all__ = ["page", "page_limit"]

_DIGITS = 9


def page_limit(request: Request, default: int, most: int) -> int:
    """``limit``, from 1 to ``most``.

    Raises:
        ApiError: 400, it is no such number.
    """
    text = request.query_params.get("limit")
    if text is None:
        return default
    # Python itself refuses to read a number of thousands of digits.
    if not text.isdecimal() or len(text) > _DIGITS or not 1 <= int(text) <= most:
        raise invalid(f"Invalid 'limit': expected an integer from 1 to {most}.", "limit", "invalid_value")
    return int(text)


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list; clients go on with ``after`` set to its last id."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
