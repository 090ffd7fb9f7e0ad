"""OpenAI's reply objects. A stream's unchanging parts are put into bytes once, not per token.

Field sets: OpenAI's published OpenAPI document (``CreateChatCompletionResponse`` and its stream's chunk,
``CreateCompletionResponse``).
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Protocol

import orjson

from shortstack.gateway.chat.answer import Piece, Usage
from shortstack.gateway.errors import ApiError, error_bytes

__all__ = ["DONE", "ChatShape", "CompletionShape", "Shape", "error_event"]

DONE: Final = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How one answer is written out."""

    def opening(self) -> bytes:
        """Events before any text."""
        ...

    def event(self, piece: Piece) -> bytes:
        """The event of a piece of text."""
        ...

    def closing(self, finish_reason: str, usage: Usage | None) -> bytes:
        """The events after the text; with ``usage``, the event that holds it."""
        ...

    def whole(self, text: str, logprobs: list[dict[str, Any]] | None, finish_reason: str, usage: Usage) -> bytes:
        """The reply that does not stream."""
        ...


def error_event(error: ApiError) -> bytes:
    """An error after the status was sent: the last event of the stream, without ``[DONE]``."""
    return b"data: " + error_bytes(error) + b"\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


class _Head:
    """What every object of one answer begins with."""

    def __init__(self, prefix: str, kind: str, chunk: str, model: str, created: int, include_usage: bool) -> None:
        self._kind = kind
        self.fields: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(14)}",
            "object": chunk,
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        # With include_usage, OpenAI puts "usage": null into every chunk but the last.
        self.chunk_fields = self.fields | ({"usage": None} if include_usage else {})
        self.start = b"data: " + orjson.dumps(self.chunk_fields)[:-1]

    def whole(self) -> dict[str, Any]:
        return self.fields | {"object": self._kind}


class ChatShape:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, model: str, created: int, *, include_usage: bool) -> None:
        self._head = _Head("chatcmpl", "chat.completion", "chat.completion.chunk", model, created, include_usage)
        self._before = self._head.start + b',"choices":[{"index":0,"delta":{"content":'

    def opening(self) -> bytes:
        """See `Shape.opening`: the role, once."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, None)

    def event(self, piece: Piece) -> bytes:
        """See `Shape.event`."""
        logprobs = b"null" if piece.logprobs is None else orjson.dumps(_chat_logprobs(piece.logprobs))
        return self._before + orjson.dumps(piece.text) + b'},"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def closing(self, finish_reason: str, usage: Usage | None) -> bytes:
        """See `Shape.closing`."""
        last = self._chunk({}, finish_reason)
        if usage is not None:
            last += _event({**self._head.fields, "choices": [], "usage": usage.as_openai()})
        return last + DONE

    def whole(self, text: str, logprobs: list[dict[str, Any]] | None, finish_reason: str, usage: Usage) -> bytes:
        """See `Shape.whole`."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": None if logprobs is None else _chat_logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        return orjson.dumps({**self._head.whole(), "choices": [choice], "usage": usage.as_openai()})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head.chunk_fields, "choices": [choice]})


def _chat_logprobs(logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": logprobs, "refusal": None}


class CompletionShape:
    """``text_completion``, streamed and not."""

    def __init__(self, model: str, created: int, *, include_usage: bool) -> None:
        self._head = _Head("cmpl", "text_completion", "text_completion", model, created, include_usage)
        self._before = self._head.start + b',"choices":[{"index":0,"text":'

    def opening(self) -> bytes:
        """See `Shape.opening`: nothing."""
        return b""

    def event(self, piece: Piece) -> bytes:
        """See `Shape.event`."""
        return self._before + orjson.dumps(piece.text) + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def closing(self, finish_reason: str, usage: Usage | None) -> bytes:
        """See `Shape.closing`."""
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": finish_reason}
        last = _event({**self._head.chunk_fields, "choices": [choice]})
        if usage is not None:
            last += _event({**self._head.fields, "choices": [], "usage": usage.as_openai()})
        return last + DONE

    def whole(self, text: str, logprobs: list[dict[str, Any]] | None, finish_reason: str, usage: Usage) -> bytes:
        """See `Shape.whole`."""
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return orjson.dumps({**self._head.whole(), "choices": [choice], "usage": usage.as_openai()})
