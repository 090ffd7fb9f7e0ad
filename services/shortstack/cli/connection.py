"""Where the stack is, for commands: gRPC addresses, the gateway, the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import grpc

from shortstack.assembly.v1.assembly_pb2_grpc import AssemblyServiceStub
from shortstack.core.errors import Conflict, Forbidden, Invalid, NotFound, ShortstackError, Transient
from shortstack.core.grpc import channel
from shortstack.core.identity import DEFAULT_OWNER
from shortstack.formatting.v1.formatting_pb2_grpc import FormattingServiceStub
from shortstack.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from shortstack.local.settings import LocalSettings
from shortstack.serving.v1.serving_pb2_grpc import ServingServiceStub
from shortstack.training.v1.training_pb2_grpc import TrainingServiceStub

__all__ = ["Connection", "gateway_error"]

_KEY_FILE: Final = ("gateway", "key")


_KINDS: Final[Mapping[int, type[ShortstackError]]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Transient,
}
_COMMANDS: Final[Mapping[str, str]] = {
    "GET /v1/admin/keys lists them": "`shortstack keys list` shows keys and their ids",
    "GET /v1/models lists them": "`shortstack models list` shows them",
}
"""What the gateway advises a program to ask, as what somebody at a command line would."""


def gateway_error(status: int, body: object) -> ShortstackError:
    """The gateway's refusal as an error of the stack, so that the exit code says of which kind it is.

    Args:
        status: HTTP status, 400 or above.
        body: the reply's JSON, its error object, or text; another server's may be anything.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") if isinstance(error, dict) else error
    said = str(said or "no reason given")
    for request, command in _COMMANDS.items():
        said = said.replace(request, command)
    kind = _KINDS.get(status, Transient if status >= 500 else Invalid)
    return kind(f"{said} (HTTP {status})", where="gateway")


@dataclass(frozen=True)
class Connection:
    """A stack: addresses from SHORTSTACK_*_ADDRESS and SHORTSTACK_GATEWAY_URL, else those of this machine's."""

    settings: LocalSettings
    owner: str

    @classmethod
    def open(cls) -> Connection:
        """The stack that the environment names."""
        return cls(LocalSettings(), os.environ.get("SHORTSTACK_OWNER", DEFAULT_OWNER))

    def _channel(self, service: str) -> grpc.Channel:
        name = f"SHORTSTACK_{service.upper()}_ADDRESS"
        return channel(os.environ.get(name) or self.settings.ports.addresses()[name])

    @cached_property
    def ingestion(self) -> IngestionServiceStub:
        """Publishes and lists datasets."""
        return IngestionServiceStub(self._channel("ingestion"))

    @cached_property
    def formatting(self) -> FormattingServiceStub:
        """Renders and previews."""
        return FormattingServiceStub(self._channel("formatting"))

    @cached_property
    def assembly(self) -> AssemblyServiceStub:
        """Reports on datasets."""
        return AssemblyServiceStub(self._channel("assembly"))

    @cached_property
    def training(self) -> TrainingServiceStub:
        """Jobs and runs."""
        return TrainingServiceStub(self._channel("training"))

    @cached_property
    def serving(self) -> ServingServiceStub:
        """Models and aliases."""
        return ServingServiceStub(self._channel("serving"))

    @property
    def gateway_url(self) -> str:
        """Base URL of the gateway, without ``/v1``."""
        return os.environ.get("SHORTSTACK_GATEWAY_URL") or self.settings.ports.addresses()["SHORTSTACK_GATEWAY_URL"]

    @property
    def api_key(self) -> str:
        """The key for the gateway: SHORTSTACK_API_KEY, else the one that this machine's gateway made at its start.

        Raises:
            NotFound: there is neither.
        """
        given = os.environ.get("SHORTSTACK_API_KEY")
        if given:
            return given
        file = self.settings.root.joinpath(*_KEY_FILE)
        if not file.is_file():
            raise NotFound(
                f"no key: {file} is not there",
                remedy="Start the stack with: shortstack up. For another stack set SHORTSTACK_API_KEY.",
            )
        return file.read_text().strip()
