"""What TGI does around every route: CORS headers, preflight, and the key (tgi-wire/01 and 11)."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Edge"]

_GUARDED: Final = ("/generate", "/generate_stream", "/tokenize", "/adapters")
_VARY: Final = "origin, access-control-request-method, access-control-request-headers"


class Edge:
    """Wraps the whole app.

    Args:
        api_key: what guarded routes ask for as ``authorization: Bearer KEY``, compared without letter case, as TGI
            does; None asks nothing.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"bearer {api_key}".lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers preflights and requests without the key; hands everything else on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["vary"] = _VARY
                headers["access-control-allow-origin"] = "*"
            await send(message)

        await self._chosen(scope)(scope, receive, send_with_cors)

    def _chosen(self, scope: Scope) -> ASGIApp:
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = {"access-control-allow-methods": "GET,POST", "access-control-allow-headers": "content-type"}
            return Response(headers=allowed)
        if self._expected is not None and self._is_guarded(scope):
            given = headers.get("authorization", "").lower().encode()
            if not hmac.compare_digest(given, self._expected):
                return Response(status_code=401)
        return self._app

    def _is_guarded(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.startswith("/adapters/") or path in _GUARDED or (path == "/" and scope["method"] == "POST")
