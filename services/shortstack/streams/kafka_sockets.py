"""Connections of kafka-python that fail: closed at once, in finite time, and not before their last words are read.

The library leaves such sockets to the garbage collector, waits for ever for a TLS handshake that nobody answers, and
drops what came just before the other side hung up: a broker's "wrong password" is sent like that.
"""

from __future__ import annotations

import ssl
import time
from typing import Any, Final

from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

__all__ = ["mend_connections"]

_HANDSHAKE_S: Final = 5.0
_READ: Final = {kind: kind._sock_recv for kind in (KafkaTCPTransport, KafkaSSLTransport)}


def mend_connections() -> None:
    """Puts what stands here in the place of kafka-python's; calling it twice changes nothing."""
    KafkaNetSocket.connect = _connect
    KafkaSSLTransport.handshake = _handshake
    KafkaTCPTransport._sock_recv = _receive_tcp
    KafkaSSLTransport._sock_recv = _receive_ssl


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


async def _handshake(transport: Any) -> None:
    """As ``KafkaSSLTransport.handshake`` of 3.0.12, within 5 s."""
    sock, net = transport._sock, transport._net
    deadline = time.monotonic() + _HANDSHAKE_S
    try:
        while True:
            try:
                sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                await net.wait_read(sock, timeout_at=deadline)
            except ssl.SSLWantWriteError:
                await net.wait_write(sock, timeout_at=deadline)
    except BaseException:
        sock.close()
        raise


def _receive_tcp(transport: Any) -> tuple[bytes, Exception | None]:
    return _receive(KafkaTCPTransport, transport)


def _receive_ssl(transport: Any) -> tuple[bytes, Exception | None]:
    return _receive(KafkaSSLTransport, transport)


def _receive(kind: Any, transport: Any) -> tuple[bytes, Exception | None]:
    """Bytes, or why there are no more; never both, as the caller drops bytes that come with an error."""
    data, error = _READ[kind](transport)
    return data, None if data else error  # the next read finds the end again
