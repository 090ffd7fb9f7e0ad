"""Who asks, from the Authorization header; remembered for a few seconds, so that a chat costs no query."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Final

from starlette.requests import Request

from shortstack.core.clock import Clock
from shortstack.gateway.errors import ApiError
from shortstack.gateway.keys.secret import Principal
from shortstack.gateway.keys.store import KeyStore

__all__ = ["Authenticator"]

_KEPT: Final = 10_000


class Authenticator:
    """Checks keys and scopes.

    Args:
        store: the keys.
        remember_s: how long a good key is not looked up again; a key revoked elsewhere lives on so long.
        clock: time.
    """

    def __init__(self, store: KeyStore, remember_s: float, clock: Clock) -> None:
        self._store = store
        self._remember_s = remember_s
        self._clock = clock
        # By digest: no key stays in memory.
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    async def principal(self, request: Request, scope: str) -> Principal:
        """Who sent ``request``, if they may do ``scope``.

        Raises:
            ApiError: 401, no key or a wrong one; 403, the key lacks the scope.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized(
                "You didn't provide an API key. Send it in an Authorization header using Bearer auth "
                "(i.e. Authorization: Bearer YOUR_KEY).",
                None,
            )
        principal = await self._verify(key)
        if principal is None:
            raise _unauthorized("Incorrect API key provided. `shortstack keys list` shows the keys.", "invalid_api_key")
        request.scope["shortstack.key_id"] = principal.key_id
        if not principal.may(scope):
            raise ApiError(
                403,
                f"You have insufficient permissions for this operation. Missing scopes: {scope}.",
                type="permission_error",
                code="missing_scope",
            )
        return principal

    def forget(self) -> None:
        """Drops what is remembered, after a revoke."""
        self._known.clear()

    async def _verify(self, key: str) -> Principal | None:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        if known is not None and known[1] > self._clock.monotonic():
            return known[0]
        principal = await asyncio.to_thread(self._store.verify, key)
        if principal is None:
            self._known.pop(digest, None)
            return None
        self._known[digest] = (principal, self._clock.monotonic() + self._remember_s)
        self._known.move_to_end(digest)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return principal


def _unauthorized(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code)
