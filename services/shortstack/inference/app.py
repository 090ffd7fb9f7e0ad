"""The HTTP API: TGI's routes, and the adapters' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shortstack.core.errors import ShortstackError
from shortstack.inference.adapter_routes import add_adapter_routes
from shortstack.inference.body import read_body
from shortstack.inference.config import InferenceConfig
from shortstack.inference.edge import Edge
from shortstack.inference.engine.adapters import Adapters
from shortstack.inference.engine.engine import Engine
from shortstack.inference.errors import BodyRefused, wire_error
from shortstack.inference.event_stream import ClientLeft, EventStream, unless_client_leaves
from shortstack.inference.generate_request import TextRequest, parse_body
from shortstack.inference.generation import Generation
from shortstack.inference.health import HealthCheck
from shortstack.inference.metrics import Metrics
from shortstack.inference.text import TextCodec
from shortstack.inference.validation import Limits
from shortstack.inference.wire import complete_body, complete_headers, step_event

__all__ = ["Parts", "build_app"]

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on."""

    config: InferenceConfig
    codec: TextCodec
    engine: Engine
    adapters: Adapters
    generation: Generation
    health: HealthCheck
    metrics: Metrics
    limits: Limits
    version: str
    compute_type: str


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


class Routes:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def generate(self, request: Request) -> Response:
        """`POST /generate`: one JSON object."""
        text = await self._read(request)
        return await self._complete(request, text, full_text=False, as_list=False)

    async def generate_stream(self, request: Request) -> Response:
        """`POST /generate_stream`: 200 at once, then events; errors are events too."""
        return self._stream(await self._read(request), full_text=False)

    async def compat(self, request: Request) -> Response:
        """`POST /`: a list of one with the full text by default, or a stream."""
        text = await self._read(request)
        if text.stream:
            return self._stream(text, full_text=True)
        return await self._complete(request, text, full_text=True, as_list=True)

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: ids with text and byte offsets; parameters are ignored."""
        text = await self._read(request)
        spans = await asyncio.to_thread(self._parts.codec.spans, text.inputs)
        return _json([asdict(span) for span in spans])

    async def info(self, _: Request) -> Response:
        """`GET /info`: TGI's fields, and the ids of the loaded adapters."""
        config, limits = self._parts.config, self._parts.limits
        return _json(
            {
                "model_id": str(config.model_id),
                "model_sha": None,
                "model_pipeline_tag": None,
                "max_concurrent_requests": config.max_concurrent_requests,
                "max_best_of": limits.max_best_of,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_tokens": limits.max_input_tokens,
                "max_total_tokens": limits.max_total_tokens,
                "validation_workers": 1,
                "max_client_batch_size": 1,
                "router": "shortstack-inference",
                "version": self._parts.version,
                "sha": None,
                "docker_label": None,
                "adapters": [adapter.id for adapter in self._parts.adapters.all()],
            }
        )

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`."""
        name = str(self._parts.config.model_id)
        return _json({"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": name}]})

    async def health(self, _: Request) -> Response:
        """`GET /health`: empty 200, or 503."""
        if await self._parts.health.healthy():
            return Response()
        return _json({"error": "unhealthy", "error_type": "healthcheck"}, 503)

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`: Prometheus text."""
        return Response(self._parts.metrics.page(), media_type="text/plain")

    async def _read(self, request: Request) -> TextRequest:
        raw = await read_body(request, self._parts.config.payload_limit)
        return parse_body(raw, request.headers.get("content-type", ""))

    async def _complete(self, request: Request, text: TextRequest, *, full_text: bool, as_list: bool) -> Response:
        work = self._parts.generation.complete(text)
        completions = await unless_client_leaves(request.receive, work)
        body: Any = complete_body(text, completions, full_text=full_text)
        headers = complete_headers(text, completions[0], self._parts.compute_type)
        return _json([body] if as_list else body, headers=headers)

    def _stream(self, text: TextRequest, *, full_text: bool) -> Response:
        headers = {
            "x-compute-type": self._parts.compute_type,
            "x-compute-characters": str(len(text.inputs)),
            "x-accel-buffering": "no",
        }
        return EventStream(self._frames(text, full_text), headers, self._parts.config.keep_alive_seconds)

    async def _frames(self, text: TextRequest, full_text: bool) -> AsyncGenerator[bytes, None]:
        index = 0
        try:
            async with aclosing(self._parts.generation.stream(text)) as steps:
                async for step in steps:
                    index += 1
                    yield _frame(step_event(text, index, step, full_text=full_text))
        except ShortstackError as error:
            yield _frame(wire_error(error).body)


def _frame(event: object) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ShortstackError)
    shown = wire_error(error)
    return _json(shown.body, shown.status)


async def _on_refused_body(_: Request, error: Exception) -> Response:
    assert isinstance(error, BodyRefused)
    return Response(error.what, error.status, media_type="text/plain")


async def _on_routing(_: Request, error: Exception) -> Response:
    """Unknown paths and methods: an empty body."""
    assert isinstance(error, HTTPException)
    return Response(status_code=error.status_code, headers=dict(error.headers or {}))


async def _on_left(_: Request, __: Exception) -> Response:
    """Nobody reads this; 499 is what proxies log for it."""
    return Response(status_code=499)


def build_app(parts: Parts) -> FastAPI:
    """The app, with every route; it owns nothing and starts nothing."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    routes = Routes(parts)
    posts: dict[str, _Handler] = {
        "/": routes.compat,
        "/generate": routes.generate,
        "/generate_stream": routes.generate_stream,
        "/tokenize": routes.tokenize,
    }
    gets: dict[str, _Handler] = {
        "/": routes.health,
        "/health": routes.health,
        "/ping": routes.health,
        "/info": routes.info,
        "/metrics": routes.metrics,
        "/v1/models": routes.models,
    }
    for path, handler in posts.items():
        app.add_route(path, handler, methods=["POST"])
    for path, handler in gets.items():
        app.add_route(path, handler, methods=["GET"])
    add_adapter_routes(app, parts.adapters, parts.engine, parts.config.payload_limit)
    app.add_exception_handler(BodyRefused, _on_refused_body)
    app.add_exception_handler(ClientLeft, _on_left)
    app.add_exception_handler(ShortstackError, _on_error)
    app.add_exception_handler(HTTPException, _on_routing)
    app.add_middleware(Edge, api_key=parts.config.api_key)
    return app
