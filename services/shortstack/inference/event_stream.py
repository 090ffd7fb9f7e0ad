"""Server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["ClientLeft", "EventStream", "unless_client_leaves"]

_T = TypeVar("_T")


class ClientLeft(Exception):
    """The client closed the connection before its answer; nobody is left to tell."""


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of ``work``, which is cancelled as soon as the client closes the connection.

    The request's body must have been read.

    Raises:
        ClientLeft: the client closed first.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_client_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientLeft
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


class EventStream(Response):
    """Sends frames as they come, one HTTP chunk each, and a comment after every ``silence`` seconds without one.

    The frames' generator is closed when the client leaves.
    """

    media_type = "text/event-stream"
    _COMMENT = b":\n\n"

    def __init__(self, frames: AsyncGenerator[bytes, None], headers: dict[str, str], silence: float) -> None:
        self._frames = frames
        self._silence = silence
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"content-type": "text/event-stream", "cache-control": "no-cache", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; ends quietly when the client leaves."""
        try:
            await unless_client_leaves(receive, self._send(send))
        except ClientLeft:
            return

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._frames):
            pending = asyncio.ensure_future(anext(self._frames, None))
            try:
                while True:
                    await asyncio.wait({pending}, timeout=self._silence)
                    if not pending.done():
                        await self._chunk(send, self._COMMENT)
                        continue
                    frame = pending.result()
                    if frame is None:
                        break
                    await self._chunk(send, frame)
                    pending = asyncio.ensure_future(anext(self._frames, None))
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunk(self, send: Send, frame: bytes) -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": True})
