"""Reading a request's body under a limit."""

from __future__ import annotations

from fastapi import Request

from shortstack.inference.errors import BodyRefused

__all__ = ["read_body"]


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyRefused: 413, it is longer than ``limit`` bytes.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise BodyRefused(413, "Failed to buffer the request body: length limit exceeded")
    return bytes(raw)
