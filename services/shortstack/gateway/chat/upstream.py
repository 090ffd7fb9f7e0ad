"""Calls a TGI-wire server's ``/generate_stream``, the only route of TGI that the gateway uses.

TGI answers 200 before it has looked at the request; overload, validation and generation errors come as the first
(or a later) event ``{"error", "error_type"}``. So a call is open only once its first event is there, and its kind
of error is known before the client is told any status. Source of shapes and error types: TGI 3.3.7 as recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
import orjson

from shortstack.gateway.chat.sse import SseParser
from shortstack.gateway.errors import ApiError

__all__ = ["Token", "TokenStream", "Upstream", "UpstreamTimeouts"]

_RETRY_AFTER_S: Final = 1.0
_END_WAIT_S: Final = 2.0
_ATTEMPTS: Final = 2
"""Nothing has been generated when a connection cannot be had or an idle one turns out dead: worth one more try."""


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """Seconds to connect, of silence, and of a whole answer; and between two reads of an answer.

    Each read costs a turn of the event loop and a write to the client. A server of more than 1 / ``gather_s`` tokens
    a second is read at that pace, several tokens at once; a slower one, and a first token, is never waited for.
    """

    connect_s: float = 3.0
    read_s: float = 60.0
    total_s: float = 900.0
    gather_s: float = 0.008


@dataclass(slots=True)
class Token:
    """One generated token.

    Attributes:
        text: empty until the bytes of a character are whole; joined in order, the texts are the answer.
        special: whether it is a special token, which is no part of the answer.
        top: the likeliest tokens at this place, ``{"text", "logprob"}``, where asked for.
        details: of the last token: ``finish_reason``, ``generated_tokens``, ``input_length``.
        last: whether generation ended with it.
    """

    text: str
    logprob: float
    special: bool
    top: list[dict[str, Any]]
    details: dict[str, Any]
    last: bool


class TokenStream:
    """An answer under way. Closing it ends the generation upstream."""

    def __init__(self, response: aiohttp.ClientResponse, timeouts: UpstreamTimeouts) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._gather_s = timeouts.gather_s
        self._read_at = 0.0
        # One timer an answer; aiohttp's own would be entered and left at every read.
        self._timer = self._loop.call_later(timeouts.total_s, self._expire)
        self._parser = SseParser()
        self._first: list[Token] = []
        self._error: ApiError | None = None

    async def open(self) -> None:
        """Waits for the first token.

        Raises:
            ApiError: the server refused, failed, fell silent, or ended.
        """
        while not self._first:
            self._first = await self._read()

    async def batches(self) -> AsyncIterator[list[Token]]:
        """Tokens as they come, several at once where they came together; ends after the last.

        Raises:
            ApiError: the server failed, fell silent, or ended in mid-answer.
        """
        tokens = self._first
        while True:
            if tokens:
                yield tokens
                if tokens[-1].last:
                    return
            early_s = self._read_at + self._gather_s - self._loop.time()
            if early_s > 0:
                await asyncio.sleep(early_s)
            tokens = await self._read()

    def close(self) -> None:
        """Ends the call; harmless when it has ended. An unread rest closes the connection, so TGI stops."""
        self._timer.cancel()
        self._response.close()

    def finish(self) -> None:
        """After the last token: the connection goes back for the next call once the end of the reply is there.

        aiohttp gives it back by itself at that moment, mostly at once; a server that leaves the end out loses it.
        """
        self._timer.cancel()
        if not self._response.content.is_eof():
            self._loop.call_later(_END_WAIT_S, self._response.close)

    def _expire(self) -> None:
        self._error = _too_long()
        self._response.close()

    async def _read(self) -> list[Token]:
        if self._error is not None:
            raise self._error
        try:
            data = await self._response.content.readany()
        except TimeoutError as error:
            raise _hung() from error
        except aiohttp.ClientError as error:
            raise self._error or _broken(error) from error
        self._read_at = self._loop.time()
        tokens = self._tokens(self._parser.feed(data) if data else self._parser.end())
        if not data and self._error is None and not (tokens and tokens[-1].last):
            raise _broken(None)
        return tokens

    def _tokens(self, events: list[bytes]) -> list[Token]:
        """The tokens of events that came together; those before an error are still passed on, whatever the network did.

        Raises:
            ApiError: the first of them is an error.
        """
        tokens: list[Token] = []
        for event in events:
            try:
                tokens.append(_token(event))
            except ApiError as error:
                if not tokens:
                    raise
                self._error = error
                break
        return tokens


def _token(event: bytes) -> Token:
    try:
        value = orjson.loads(event)
        if "error" in value:
            raise _event_error(value)
        token = value["token"]
        return Token(
            token["text"],
            token["logprob"],
            token["special"],
            value.get("top_tokens") or [],
            value.get("details") or {},
            value["generated_text"] is not None,
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _broken(error) from error


_EVENT_ERRORS: Final[Mapping[str, tuple[int, str, str, float | None]]] = {
    "overloaded": (429, "rate_limit_error", "model_overloaded", _RETRY_AFTER_S),
    "validation": (400, "invalid_request_error", "invalid_request", None),
    "generation": (502, "server_error", "generation_failed", None),
    "incomplete_generation": (502, "server_error", "generation_failed", None),
    "incomplete_generation_stream": (502, "server_error", "generation_failed", None),
}
"""TGI's error types → status, type, code, seconds to wait."""


