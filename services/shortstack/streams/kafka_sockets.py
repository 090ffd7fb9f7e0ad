"""kafka-python leaves the socket of a failed connection to the garbage collector; here it is closed at once."""

from __future__ import annotations

from typing import Any

from kafka.net.inet import KafkaNetSocket

__all__ = ["close_failed_sockets"]


def close_failed_sockets() -> None:
    """Puts `_connect` in the place of kafka-python's; calling it twice changes nothing."""
    KafkaNetSocket.connect = _connect


async def _connect(
    factory: Any, net: Any, addrinfo: Any, socket_options: Any = (), timeout_at: float | None = None
) -> Any:
    """As ``KafkaNetSocket.connect`` of 3.0.12: a connected, non-blocking socket; or none is left open."""
    family, kind, protocol, _name, address = addrinfo
    sock = factory.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        for option in socket_options:
            sock.setsockopt(*option)
        return await factory.sock_connect(net, sock, address, timeout_at=timeout_at)
    except BaseException:  # also when the client is closed meanwhile
        sock.close()
        raise
