"""``/v1/fine_tuning``."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, Request

from shortstack.gateway.chat.requests import json_object
from shortstack.gateway.errors import ApiError, invalid
from shortstack.gateway.fine_tuning.requests import read_job
from shortstack.gateway.fine_tuning.service import JobService
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.paging import page, page_limit

__all__ = ["jobs_router"]

_METADATA: Final = re.compile(r"metadata\[(.{1,64})\]")
_IDEMPOTENCY: Final = "Idempotency-Key"
_IDEMPOTENCY_MAX: Final = 255
_LIMIT: Final = 20
_LIMIT_MAX: Final = 100
_CHECKPOINTS: Final = 10
_NOT_OFFERED: Final = (
    ("/v1/fine_tuning/jobs/{job_id}/pause", "Pausing a job is not offered; cancel it, or let it go on."),
    ("/v1/fine_tuning/jobs/{job_id}/resume", "Pausing a job is not offered, so there is nothing to resume."),
    ("/v1/fine_tuning/alpha/graders/run", "Graders are not offered."),
    ("/v1/fine_tuning/alpha/graders/validate", "Graders are not offered."),
)


class _Jobs:
    def __init__(self, service: JobService, auth: Authenticator) -> None:
        self._service = service
        self._auth = auth

    async def create(self, request: Request) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        wish, key = read_job(json_object(await request.body())), request.headers.get(_IDEMPOTENCY)
        if key is not None and not 0 < len(key) <= _IDEMPOTENCY_MAX:
            raise invalid(f"Invalid '{_IDEMPOTENCY}': 1 to {_IDEMPOTENCY_MAX} characters.", None, "invalid_value")
        return await self._service.create(principal.owner, wish, key)

    async def listed(self, request: Request) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        jobs, more = await self._service.listed(
            principal.owner,
            after=request.query_params.get("after", ""),
            limit=page_limit(request, _LIMIT, _LIMIT_MAX),
            metadata=_metadata_filter(request),
        )
        return page(jobs, more)

    async def one(self, request: Request, job_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        return await self._service.get(principal.owner, job_id)

    async def cancel(self, request: Request, job_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        return await self._service.cancel(principal.owner, job_id)

    async def events(self, request: Request, job_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        after, limit = request.query_params.get("after", ""), page_limit(request, _LIMIT, _LIMIT_MAX)
        return page(*await self._service.events(principal.owner, job_id, after=after, limit=limit))

    async def checkpoints(self, request: Request, job_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        found = await self._service.checkpoints(principal.owner, job_id)
        limit, after = page_limit(request, _CHECKPOINTS, _LIMIT_MAX), request.query_params.get("after")
        if after is not None:
            ids = [one["id"] for one in found]
            if after not in ids:
                raise invalid(f"Invalid 'after': '{after}' is no checkpoint's id.", "after", "invalid_value")
            found = found[ids.index(after) + 1 :]
        return page(found[:limit], len(found) > limit)


def jobs_router(service: JobService, auth: Authenticator) -> APIRouter:
    """The routes of fine-tuning jobs; they need the scope datasets."""
    jobs = _Jobs(service, auth)
    router = APIRouter()
    base, one = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job_id}"
    router.add_api_route(base, jobs.create, methods=["POST"], response_model=None)
    router.add_api_route(base, jobs.listed, methods=["GET"], response_model=None)
    router.add_api_route(one, jobs.one, methods=["GET"], response_model=None)
    router.add_api_route(f"{one}/cancel", jobs.cancel, methods=["POST"], response_model=None)
    router.add_api_route(f"{one}/events", jobs.events, methods=["GET"], response_model=None)
    router.add_api_route(f"{one}/checkpoints", jobs.checkpoints, methods=["GET"], response_model=None)
    for path, why in _NOT_OFFERED:
        router.add_api_route(path, _refuse(auth, why), methods=["POST"], response_model=None)
    return router


def _refuse(auth: Authenticator, why: str) -> Any:
    async def refuse(request: Request) -> None:
        await auth.principal(request, "datasets")
        raise ApiError(501, why, code="not_offered")

    return refuse


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """``metadata[k]=v`` pairs; ``metadata=null`` asks for jobs without any, which reads as None."""
    query = request.query_params
    if query.get("metadata") == "null":
        return None
    pairs = ((_METADATA.fullmatch(name), value) for name, value in query.multi_items())
    return {match[1]: value for match, value in pairs if match}
