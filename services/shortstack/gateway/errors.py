"""Failures as OpenAI's error object: ``{"error": {"message", "type", "param", "code"}}``.

Field set and types: the ``Error`` schema of OpenAI's published OpenAPI document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.responses import Response

from shortstack.core.errors import Conflict, Forbidden, NotFound, ShortstackError, Transient, wire_code

__all__ = [
    "CLIENT_GONE",
    "ApiError",
    "error_bytes",
    "error_response",
    "from_stack",
    "invalid",
    "unforeseen",
    "unsupported",
]

CLIENT_GONE: Final = 499
"""Status for the log and the metrics alone: nobody is left to read it (nginx's number)."""

_CODES: Final[dict[type[ShortstackError], str]] = {
    NotFound: "not_found",
    Conflict: "conflict",
    Forbidden: "forbidden",
    Transient: "service_unavailable",
}
_RETRY_AFTER_S: Final = 2


class ApiError(Exception):
    """A failure that a client sees.

    Args:
        status: HTTP status.
        message: what was wrong and what to do.
        type: OpenAI's ``error.type``.
        code: machine-readable, or None.
        param: the field at fault, or None.
        retry_after_s: sent as ``Retry-After``, in whole seconds.
        extra: more members of the error object, for example a loading model's state.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})

    def headers(self) -> dict[str, str]:
        """Headers beside the content type."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """400: the request breaks the contract at ``param``."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, why: str) -> ApiError:
    """400: a known field that this gateway does not act on; it is refused, never ignored."""
    return ApiError(400, f"Unsupported parameter: '{param}'. {why}", param=param, code="unsupported_parameter")


def unforeseen() -> ApiError:
    """500: a fault of the gateway itself; what it was stands in the log, with the request's id."""
    return ApiError(500, "The gateway failed on this request.", type="server_error", code="internal_error")


def from_stack(error: ShortstackError) -> ApiError:
    """The client's view of an error of the stack, by the one table of codes."""
    code = wire_code(error)
    name = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    retry = _RETRY_AFTER_S if isinstance(error, Transient) else None
    return ApiError(code.http, str(error), type=code.openai_type, code=name, param=error.param, retry_after_s=retry)


def error_bytes(error: ApiError) -> bytes:
    """The error object as JSON."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
                **error.extra,
            }
        }
    )


def error_response(error: ApiError) -> Response:
    """The error object as a response."""
    return Response(error_bytes(error), error.status, error.headers(), "application/json")
