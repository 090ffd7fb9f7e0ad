"""The ASGI application: routes, error objects, and the loops that run beside them."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shortstack.core.errors import ShortstackError
from shortstack.core.health import Health
from shortstack.core.metrics import Metrics
from shortstack.gateway.errors import CLIENT_GONE, ApiError, error_response, from_stack, unforeseen

__all__ = ["build_app", "operations_router"]


def build_app(routers: Sequence[APIRouter]) -> FastAPI:
    """The application without its edge. No pages of its own: FastAPI's would load scripts from elsewhere."""
    app = FastAPI(title="Shortstack gateway", docs_url=None, redoc_url=None, openapi_url=None)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ShortstackError, _stack_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    # Starlette answers with this one and raises the error again, so that the edge logs it.
    app.add_exception_handler(Exception, _unforeseen)
    return app


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _stack_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ShortstackError)
    return error_response(from_stack(error))


async def _client_gone(_request: Request, _error: Exception) -> Response:
    """The client left before its request was whole."""
    return Response(status_code=CLIENT_GONE)


async def _unforeseen(_request: Request, _error: Exception) -> Response:
    return error_response(unforeseen())


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown address, a method that it does not have, a broken form."""
    assert isinstance(error, HTTPException)
    address = f"{request.method} {request.url.path}"
    known = {
        404: ApiError(404, f"Invalid URL ({address})", code="unknown_url"),
        405: ApiError(405, f"Method not allowed ({address})", code="method_not_allowed"),
    }
    fallback = ApiError(error.status_code, str(error.detail), code=None)
    response = error_response(known.get(error.status_code, fallback))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


class _Operations:
    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics

    async def alive(self) -> Response:
        live = self._health.liveness()
        body = orjson.dumps({"alive": live.ok, "seconds_since_progress": round(live.age_s, 3)})
        return Response(body, 200 if live.ok else 503, media_type="application/json")

    async def ready(self) -> Response:
        state = self._health.readiness()
        body = orjson.dumps({"ready": state.ok, "waiting": state.waiting})
        return Response(body, 200 if state.ok else 503, media_type="application/json")

    async def metrics(self) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


def operations_router(health: Health, metrics: Metrics) -> APIRouter:
    """/livez, /readyz and /metrics, without a key."""
    health.measured(metrics)
    operations = _Operations(health, metrics)
    router = APIRouter()
    router.add_api_route("/livez", operations.alive, methods=["GET"])
    router.add_api_route("/readyz", operations.ready, methods=["GET"])
    router.add_api_route("/metrics", operations.metrics, methods=["GET"])
    return router
