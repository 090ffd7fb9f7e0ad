"""Users, passwords and certificates towards Apache Kafka: checked before anything is sent, named when refused.

kafka-python tries a refused connection again until its time is over and then says that it could not bootstrap, whatever
the reason. So when it says that, one connection is made here, by its own means, to learn what the broker said.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import kafka.errors as kafka_errors
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, ShortstackError, Transient, did_you_mean

__all__ = ["check_security", "unreachable"]

_PROTOCOL: Final = "SHORTSTACK_KAFKA_SECURITY_PROTOCOL"
_MECHANISM: Final = "SHORTSTACK_KAFKA_SASL_MECHANISM"
_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PROBE_S: Final = 5.0

_CREDENTIALS: Final = "Check SHORTSTACK_KAFKA_SASL_USERNAME, SHORTSTACK_KAFKA_SASL_PASSWORD and the mechanism."
_REMEDIES: Final[Mapping[str, str]] = {
    "Hostname mismatch": "Name the broker in SHORTSTACK_KAFKA_BOOTSTRAP as its certificate does.",
    "IP address mismatch": "Name the broker in SHORTSTACK_KAFKA_BOOTSTRAP as its certificate does.",
    "CERTIFICATE_VERIFY_FAILED": "Set SHORTSTACK_KAFKA_SSL_CAFILE to the authority that signed its certificate.",
    "CERTIFICATE_REQUIRED": "Set SHORTSTACK_KAFKA_SSL_CERTFILE and SHORTSTACK_KAFKA_SSL_KEYFILE.",
    "UNKNOWN_CA": "It does not trust who signed SHORTSTACK_KAFKA_SSL_CERTFILE: take another certificate.",
    "WRONG_VERSION_NUMBER": f"That listener speaks no TLS: check {_PROTOCOL} and the port.",
    "RECORD_LAYER_FAILURE": f"That listener speaks no TLS: check {_PROTOCOL} and the port.",
}
"""What OpenSSL's words mean for the settings; the first that is found counts."""


def check_security(config: ServiceConfig) -> None:
    """Looks at the settings alone.

    Raises:
        Fatal: a value is unknown, one that belongs to it is missing, or a file cannot be read; names the variable.
    """
    protocol = config.kafka_security_protocol
    if protocol not in _PROTOCOLS:
        raise Fatal(
            f'there is no security protocol "{protocol}"', where=_PROTOCOL, remedy=did_you_mean(protocol, _PROTOCOLS)
        )
    if protocol.startswith("SASL_"):
        mechanism = config.kafka_sasl_mechanism or ""
        if mechanism not in _MECHANISMS:
            raise Fatal(
                f'{protocol} cannot use the mechanism "{mechanism}"',
                where=_MECHANISM,
                remedy=did_you_mean(mechanism, _MECHANISMS),
            )
        for name in ("kafka_sasl_username", "kafka_sasl_password"):
            if not getattr(config, name):
                variable = f"SHORTSTACK_{name.upper()}"
                raise Fatal(f"{protocol} needs it", where=variable, remedy=f"Set {variable}.")
    if protocol.endswith("SSL"):
        _check_certificates(config)


def unreachable(config: ServiceConfig, settings: dict[str, Any]) -> ShortstackError:
    """The error that says why no broker of ``settings`` could be used, after asking the first once more."""
    where = f"Kafka at {config.kafka_bootstrap}"
    server = settings["bootstrap_servers"][0]
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except (OSError, ValueError) as error:
        remedy = "Start it (`shortstack up`) or set SHORTSTACK_KAFKA_BOOTSTRAP."
        return Transient(f"cannot reach {server}: {error}", where=where, remedy=remedy)
    try:
        _connect(settings | {"bootstrap_servers": [server]})
    except (kafka_errors.KafkaError, OSError, ValueError) as error:
        return _refused(error, config, server, where)
    return Transient(f"{server} was not ready in time", where=where)


def _check_certificates(config: ServiceConfig) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, certificate, key = config.kafka_ssl_cafile, config.kafka_ssl_certfile, config.kafka_ssl_keyfile
    if authority is not None:
        with _certificate_errors("SHORTSTACK_KAFKA_SSL_CAFILE", authority):
            context.load_verify_locations(authority)
    if certificate is not None:
        with _certificate_errors("SHORTSTACK_KAFKA_SSL_CERTFILE", certificate):
            context.load_cert_chain(certificate, key)


@contextmanager
def _certificate_errors(variable: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of which ssl.SSLError is one
        key = "; its key stands in SHORTSTACK_KAFKA_SSL_KEYFILE" if variable.endswith("CERTFILE") else ""
        raise Fatal(
            f"cannot use {path}: {error.strerror or error}",
            where=variable,
            remedy=f"Name a PEM file that this process may read{key}.",
        ) from error


def _refused(error: Exception, config: ServiceConfig, server: str, where: str) -> ShortstackError:
    said = str(error)
    protocol = config.kafka_security_protocol
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        user = config.kafka_sasl_username
        what = f'{server} refuses user "{user}" by {config.kafka_sasl_mechanism}: {said}'
        return Fatal(what, where=where, remedy=_CREDENTIALS)
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        what = f"{server} does not take {config.kafka_sasl_mechanism}: {said}"
        return Fatal(what, where=where, remedy=f"Set {_MECHANISM} to one that it takes.")
    for sign, remedy in _REMEDIES.items():
        if sign in said.replace(" ", "_").upper() or sign in said:
            return Fatal(f"{server} and TLS: {said}", where=where, remedy=remedy)
    return Transient(
        f"{server} takes connections but does not answer as Kafka over {protocol}: {said}",
        where=where,
        remedy=f"Check {_PROTOCOL}, and SHORTSTACK_KAFKA_SSL_CERTFILE where it asks for a client's certificate.",
    )


def _connect(settings: dict[str, Any]) -> None:
    """Makes one connection, with all of TLS and SASL, and closes it."""
    with closing(NetworkSelector()) as network, closing(KafkaConnectionManager(network, **settings)) as manager:

        async def connected() -> None:
            broker = manager.cluster.bootstrap_brokers()[0]
            await manager.get_connection(broker.node_id, timeout_ms=_PROBE_S * 1000)
            await manager.cluster.refresh_metadata(broker.node_id)  # a listener that wants SASL hangs up only here

        manager.run(connected)
