"""A broker that asks who is there: SASL with and without TLS, TLS with clients' certificates, and rights."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.certificates import Authority, Certificate

from shortstack.local.broker import BrokerConfig, LocalBroker

HOST = "127.0.0.1"
USER, PASSWORD = "shortstack", "correct-horse"
GUEST, GUEST_PASSWORD = "guest", "battery-staple"
CLIENT = "client"
SCRAM, PLAIN = "SCRAM-SHA-512", "PLAIN"

_LOGIN = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class Secured:
    """A running broker and what its clients need.

    Attributes:
        ports: of each listener, by its protocol.
        authority: has signed the broker's certificate and the client's.
        client: a certificate whose holder may do everything.
    """

    ports: Mapping[str, int]
    authority: Authority
    client: Certificate

    def environment(self, protocol: str) -> dict[str, str]:
        """Variables that are right for ``protocol``, by their names without ``SHORTSTACK_KAFKA_``."""
        known = {
            "BOOTSTRAP": f"{HOST}:{self.ports[protocol]}",
            "BOOTSTRAP_TIMEOUT_S": "1.5",
            "SECURITY_PROTOCOL": protocol,
        }
        if protocol.startswith("SASL"):
            known |= {"SASL_MECHANISM": SCRAM, "SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD}
        if protocol.endswith("SSL"):
            known["SSL_CAFILE"] = str(self.authority.path)
        if protocol == "SSL":
            known |= {"SSL_CERTFILE": str(self.client.certificate), "SSL_KEYFILE": str(self.client.key)}
        return known


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Secured]:
    """One broker for the session, with a listener of each kind; only its own side door is open to all."""
    folder = tmp_path_factory.mktemp("secured")
    libs = Path(os.environ.get("SHORTSTACK_VAR", repository / "var")) / "kafka" / "libs"
    authority = Authority.make(folder / "certificates")
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(5)]
        for probe in found:
            probe.bind((HOST, 0))
        side, controller, *rest = (int(probe.getsockname()[1]) for probe in found)
    ports = dict(zip(("SASL_PLAINTEXT", "SASL_SSL", "SSL"), rest, strict=True))
    plain = BrokerConfig(folder, folder / "kafka.log", side, controller, libs)
    LocalBroker(plain).prepare()
    config = BrokerConfig(
        folder,
        folder / "kafka.log",
        side,
        controller,
        libs,
        properties=_properties(side, controller, ports, authority),
        scram={USER: PASSWORD, GUEST: GUEST_PASSWORD},
    )
    with LocalBroker(config):
        yield Secured(ports, authority, authority.sign(CLIENT))


def _properties(side: int, controller: int, ports: Mapping[str, int], authority: Authority) -> dict[str, str]:
    server = authority.sign("broker")
    store = server.certificate.with_name("store.pem")
    store.write_bytes(server.key.read_bytes() + server.certificate.read_bytes())
    clients = [f"{name}://{HOST}:{port}" for name, port in {"PLAINTEXT": side, **ports}.items()]
    module = f"{_LOGIN}.plain.PlainLoginModule required"
    return {
        "listeners": ",".join([*clients, f"CONTROLLER://{HOST}:{controller}"]),
        "advertised.listeners": ",".join(clients),
        "listener.security.protocol.map": ",".join(
            ["CONTROLLER:PLAINTEXT", "PLAINTEXT:PLAINTEXT", *(f"{name}:{name}" for name in ports)]
        ),
        "sasl.enabled.mechanisms": f"{SCRAM},{PLAIN}",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{module} user_{USER}="{PASSWORD}";',
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
        "listener.name.sasl_ssl.sasl.enabled.mechanisms": SCRAM,
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.path),
        "listener.name.ssl.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER};User:CN={CLIENT}",
    }
