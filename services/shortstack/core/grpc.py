"""gRPC as every service speaks it: one server with health and reflection, and errors that keep their kind.

A `ShortstackError` leaves a servicer as the status code of its kind; what, where, remedy and param travel in
trailing metadata, so that `error_from_rpc` gives the caller the same error the servicer raised.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import orjson
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection

from shortstack.core import errors
from shortstack.core.errors import Fatal, ShortstackError, Transient, wire_code
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.core.tracing import TRACEPARENT, inject, span

if TYPE_CHECKING:
    _ServerInterceptor = grpc.ServerInterceptor[Any, Any]
else:  # generic in its stubs only
    _ServerInterceptor = grpc.ServerInterceptor

__all__ = ["ERROR_KEY", "GrpcServer", "aio_channel", "channel", "error_from_rpc", "with_trace"]

ERROR_KEY: Final = "shortstack-error-bin"
"""Trailing metadata with the error as JSON."""

_THREADS: Final = 32
_HEALTH_S: Final = 0.5
_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_TEXT: Final = 2000
"""Characters of each part of an error on the wire: trailing metadata is limited to 8 KiB."""

_CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A server that was restarted is found again within a second, not after the default backoff of up to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.enable_http_proxy", 0),
)

_SERVER_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # Without it two servers may listen on one port and each gets some of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_KINDS: Final[dict[str, type[ShortstackError]]] = {
    kind.__name__: kind
    for kind in (
        errors.Invalid,
        errors.NotFound,
        errors.Conflict,
        errors.Forbidden,
        errors.Poison,
        errors.Transient,
        errors.Fatal,
    )
}

_KIND_OF_CODE: Final[dict[grpc.StatusCode, type[ShortstackError]]] = {
    grpc.StatusCode.UNAVAILABLE: Transient,
    grpc.StatusCode.DEADLINE_EXCEEDED: Transient,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Transient,
    grpc.StatusCode.CANCELLED: Transient,
    grpc.StatusCode.INVALID_ARGUMENT: errors.Invalid,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.UNAUTHENTICATED: errors.Forbidden,
}
"""For answers that carry no error of ours: a proxy's, the library's own."""


class GrpcServer:
    """Serves ``servicers`` from a pool of 32 threads, with grpc.health.v1 and reflection. A component.

    A stream holds a thread while it lasts; half of the pool's worth of watchers is what one service expects.

    Args:
        host: address to listen on.
        port: 0 takes a free one; see `port` after `start`.
        servicers: (generated add function, servicer).
        health: its readiness is what grpc.health.v1 answers.
        service_names: full names, for reflection and health.
        telemetry: logs and metrics.
    """

    def __init__(
        self,
        host: str,
        port: int,
        servicers: Sequence[tuple[Callable[[Any, Any], None], object]],
        health: Health,
        service_names: Sequence[str],
        telemetry: Telemetry,
    ) -> None:
        self._host, self._port = host, port
        self._servicers = tuple(servicers)
        self._health = health
        self._names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        self._telemetry = telemetry
        self._serving = HealthServicer()
        self._server: grpc.Server | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Listens.

        Raises:
            Fatal: the port is taken.
        """
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
        server = grpc.server(pool, interceptors=[_Interceptor(self._telemetry)], options=_SERVER_OPTIONS)
        for add, servicer in self._servicers:
            add(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._serving, server)
        reflection.enable_server_reflection((*self._names, reflection.SERVICE_NAME), server)
        address = f"{self._host}:{self._port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise Fatal(
                f"cannot listen on {address}",
                where="gRPC port",
                remedy="Free the port, or set SHORTSTACK_GRPC_PORT to another one (0 takes a free one).",
            ) from error
        server.start()
        self._server = server
        self._thread = threading.Thread(target=self._follow_health, name="grpc health", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Takes no new calls, gives running ones until the deadline."""
        self._stopping.set()
        if self._server is None:
            return
        self._serving.enter_graceful_shutdown()
        # Watches never end by themselves: they get a part of the time, so that the components below get the rest.
        self._server.stop(min(deadline_s / 2, 2.0)).wait(deadline_s)
        if self._thread is not None:
            self._thread.join(deadline_s)
        self._server = self._thread = None

    def _follow_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        while True:
            ready = self._health.readiness().ok
            for name in ("", *self._names):
                self._serving.set(name, status.SERVING if ready else status.NOT_SERVING)
            if self._stopping.wait(_HEALTH_S):
                return


class _Interceptor(_ServerInterceptor):
    """Around every call: trace, time, and the mapping of errors."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        traceparent = next((value for key, value in details.invocation_metadata or () if key == TRACEPARENT), None)
        wrap = {
            (False, False): (self._single, handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (self._stream, handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): (self._single, handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): (self._stream, handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        around, inner, make = wrap[handler.request_streaming, handler.response_streaming]
        return make(
            around(inner, details.method, traceparent),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, inner: Callable[[Any, Any], Any], method: str, traceparent: str | None) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            began = time.monotonic()
            with span(traceparent):
                try:
                    response = inner(request, context)
                except Exception as error:  # noqa: BLE001 - every error leaves as a status
                    self._abort(error, method, context, began)
            self._observe(method, "OK", began)
            return response

        return call

    def _stream(self, inner: Callable[[Any, Any], Any], method: str, traceparent: str | None) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            began = time.monotonic()
            with span(traceparent):
                try:
                    yield from inner(request, context)
                except Exception as error:  # noqa: BLE001 - every error leaves as a status
                    self._abort(error, method, context, began)
            self._observe(method, "OK", began)

        return call

    def _abort(self, error: Exception, method: str, context: grpc.ServicerContext, began: float) -> None:
        if type(error) is Exception:  # what context.abort raises: the status is set already
            raise error
        # Generated code says so of a call that nobody wrote. The stubs do not know that a context can be asked.
        if cast(Any, context).code() is grpc.StatusCode.UNIMPLEMENTED:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered here")
        code = getattr(grpc.StatusCode, wire_code(error).grpc)
        self._observe(method, code.name, began)
        if not isinstance(error, ShortstackError):
            self._telemetry.log.error("call failed", method=method, exc_info=error)
            context.abort(code, f"{method} failed inside; see the log of {self._telemetry.service}")
            return
        context.set_trailing_metadata(((ERROR_KEY, _encode(error)),))
        context.abort(code, str(error)[:_TEXT])

    def _observe(self, method: str, code: str, began: float) -> None:
        self._telemetry.metrics.rpc_seconds.labels(method, code).observe(time.monotonic() - began)


def _encode(error: ShortstackError) -> bytes:
    kind = next(k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS or k is ShortstackError)
    parts = {"what": error.what, "where": error.where, "remedy": error.remedy}
    return orjson.dumps({"kind": kind, "param": error.param, **{k: text[:_TEXT] for k, text in parts.items()}})


def error_from_rpc(error: grpc.RpcError) -> ShortstackError:
    """The error the servicer raised, from what the client's call raised (sync or asyncio).

    An answer without our metadata becomes an error of the kind its status code stands for, else `Fatal`.
    """
    call = cast(Any, error)
    metadata = dict(call.trailing_metadata() or ())
    if ERROR_KEY in metadata:
        sent = orjson.loads(metadata[ERROR_KEY])
        kind = _KINDS.get(sent["kind"], errors.Fatal)
        return kind(sent["what"], where=sent["where"], remedy=sent["remedy"], param=sent["param"])
    code: grpc.StatusCode = call.code()
    return _KIND_OF_CODE.get(code, Fatal)(f"{code.name}: {call.details()}", where="gRPC")


def channel(address: str) -> grpc.Channel:
    """A channel to ``HOST:PORT`` that finds a restarted server within a second; the caller closes it."""
    return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)


def aio_channel(address: str) -> aio.Channel:
    """As `channel`, for asyncio."""
    return aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def with_trace() -> tuple[tuple[str, str], ...]:
    """Metadata for a call, ``stub.Get(request, metadata=with_trace())``: the servicer's logs then carry this trace."""
    return ((TRACEPARENT, inject()),)