def _event_error(value: Mapping[str, Any]) -> ApiError:
    kind = str(value.get("error_type", "generation"))
    status, openai_type, code, retry = _EVENT_ERRORS.get(kind, _EVENT_ERRORS["generation"])
    message = f"The model server answered: {value['error']}"
    return ApiError(status, message, type=openai_type, code=code, retry_after_s=retry)


def _hung() -> ApiError:
    return ApiError(504, "The model server fell silent.", type="server_error", code="upstream_timeout")


def _too_long() -> ApiError:
    return ApiError(504, "The answer took longer than it may.", type="server_error", code="answer_timeout")


def _broken(error: Exception | None) -> ApiError:
    why = f": {type(error).__name__}" if error else ""
    return ApiError(
        502, f"The model server ended the answer before it was whole{why}.", type="server_error", code="upstream_broken"
    )


def _away() -> ApiError:
    return ApiError(
        503,
        "The model server cannot be reached; it may be starting again.",
        type="service_unavailable",
        code="upstream_unavailable",
        retry_after_s=_RETRY_AFTER_S,
    )


class Upstream:
    """The pool of connections to model servers. Opened and closed in the event loop that uses it."""

    def __init__(self, timeouts: UpstreamTimeouts) -> None:
        self._timeouts = timeouts
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s)
        self._session = aiohttp.ClientSession(
            # No cap of its own: TGI admits or refuses, and a waiting line here would hide that.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def generate(self, url: str, inputs: str, parameters: Mapping[str, Any]) -> TokenStream:
        """Starts an answer and waits for its first token.

        Args:
            url: base URL of the server.
            inputs: the rendered prompt.
            parameters: TGI's ``parameters``.

        Raises:
            ApiError: 429 overloaded, 400 refused, 502 failed, 503 away, 504 silent.
        """
        body = orjson.dumps({"inputs": inputs, "parameters": parameters})
        response = await self._post(f"{url.rstrip('/')}/generate_stream", body)
        try:
            if response.status != 200:
                raise await _status_error(response)
        except BaseException:
            response.close()
            raise
        stream = TokenStream(response, self._timeouts)
        try:
            await stream.open()
        except BaseException:
            stream.close()
            raise
        return stream

    async def _post(self, url: str, body: bytes) -> aiohttp.ClientResponse:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._session.post(
                    url, data=body, headers={"content-type": "application/json"}, allow_redirects=False
                )
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
                if attempt == _ATTEMPTS:
                    raise _away() from error
                await asyncio.sleep(0)
            except aiohttp.ConnectionTimeoutError as error:
                # A TimeoutError too, but no server has heard of the request.
                raise _away() from error
            except TimeoutError as error:
                raise _hung() from error
            except aiohttp.ClientError as error:
                raise _broken(error) from error
        raise AssertionError("the loop returns or raises")  # pragma: no cover


async def _status_error(response: aiohttp.ClientResponse) -> ApiError:
    """TGI's errors without a stream: JSON ``{"error", "error_type"}``, plain text, or nothing."""
    try:
        text = (await response.content.read(4096)).decode("utf-8", "replace")
    except TimeoutError:
        return _hung()
    except aiohttp.ClientError as error:
        return _broken(error)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, dict) and "error" in value:
        return _event_error(value)
    return ApiError(
        502,
        f"The model server refused the gateway's request with status {response.status}: {text[:200] or 'no body'}",
        type="server_error",
        code="upstream_refused",
    )
