"""Alive and ready, told apart, and the small HTTP server that says so.

Alive: something moved within ``liveness_s`` (waiting for Kafka counts, being stuck does not).
Ready: every named part says it can serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal
from shortstack.core.metrics import Metrics

__all__ = ["Health", "HealthServer", "Liveness", "Readiness"]


@dataclass(frozen=True, slots=True)
class Liveness:
    """Whether the process still gets on.

    Attributes:
        ok: the last progress is younger than the limit.
        age_s: seconds since the last progress.
    """

    ok: bool
    age_s: float


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether every part can serve.

    Attributes:
        ok: all parts are ready.
        waiting: part → why it is not ready.
    """

    ok: bool
    waiting: dict[str, str]


class Health:
    """What a process knows of itself. Safe to share between threads.

    Args:
        liveness_s: seconds without progress after which the process counts as stuck.
        clock: time.
    """

    def __init__(self, liveness_s: float, clock: Clock) -> None:
        self._liveness_s = liveness_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last = clock.monotonic()
        self._waiting: dict[str, str] = {}

    def progress(self) -> None:
        """Says that something moved."""
        self._last = self._clock.monotonic()

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        """Sets whether the part ``name`` is ready; ``why`` says what it waits for."""
        with self._lock:
            if ok:
                self._waiting.pop(name, None)
            else:
                self._waiting[name] = why or "not ready"

    def liveness(self) -> Liveness:
        """Age of the last progress, judged."""
        age = self._clock.monotonic() - self._last
        return Liveness(age <= self._liveness_s, age)

    def readiness(self) -> Readiness:
        """Which parts are not ready, and why."""
        with self._lock:
            return Readiness(not self._waiting, dict(self._waiting))

    def measured(self, metrics: Metrics) -> None:
        """Makes both answers metrics, worked out at each scrape."""
        metrics.ready.set_function(lambda: float(self.readiness().ok))
        metrics.last_progress_seconds.set_function(lambda: self.liveness().age_s)


class HealthServer:
    """Serves /livez, /readyz and /metrics. A component.

    Args:
        host: address to listen on.
        port: 0 takes a free one; see `port` after `start`.
        health: what /livez and /readyz answer from.
        metrics: what /metrics answers from.
    """

    def __init__(self, host: str, port: int, health: Health, metrics: Metrics) -> None:
        health.measured(metrics)
        self._address = (host, port)
        self._pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry)),
        }
        self._health = health
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before `start`."""
        return self._server.server_port if self._server else 0

    def start(self) -> None:
        """Listens.

        Raises:
            Fatal: the port is taken.
        """
        host, port = self._address
        try:
            self._server = _Server(self._address, _handler(self._pages))
        except OSError as error:
            raise Fatal(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                where="HTTP port",
                remedy="Free the port, or set SHORTSTACK_HTTP_PORT to another one (0 takes a free one).",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Stops listening."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join(deadline_s)
        self._server.server_close()
        self._thread = None

    def _livez(self) -> tuple[int, str, bytes]:
        live = self._health.liveness()
        body = orjson.dumps({"alive": live.ok, "seconds_since_progress": round(live.age_s, 3)})
        return (200 if live.ok else 503), "application/json", body

    def _readyz(self) -> tuple[int, str, bytes]:
        state = self._health.readiness()
        body = orjson.dumps({"ready": state.ok, "waiting": state.waiting})
        return (200 if state.ok else 503), "application/json", body


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


_REQUEST_TIMEOUT_S: Final = 10.0


def _handler(pages: dict[str, Callable[[], tuple[int, str, bytes]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            page = pages.get(self.path.split("?", 1)[0])
            status, kind, body = page() if page else (404, "text/plain", b"not found\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds; they are not worth a line each."""

    return Handler
