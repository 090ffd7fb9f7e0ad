"""Settings of the local stack, all from ``SHORTSTACK_*`` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shortstack.core.errors import Fatal
from shortstack.local.ports import DEFAULT_PORT_BASE, PortPlan

__all__ = ["LocalSettings"]


def _checkout() -> Path | None:
    """The checkout that this package is run from, if it is run from one."""
    folder = Path(__file__).resolve().parents[3]
    return folder if (folder / "deploy" / "bootstrap.py").is_file() else None


class LocalSettings(BaseSettings):
    """Where the local stack lives and what it takes. ``LocalSettings()`` reads the environment."""

    model_config = SettingsConfigDict(env_prefix="SHORTSTACK_", extra="ignore", frozen=True)

    var: Path = Field(Path("var"), description="Folder for everything that the stack keeps: data, models, logs")
    port_base: int = Field(DEFAULT_PORT_BASE, ge=1024, le=65_000, description="First of about 100 ports of the stack")
    gateway_port: int | None = Field(None, ge=1, le=65_535, description="Gateway's port (8080, or base + 80)")
    kafka_bootstrap: str | None = Field(None, description="An external broker, HOST:PORT; then none is started")
    kafka_libs: Path | None = Field(None, description="Folder of the broker's jars (VAR/kafka/libs)")
    kafka_heap_mb: int = Field(256, ge=64, description="Heap of the broker in MiB")
    java: str | None = Field(None, description="A java command or a JAVA_HOME, instead of the packaged one")
    maven_url: str | None = Field(None, description="A Maven repository to take the jars from")
    storage_url: str | None = Field(None, description="Object store (file://VAR/blobs)")
    base_models: str | None = Field(None, description="JSON of base model names and folders (the packaged SmolLM2)")
    start_deadline_s: float = Field(120.0, gt=0, description="Seconds that a start may take until it counts as failed")
    stop_deadline_s: float = Field(30.0, gt=0, description="Seconds that a stop may take until processes are killed")
    restart_limit_s: float = Field(
        30.0, gt=0, description="Longest wait until a process that keeps dying is started again"
    )

    def __init__(self, **values: Any) -> None:
        """Reads the environment; ``values`` win over it.

        Raises:
            Fatal: a value is not of its kind; names the variable.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = f"SHORTSTACK_{'_'.join(map(str, first['loc'])).upper()}"
            raise Fatal(
                f'"{first["input"]}" will not do: {first["msg"][:1].lower()}{first["msg"][1:]}',
                where=name,
                remedy=f"Correct {name}, or unset it to take the default.",
            ) from error

    @staticmethod
    def default_root() -> Path:
        """The folder of the stack where SHORTSTACK_VAR names none: the checkout's, else one in the current folder."""
        return (_checkout() or Path.cwd()) / "var"

    @property
    def root(self) -> Path:
        """``var`` as an absolute path. Unset, that of the checkout, so that every folder means the same stack."""
        if "var" not in self.model_fields_set:
            return self.default_root()
        return self.var.expanduser().absolute()

    @property
    def ports(self) -> PortPlan:
        """The port plan."""
        return PortPlan(self.port_base, self.gateway_port)

    @property
    def run_folder(self) -> Path:
        """Where the state file of each process lies."""
        return self.root / "run"

    @property
    def log_folder(self) -> Path:
        """Where the log of each process lies."""
        return self.root / "log"

    @property
    def bootstrap(self) -> str:
        """Address of the broker in use."""
        return self.kafka_bootstrap or f"127.0.0.1:{self.ports.broker}"
