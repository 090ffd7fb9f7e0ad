"""The gateway as a component: uvicorn in an event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvicorn
import uvloop

from shortstack.core.errors import Fatal
from shortstack.gateway.gateway import Gateway

__all__ = ["ApiServer"]

_START_S = 30.0


class ApiServer:
    """Serves a gateway's application over HTTP.

    Args:
        gateway: what answers.
        host: address to listen on.
        port: 0 takes a free one; see `port`.

    Attributes:
        failed: what ended it, if it ended by itself.
    """

    def __init__(self, gateway: Gateway, host: str, port: int) -> None:
        self._gateway = gateway
        self._host = host
        self._wanted = port
        self._listener: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._up = threading.Event()
        self._grace_s = 20.0
        self.failed: Exception | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before `start`."""
        return int(self._listener.getsockname()[1]) if self._listener else 0

    def start(self) -> None:
        """Listens and answers.

        Raises:
            Fatal: the port is taken, or the gateway does not come up.
        """
        self._listener = _listen(self._host, self._wanted)
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        if not self._up.wait(_START_S) or self.failed is not None:
            raise self.failed or Fatal(f"the gateway did not come up within {_START_S:g} s", where="gateway")

    def stop(self, deadline_s: float) -> None:
        """Takes no more connections, lets answers under way finish, and ends them at the deadline."""
        if self._thread is None:
            return
        if self._server is not None:
            self._server.config.timeout_graceful_shutdown = max(1, int(deadline_s) - 1)
            self._server.should_exit = True
        self._thread.join(deadline_s)
        self._thread = None
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except Exception as error:  # noqa: BLE001 - it is another thread that must hear of it
            self.failed = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        async with self._gateway.running() as app:
            config = uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                backlog=2048,
            )
            self._server = uvicorn.Server(config)
            watcher = asyncio.create_task(self._announce(self._server))
            try:
                await self._server.serve(sockets=[self._listener] if self._listener else None)
            finally:
                watcher.cancel()

    async def _announce(self, server: uvicorn.Server) -> None:
        while not server.started:
            await asyncio.sleep(0.005)
        self._up.set()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise Fatal(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            where="HTTP port",
            remedy="Free the port, or set SHORTSTACK_HTTP_PORT to another one (0 takes a free one).",
        ) from error
    listener.setblocking(False)
    return listener
