"""Sends an answer to the client, streamed or whole, and counts it however it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shortstack.gateway.chat.answer import Answer, Piece
from shortstack.gateway.chat.shapes import Shape, error_event
from shortstack.gateway.disconnect import ClientGone, WhileConnected
from shortstack.gateway.errors import ApiError
from shortstack.gateway.middleware import raw_send

__all__ = ["AnswerStream", "collect"]


async def collect(answer: Answer) -> tuple[str, list[dict[str, Any]] | None]:
    """The whole text, and the log probabilities of its tokens where asked for.

    Raises:
        ApiError: the server failed in mid-answer.
    """
    pieces: list[Piece] = []
    async with aclosing(answer.pieces()) as batches:
        async for batch in batches:
            pieces.extend(batch)
    text = "".join(piece.text for piece in pieces)
    if answer.logprobs:
        return text, [entry for piece in pieces for entry in piece.logprobs or ()]
    return text, None


class AnswerStream(Response):
    """Server-sent events of an answer whose first token is there.

    One ``send`` for what came in one piece from upstream. The client's leaving ends the generation at once.

    Args:
        answer: the answer.
        shape: how it is written.
        include_usage: whether the client wants the usage event.
        done: called once, whatever happens, after the last byte.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, shape: Shape, include_usage: bool, done: Callable[[Answer], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        # A stream's length is not known beforehand.
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        self._answer = answer
        self._shape = shape
        self._include_usage = include_usage
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            async with WhileConnected(receive):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                last = await self._send_text(scope, raw_send(scope, send))
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except ClientGone:
            scope["shortstack.outcome"] = "client gone"
        finally:
            self._done(self._answer)

    async def _send_text(self, scope: Scope, send: Send) -> bytes:
        """Sends the pieces as they come; the events that end the stream."""
        shape = self._shape
        opening = shape.opening()
        try:
            async with aclosing(self._answer.pieces()) as batches:
                async for batch in batches:
                    events = b"".join([shape.event(piece) for piece in batch])
                    await send({"type": "http.response.body", "body": opening + events, "more_body": True})
                    opening = b""
        except ApiError as error:
            scope["shortstack.outcome"] = "broken off"
            return opening + error_event(error)
        usage = self._answer.usage if self._include_usage else None
        return opening + shape.closing(self._answer.finish_reason, usage)
