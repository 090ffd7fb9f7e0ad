"""`GET /adapters`, `PUT` and `DELETE /adapters/{id}`: adapters loaded and dropped while the server runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from shortstack.inference.body import read_body
from shortstack.inference.engine.adapters import Adapters
from shortstack.inference.engine.engine import Engine
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.errors import Rejected

__all__ = ["add_adapter_routes"]


class _PutAdapter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path


def _shown(adapter: Adapter, requests: int) -> dict[str, Any]:
    return {
        "id": adapter.id,
        "path": str(adapter.folder),
        "digest": adapter.digest,
        "rank": adapter.rank,
        "targets": adapter.targets,
        "requests": requests,
    }


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


class _AdapterRoutes:
    def __init__(self, adapters: Adapters, engine: Engine, payload_limit: int) -> None:
        self._adapters = adapters
        self._engine = engine
        self._payload_limit = payload_limit

    async def list(self, _: Request) -> Response:
        """Every adapter, with the requests under way on it."""
        load = self._engine.load()
        return _json({"adapters": [_shown(adapter, load.get(adapter, 0)) for adapter in self._adapters.all()]})

    async def put(self, request: Request) -> Response:
        """Loads a folder under the id; the same content again changes nothing."""
        raw = await read_body(request, self._payload_limit)
        try:
            body = _PutAdapter.model_validate_json(raw)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in fault["loc"]) or "body"
            remedy = 'Send {"path": "/folder/of/the/adapter"}.'
            raise Rejected(f"`{field}`: {fault['msg']}", remedy=remedy, param=field) from error
        adapter = await asyncio.to_thread(self._adapters.put, request.path_params["adapter_id"], body.path)
        return _json(_shown(adapter, self._engine.load().get(adapter, 0)))

    async def drop(self, request: Request) -> Response:
        """Forgets the id at once; requests under way on it (their number is told) finish with its weights."""
        adapter_id = request.path_params["adapter_id"]
        dropped = self._adapters.drop(adapter_id)
        under_way = self._engine.load().get(dropped, 0) if dropped else 0
        return _json({"id": adapter_id, "dropped": dropped is not None, "requests": under_way})


def add_adapter_routes(app: FastAPI, adapters: Adapters, engine: Engine, payload_limit: int) -> None:
    """Adds the three routes."""
    routes = _AdapterRoutes(adapters, engine, payload_limit)
    app.add_route("/adapters", routes.list, methods=["GET"])
    app.add_route("/adapters/{adapter_id:path}", routes.put, methods=["PUT"])
    app.add_route("/adapters/{adapter_id:path}", routes.drop, methods=["DELETE"])
