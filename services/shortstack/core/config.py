"""Settings that every service shares. Read from SHORTSTACK_* variables, then a TOML file, then defaults.

A service adds its own by a subclass in its ``config.py``; `settings_table` lists them for the documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

__all__ = ["ServiceConfig", "settings_table"]


class ServiceConfig(BaseSettings):
    """What every service is told. The variable of a field is ``SHORTSTACK_`` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="SHORTSTACK_", extra="ignore", toml_file="shortstack.toml", frozen=True
    )

    kafka_bootstrap: str = Field("127.0.0.1:18092", description="Kafka bootstrap servers, HOST:PORT[,HOST:PORT]")
    kafka_security_protocol: str = Field("PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: str | None = Field(None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, …")
    kafka_sasl_username: str | None = Field(None, description="SASL user")
    kafka_sasl_password: str | None = Field(None, description="SASL password", repr=False)
    kafka_ssl_cafile: Path | None = Field(None, description="PEM file of the certificate authority")
    kafka_ssl_certfile: Path | None = Field(None, description="PEM file of the client's certificate")
    kafka_ssl_keyfile: Path | None = Field(None, description="PEM file of the client's key")
    kafka_bootstrap_timeout_s: float = Field(10.0, gt=0, description="Seconds until an unreachable broker is an error")
    kafka_replication: int = Field(1, ge=1, description="Replicas of the topics that `topics apply` creates")
    storage_url: str = Field("file://var/blobs", description="Object store: file://FOLDER, s3://BUCKET/PREFIX, …")
    var: Path = Field(Path("var"), description="Folder for what a service keeps on local disk")
    host: str = Field("127.0.0.1", description="Address to listen on")
    grpc_port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    http_port: int = Field(0, ge=0, le=65535, description="Port of /metrics, /livez and /readyz; 0 takes a free one")
    shutdown_grace_s: float = Field(20.0, gt=0, description="Seconds from SIGTERM until everything is closed")
    liveness_s: float = Field(120.0, gt=0, description="Seconds without progress after which /livez fails")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: str = Field("json", description="json or console")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def settings_table(config: type[BaseSettings], prefix: str = "SHORTSTACK_") -> list[tuple[str, str, str]]:
    """(variable, default, meaning) of every setting, in order of declaration."""
    rows = []
    for name, field in config.model_fields.items():
        default: Any = "required" if field.is_required() else field.get_default(call_default_factory=True)
        rows.append((f"{prefix}{name.upper()}", str(default), field.description or ""))
    return rows
