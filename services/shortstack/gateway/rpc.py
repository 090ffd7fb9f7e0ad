"""Calls of the other services: their errors come out as they went in."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from shortstack.core.errors import Transient
from shortstack.core.grpc import ERROR_KEY, error_from_rpc, with_trace

__all__ = ["call"]

Request = TypeVar("Request")
Response = TypeVar("Response")

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float, service: str
) -> Response:
    """Calls ``method`` and waits for its answer.

    Raises:
        Transient: the service is away or too slow.
        ShortstackError: what the service raised, of the same kind.
    """
    try:
        return await method(request, timeout=timeout_s, metadata=with_trace())
    except grpc.aio.AioRpcError as error:
        # Its stubs leave out that metadata is pairs.
        sent = dict(cast(Any, error).trailing_metadata() or ())
        if error.code() in _AWAY and ERROR_KEY not in sent:
            raise Transient(
                f"the {service} service is away", remedy="Nothing was changed that cannot be asked again; try again."
            ) from error
        raise error_from_rpc(error) from error
