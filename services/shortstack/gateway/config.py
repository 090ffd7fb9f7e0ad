"""Settings of the gateway, beside those that every service shares."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from shortstack.core.config import ServiceConfig

__all__ = ["GatewayConfig"]

_MIB = 1024 * 1024


class GatewayConfig(ServiceConfig):
    """What the gateway is told."""

    http_port: int = Field(8080, ge=0, le=65535, description="Port of the API, /metrics, /livez and /readyz; 0: free")
    serving_address: str = Field("127.0.0.1:18050", description="gRPC address of serving, HOST:PORT")
    training_address: str = Field("127.0.0.1:18040", description="gRPC address of training, HOST:PORT")
    ingestion_address: str = Field("127.0.0.1:18010", description="gRPC address of ingestion, HOST:PORT")
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL of keys, files and usage; unset: SQLite at VAR/gateway/gateway.db"
    )
    bootstrap_key: SecretStr | None = Field(
        None, description="An admin key to accept from the start; unset: one is drawn into VAR/gateway/key"
    )
    base_models: dict[str, Path] = Field(
        default_factory=lambda: {"smollm2-135m-instruct": Path("var/models/smollm2-135m-instruct")},
        description="Base models that may be fine-tuned, as JSON of name and folder",
    )
    model_aliases: dict[str, str] = Field(
        default_factory=dict, description='Other names of base models, as JSON, e.g. {"gpt-4o-mini": "…"}'
    )
    body_max_bytes: int = Field(4 * _MIB, ge=1024, description="Largest request body, uploads excepted")
    upload_max_bytes: int = Field(512 * _MIB, ge=1024, description="Largest upload to /v1/files")
    messages_max: int = Field(2048, ge=1, description="Most messages of one chat request")
    upstream_read_timeout_s: float = Field(
        60.0, gt=0, description="Seconds of silence after which a model server counts as hung (it sends comments at 15)"
    )
    upstream_connect_timeout_s: float = Field(3.0, gt=0, description="Seconds to connect to a model server")
    stream_max_s: float = Field(900.0, gt=0, description="Longest time that one answer may take")
    stream_gather_s: float = Field(
        0.008, ge=0, le=1, description="Least seconds between two reads of an answer; faster tokens come together"
    )
    rpc_timeout_s: float = Field(10.0, gt=0, description="Seconds that a call of another service may take")
    key_cache_s: float = Field(5.0, ge=0, description="Seconds that a key's check is remembered, also after a revoke")
    usage_flush_s: float = Field(2.0, gt=0, description="Seconds between writes of counted tokens to the database")

    @property
    def folder(self) -> Path:
        """Where the gateway keeps its database, its key and its tokenizers."""
        return self.var / "gateway"

    def database(self) -> str:
        """The database's SQLAlchemy URL."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.folder / 'gateway.db'}"
