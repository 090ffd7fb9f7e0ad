"""``/v1/admin/keys``: what ``shortstack keys create|list|revoke`` call."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from shortstack.core.errors import Invalid
from shortstack.core.identity import DEFAULT_OWNER, check_name
from shortstack.gateway.chat.requests import json_object
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.keys.secret import SCOPES, read_scopes
from shortstack.gateway.keys.store import DECLARED, KeyRecord, KeyStore

__all__ = ["keys_router"]

_NAME_MAX = 128
_DEFAULT_SCOPES = ["chat", "datasets"]


class _Keys:
    def __init__(self, store: KeyStore, auth: Authenticator) -> None:
        self._store = store
        self._auth = auth

    async def create(self, request: Request) -> dict[str, Any]:
        await self._auth.principal(request, "admin")
        name, owner, scopes = _wanted(json_object(await request.body() or b"{}"))
        record, key = await asyncio.to_thread(self._store.create, name, owner, scopes)
        return {**_shown(record), "key": key}

    async def listed(self, request: Request) -> dict[str, Any]:
        await self._auth.principal(request, "admin")
        records = await asyncio.to_thread(self._store.listed)
        return {"object": "list", "data": [_shown(record) for record in records], "has_more": False}

    async def revoke(self, request: Request, key_id: str) -> dict[str, Any]:
        await self._auth.principal(request, "admin")
        await asyncio.to_thread(self._store.revoke, key_id)
        self._auth.forget()
        return {"id": key_id, "object": "api_key", "deleted": True}


def keys_router(store: KeyStore, auth: Authenticator) -> APIRouter:
    """The routes that manage keys; they need the scope admin."""
    keys = _Keys(store, auth)
    router = APIRouter()
    router.add_api_route("/v1/admin/keys", keys.create, methods=["POST"], response_model=None)
    router.add_api_route("/v1/admin/keys", keys.listed, methods=["GET"], response_model=None)
    router.add_api_route("/v1/admin/keys/{key_id}", keys.revoke, methods=["DELETE"], response_model=None)
    return router


def _wanted(body: dict[str, Any]) -> tuple[str, str, frozenset[str]]:
    name, owner, scopes = body.get("name", ""), body.get("owner") or DEFAULT_OWNER, body.get("scopes", _DEFAULT_SCOPES)
    if not isinstance(name, str) or len(name) > _NAME_MAX:
        raise Invalid(f"name is not a string of at most {_NAME_MAX} characters", param="name")
    if name.strip().lower() == DECLARED:
        # The next declared key would end it.
        raise Invalid(f'"{DECLARED}" is the name of the declared key', remedy="Choose another name.", param="name")
    if not isinstance(owner, str):
        raise Invalid("owner is not a string", param="owner")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise Invalid(f"scopes is not a list of some of {', '.join(SCOPES)}", param="scopes")
    return name, check_name(owner, param="owner"), read_scopes(scopes)


def _shown(record: KeyRecord) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": record.id,
        "prefix": record.prefix,
        "name": record.name,
        "owner": record.owner,
        "scopes": list(record.scopes),
        "created_at": record.created_at,
        "revoked_at": record.revoked_at,
    }
