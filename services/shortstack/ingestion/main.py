"""Ingestion service: publications in, pinned sources and record batches out."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from shortstack.core.clock import SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import Component, run_service, run_until_signal
from shortstack.core.telemetry import Telemetry
from shortstack.ingestion.composition import IngestionParts
from shortstack.ingestion.config import IngestionConfig
from shortstack.ingestion.v1.ingestion_pb2_grpc import add_IngestionServiceServicer_to_server
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker

_API = "shortstack.ingestion.v1.IngestionService"


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = IngestionConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("ingestion", config))
        health = Health(config.liveness_s, clock)
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        blobs = BlobStore.open(config.storage_url)
        parts = IngestionParts.build(config, broker, blobs, health, telemetry, clock)
        add = (add_IngestionServiceServicer_to_server, parts.servicer)
        server = GrpcServer(config.host, config.grpc_port, [add], health, [_API], telemetry)
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics)
        components: list[Component] = [page, parts.state, parts.backlog, parts.uploads, parts.worker, server]
        return run_until_signal(components, grace_s=config.shutdown_grace_s, log=telemetry.log)


if __name__ == "__main__":
    sys.exit(run_service(run))
