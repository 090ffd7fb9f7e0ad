"""The edge around every request, as one pure ASGI middleware: id, body cap, log line, metric, last resort.

Neither keys nor bodies nor query strings are logged.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shortstack.core.metrics import Metrics
from shortstack.gateway.errors import CLIENT_GONE, ApiError, error_response, unforeseen

__all__ = ["BodyTooLarge", "Edge", "raw_send", "request_id"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
_ENDS: Final = {200: "whole", CLIENT_GONE: "client gone"}
"""How an answer that had begun ended, by the status of its reply; any other status says that it broke off."""
_ID_KEY: Final = "shortstack.request_id"
_SEND_KEY: Final = "shortstack.send"


class BodyTooLarge(ApiError):
    """The request's body is above the cap."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"The request's body is larger than {most} bytes.", code="request_too_large", param=None)


def request_id(scope: Scope) -> str:
    """The request's id, as its reply's ``x-request-id`` says."""
    return str(scope.get(_ID_KEY, ""))


def raw_send(scope: Scope, send: Send) -> Send:
    """What sends the body of a reply that has begun: the server's own ``send``.

    Every layer in between hands a body on as it is, and costs its share of each token of a stream.
    """
    found: Send = scope.get(_SEND_KEY, send)
    return found


class Edge:
    """Wraps the application.

    Args:
        app: what answers.
        body_max: bytes of a request's body.
        upload_max: the same for POST /v1/files.
        metrics: counts requests by route and status.
        log: one line a request.
    """

    def __init__(
        self, app: ASGIApp, *, body_max: int, upload_max: int, metrics: Metrics, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._app = app
        self._body_max = body_max
        self._upload_max = upload_max
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._upload_max if scope["path"] == "/v1/files" else self._body_max
        given, length = _headers(scope)
        scope[_ID_KEY] = given or f"req_{secrets.token_hex(16)}"
        scope[_SEND_KEY] = send
        exchange = _Exchange(receive, send, scope[_ID_KEY], most)
        began = time.perf_counter()
        try:
            if length > most:
                raise BodyTooLarge(most)
            await self._app(scope, exchange.receive, exchange.send)
        except BodyTooLarge as error:
            await self._fail(scope, exchange, error)
        except Exception as error:  # noqa: BLE001 - the last resort: one request fails, not the gateway
            self._log.error("request failed", request=scope[_ID_KEY], exc_info=error)
            await self._fail(scope, exchange, unforeseen())
        finally:
            self._account(scope, exchange, time.perf_counter() - began)

    async def _fail(self, scope: Scope, exchange: _Exchange, error: ApiError) -> None:
        if not exchange.status:
            await error_response(error)(scope, exchange.receive, exchange.send)

    def _account(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        if scope["path"] in _QUIET:
            return
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.http_seconds.labels(route, str(exchange.status)).observe(seconds)
        if "shortstack.model" in scope:
            outcome = scope.get("shortstack.outcome") or _ENDS.get(exchange.status, "broken off")
            self._metrics.answers.labels(outcome).inc()
        self._log.info(
            "request",
            request=scope[_ID_KEY],
            method=scope["method"],
            route=route,
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            key=scope.get("shortstack.key_id"),
            model=scope.get("shortstack.model"),
            outcome=scope.get("shortstack.outcome"),
        )


class _Exchange:
    """Counts what comes in and marks what goes out."""

    __slots__ = ("_id", "_most", "_receive", "_send", "_size", "status")

    def __init__(self, receive: Receive, send: Send, request: str, most: int) -> None:
        self._receive = receive
        self._send = send
        self._id = request
        self._most = most
        self._size = 0
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._most:
                raise BodyTooLarge(self._most)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._id
        await self._send(message)


def _headers(scope: Scope) -> tuple[str, int]:
    """The client's own request id, if it is a decent one, and the length that it announces."""
    given, length = "", 0
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            given = value.decode()
        elif name == b"content-length" and value.isdigit():
            length = int(value)
    return given, length
