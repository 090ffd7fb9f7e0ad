"""Which process listens where on one machine: one base port, fixed offsets.

Two stacks on a machine differ in ``SHORTSTACK_PORT_BASE`` (and ``SHORTSTACK_VAR``) alone.

    base + 10·k       gRPC of service k
    base + 10·k + 1   its HTTP: /livez, /readyz, /metrics
    base + 80         the gateway, unless the base is the default one: then 8080
    base + 92, + 93   the broker, its controller
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Fatal

__all__ = ["DEFAULT_GATEWAY_PORT", "DEFAULT_PORT_BASE", "PortPlan", "require_free"]

DEFAULT_PORT_BASE: Final = 18000
DEFAULT_GATEWAY_PORT: Final = 8080
_SLOTS: Final = {"ingestion": 10, "formatting": 20, "assembly": 30, "training": 40, "serving": 50, "inference": 70}
_GATEWAY: Final = 80
_BROKER: Final = 92
_HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PortPlan:
    """All ports of one stack.

    Attributes:
        base: lowest port; the plan takes fewer than 100 from here.
        gateway: what users call; None takes 8080 for the default base and base + 80 otherwise.
    """

    base: int = DEFAULT_PORT_BASE
    gateway: int | None = None

    def grpc(self, service: str) -> int:
        """gRPC port of ``service``."""
        return self.base + _SLOTS[service]

    def http(self, service: str) -> int:
        """Port of health and metrics of ``service``; for inference and gateway also what they serve."""
        return self.gateway_port if service == "gateway" else self.base + _SLOTS[service] + 1

    @property
    def gateway_port(self) -> int:
        """Port that chat clients call."""
        if self.gateway is not None:
            return self.gateway
        return DEFAULT_GATEWAY_PORT if self.base == DEFAULT_PORT_BASE else self.base + _GATEWAY

    @property
    def broker(self) -> int:
        """Port of the broker's clients."""
        return self.base + _BROKER

    @property
    def controller(self) -> int:
        """Port of the broker's KRaft controller."""
        return self.base + _BROKER + 1

    def addresses(self) -> dict[str, str]:
        """Where a process finds its peers, as the environment variables that it reads."""
        peers = ("ingestion", "formatting", "assembly", "training", "serving")
        found = {f"SHORTSTACK_{service.upper()}_ADDRESS": f"{_HOST}:{self.grpc(service)}" for service in peers}
        return found | {
            "SHORTSTACK_INFERENCE_URL": f"http://{_HOST}:{self.http('inference')}",
            "SHORTSTACK_GATEWAY_URL": f"http://{_HOST}:{self.gateway_port}",
        }

    def taken_by(self, service: str) -> dict[str, int]:
        """The ports of ``service`` by what they are for."""
        if service == "kafka":
            return {"kafka": self.broker, "controller": self.controller}
        ports = {"http": self.http(service)}
        if service in _SLOTS and service != "inference":
            ports["grpc"] = self.grpc(service)
        return ports


def require_free(port: int, owner: str) -> None:
    """Returns if nothing listens on ``port``.

    Raises:
        Fatal: something does; names ``owner``, who needs the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise Fatal(
                f"port {port} is taken",
                where=owner,
                remedy="Stop what listens there (`shortstack down` stops this stack), or set SHORTSTACK_PORT_BASE "
                "to another number.",
            ) from error
