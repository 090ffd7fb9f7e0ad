"""A whole gateway on free ports, with fakes around it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.integration.gateway.fakes import (
    BASE,
    FINE_TUNE,
    FakeIngestion,
    FakeServing,
    FakeTraining,
    LoopThread,
    ModelServer,
    tiny_tokenizer,
)
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.digest import sha256_hex
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.gateway.config import GatewayConfig
from shortstack.gateway.database import open_database
from shortstack.gateway.gateway import Gateway, Resources
from shortstack.gateway.keys.store import KeyStore, ensure_first_key
from shortstack.gateway.server import ApiServer
from shortstack.ingestion.v1 import ingestion_pb2_grpc
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.v1 import serving_pb2_grpc
from shortstack.storage.blobs import FileBlobStore
from shortstack.training.v1 import training_pb2_grpc


@dataclass
class Stack:
    """A gateway and what stands around it."""

    url: str
    key: str
    keys: KeyStore
    engine: Any
    server: ApiServer
    model_server: ModelServer
    serving: FakeServing
    training: FakeTraining
    ingestion: FakeIngestion
    peers: GrpcServer
    blobs: FileBlobStore
    config: GatewayConfig
    logs: io.StringIO
    tokenizer: tuple[str, str]
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, key: str | None = None) -> openai.OpenAI:
        """The official client; it does not retry, so that a test sees the first answer."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)
        self.clients.append(client)
        return client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """A request by hand."""
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=20, **options)

    def get(self, path: str) -> httpx.Response:
        """A request by hand, with the first key."""
        return httpx.get(f"{self.url}{path}", headers={"authorization": f"Bearer {self.key}"}, timeout=20)

    def model(self, name: str, **changes: Any) -> sv.ModelSnapshot:
        """A served model of the stub server; ``changes`` are fields of the snapshot or of its endpoint."""
        endpoint = {
            "url": self.model_server.stub.url,
            "prompt_format": "base",
            "tokenizer": self.tokenizer[0],
            "tokenizer_config": self.tokenizer[1],
            "max_input_tokens": 1024,
            "max_total_tokens": 2048,
        }
        names = sv.Endpoint.DESCRIPTOR.fields_by_name
        endpoint |= {key: changes.pop(key) for key in list(changes) if key in names}
        fields = {"owner": "default", "state": sv.MODEL_STATE_SERVED} | changes
        snapshot = sv.ModelSnapshot(name=name, endpoint=sv.Endpoint(**endpoint), **fields)
        snapshot.created_at.seconds = 1_700_000_000
        return snapshot

    def serve(self, name: str, **changes: Any) -> None:
        """Tells a model and waits until the gateway lists it."""
        self.serving.put(self.model(name, **changes))
        until(lambda: name in self.names(), f"{name} in /v1/models")

    def names(self) -> list[str]:
        """Ids in /v1/models."""
        return [one["id"] for one in self.get("/v1/models").json()["data"]]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway with a base model and a fine-tune."""
    loop = LoopThread()
    model_server = ModelServer(loop)
    serving, training, ingestion = FakeServing(), FakeTraining(), FakeIngestion()
    clock = SystemClock()
    logs = io.StringIO()
    blobs = FileBlobStore(tmp_path / "blobs")
    keys_of = []
    for data in tiny_tokenizer():
        keys_of.append(f"tokenizers/{sha256_hex(data)}")
        blobs.put(keys_of[-1], data)
    config = GatewayConfig(
        var=tmp_path,
        http_port=0,
        host="127.0.0.1",
        model_aliases={"gpt-4o-mini": BASE},
        base_models={BASE: tmp_path / "no-weights-here"},
        usage_flush_s=0.05,
        key_cache_s=0.2,
        body_max_bytes=200_000,
        upload_max_bytes=3_000_000,
        upstream_read_timeout_s=2.0,
        stream_max_s=4.0,
    )
    with Telemetry.start("gateway", config, logs) as telemetry:
        peers = GrpcServer(
            "127.0.0.1",
            0,
            [
                (serving_pb2_grpc.add_ServingServiceServicer_to_server, serving),
                (training_pb2_grpc.add_TrainingServiceServicer_to_server, training),
                (ingestion_pb2_grpc.add_IngestionServiceServicer_to_server, ingestion),
            ],
            Health(60, clock),
            (),
            telemetry,
        )
        peers.start()
        address = f"127.0.0.1:{peers.port}"
        addresses = dict.fromkeys(("serving_address", "training_address", "ingestion_address"), address)
        config = config.model_copy(update=addresses)
        engine = open_database(config.database())
        keys = KeyStore(engine, clock)
        ensure_first_key(keys, None, config.folder / "key")
        key = (config.folder / "key").read_text().strip()
        bases = BaseModels(config.base_models, config.model_aliases)
        gateway = Gateway(Resources(config, engine, blobs, bases, telemetry, Health(60, clock), clock))
        server = ApiServer(gateway, config.host, config.http_port)
        server.start()
        built = Stack(
            f"http://127.0.0.1:{server.port}",
            key,
            keys,
            engine,
            server,
            model_server,
            serving,
            training,
            ingestion,
            peers,
            blobs,
            config,
            logs,
            (keys_of[0], keys_of[1]),
        )
        try:
            built.serve(BASE)
            built.serve(FINE_TUNE, adapter_id="0123456789ab")
            yield built
        finally:
            for client in built.clients:
                client.close()
            server.stop(5)
            serving.close_watches()
            peers.stop(5)
            loop.run(model_server.stub.stop())
            loop.stop()
            engine.dispose()
