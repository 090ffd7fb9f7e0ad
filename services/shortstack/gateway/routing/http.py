"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.routing.table import Alias, RouteTable, ServedModel

__all__ = ["models_router"]

_OPERATOR = "shortstack"


class _Models:
    def __init__(self, routes: Callable[[], RouteTable], auth: Authenticator) -> None:
        self._routes = routes
        self._auth = auth

    async def listed(self, request: Request) -> dict[str, Any]:
        principal = await self._auth.principal(request, "chat")
        names = self._routes().names(principal.owner)
        return {"object": "list", "data": [_shown(name, names[name]) for name in sorted(names)]}

    async def one(self, request: Request, model: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "chat")
        table = self._routes()
        found = table.names(principal.owner).get(model)
        if found is None:
            found = table.resolve(model, principal.owner, "")
        return _shown(model, found)


def models_router(routes: Callable[[], RouteTable], auth: Authenticator) -> APIRouter:
    """The routes that list models."""
    models = _Models(routes, auth)
    router = APIRouter()
    router.add_api_route("/v1/models", models.listed, methods=["GET"], response_model=None)
    # Ids hold colons and an "@", no slash; one that comes with a slash is looked up and not found.
    router.add_api_route("/v1/models/{model:path}", models.one, methods=["GET"], response_model=None)
    return router


def _shown(name: str, found: ServedModel | Alias) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": found.created, "owned_by": found.owner or _OPERATOR}
