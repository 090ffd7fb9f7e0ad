"""The broker as the one process of a container: everything is made ready, then the JVM takes this process's place.

``python -m shortstack.local.broker_pod``               serves until SIGTERM, which the JVM itself gets: a clean stop
``python -m shortstack.local.broker_pod fetch FOLDER``  brings the jars, checked by sha256; for building the image
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shortstack.core.errors import Fatal
from shortstack.core.lifecycle import run_service
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.jars import broken_jars, declared_jars, ensure_jars

__all__ = ["BrokerPodSettings", "PodBroker", "main"]

_REMEDY: Final = (
    "Look at the volume mounted there: whether it is full (claim a larger one; what the broker holds is kept), and "
    "whether user 10001 may write to it (the pod's fsGroup)."
)

Become = Callable[[str, list[str]], object]


class BrokerPodSettings(BaseSettings):
    """Settings of the broker's container, from ``SHORTSTACK_BROKER_*``."""

    model_config = SettingsConfigDict(env_prefix="SHORTSTACK_BROKER_", extra="ignore", frozen=True)

    dir: Path = Field(Path("/var/lib/kafka"), description="Folder of the log, kept between starts")
    advertised: str = Field(
        "127.0.0.1:9092", pattern=r"^[^:/\s]+:\d+$", description="HOST:PORT that clients are told to come back to"
    )
    port: int = Field(9092, ge=1, le=65_535, description="Port for clients")
    controller_port: int = Field(9093, ge=1, le=65_535, description="Port of the node's controller, on loopback")
    heap_mb: int = Field(256, ge=64, description="Heap of the JVM in MiB")
    libs: Path = Field(Path("/opt/kafka/libs"), description="Folder of the jars")

    def __init__(self, **values: Any) -> None:
        """Reads the environment; ``values`` win over it.

        Raises:
            Fatal: a value is not of its kind; names the variable.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = f"SHORTSTACK_BROKER_{'_'.join(map(str, first['loc'])).upper()}"
            raise Fatal(first["msg"], where=name, remedy=f"Set {name} to another value, or unset it.") from error

    def config(self) -> BrokerConfig:
        """The broker that these settings describe: clients from anywhere, its controller for itself alone."""
        return BrokerConfig(
            folder=self.dir,
            log=self.dir / "kafka.log",
            port=self.port,
            controller_port=self.controller_port,
            libs=self.libs,
            heap_mb=self.heap_mb,
            listen="0.0.0.0",  # noqa: S104 (who may come is the network policy's business)
            advertised=self.advertised,
            remedy=_REMEDY,
        )


class PodBroker(LocalBroker):
    """A broker whose jars came with the image: what is wrong with them is not mended here, but said."""

    def _bring_jars(self) -> int:
        if broken := broken_jars(self.config.libs, self._jars):
            raise Fatal(
                f"{len(broken)} of the broker's jars are missing or damaged, the first is {broken[0]}",
                where=str(self.config.libs),
                remedy="Build or pull the broker's image again, or set SHORTSTACK_BROKER_LIBS to where its jars are.",
            )
        return 0


def serve(become: Become = os.execv) -> int:
    """Writes properties, formats the data folder the first time, and becomes the JVM.

    Args:
        become: stands for ``os.execv``, which does not return.

    Raises:
        Fatal: something that the broker needs is not there; names it and the remedy.
    """
    broker = PodBroker(BrokerPodSettings().config())
    broker.before_start()
    command = broker.command()
    sys.stderr.write(f"broker: serving {broker.bootstrap} from {broker.config.folder}\n")
    sys.stderr.flush()
    become(command[0], command)
    return 0


def fetch(folder: Path, repository: str | None = None) -> int:
    """Brings the jars into ``folder``.

    Raises:
        Transient, Fatal: as `ensure_jars`.
    """
    count = ensure_jars(folder, declared_jars(), repository=repository)
    sys.stderr.write(f"broker: {count} jars fetched and checked\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command; the exit status follows the error's kind, 64 for a wrong call."""
    match list(arguments):
        case []:
            return run_service(serve)
        case ["fetch", folder]:
            return run_service(lambda: fetch(Path(folder), os.environ.get("SHORTSTACK_MAVEN_URL") or None))
        case _:
            sys.stderr.write("usage: python -m shortstack.local.broker_pod [fetch FOLDER]\n")
            return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
