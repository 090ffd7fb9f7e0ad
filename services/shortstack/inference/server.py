"""The process around the app: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator

import uvicorn
from starlette.types import ASGIApp

from shortstack.core.errors import Fatal

__all__ = ["GracefulServer", "bind"]

_LOG = logging.getLogger(__name__)


def bind(hostname: str, port: int) -> socket.socket:
    """Takes the port without listening: it is ours from the start, and refuses connections until the model stands.

    Raises:
        Fatal: the port is taken, or the address is not this machine's.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in hostname else socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((hostname, port))
    except OSError as error:
        taken.close()
        where = f"HOSTNAME {hostname}, PORT {port}"
        raise Fatal(f"cannot listen: {error}", where=where, remedy="Free the port or choose another.") from error
    return taken


class GracefulServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT; then refuses connections, lets requests under way finish, and returns.

    Args:
        grace: seconds they have; then ``give_up`` is called, which ends them with an error of their own.
    """

    def __init__(self, app: ASGIApp, grace: float, give_up: Callable[[], None]) -> None:
        # One second more than ours: what is still open then is cut.
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(grace) + 2,
        )
        super().__init__(config)
        self._grace = grace
        self._give_up = give_up

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles signals in the loop and, unlike uvicorn, does not raise them again: a clean end is exit 0."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says where."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            _LOG.info("listening on http://%s:%d", host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listener, waits for requests under way, gives up on them after the grace."""
        timer = asyncio.get_running_loop().call_later(self._grace, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
