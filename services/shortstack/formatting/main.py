"""Formatting service: record batches in, segments and ledger entries out. Scales by its consumer group."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from shortstack.core.clock import SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import run_service, run_until_signal
from shortstack.core.telemetry import Telemetry
from shortstack.formatting.config import FormattingConfig
from shortstack.formatting.grpc_service import FormattingServicer
from shortstack.formatting.v1.formatting_pb2_grpc import add_FormattingServiceServicer_to_server
from shortstack.formatting.worker import formatting_worker
from shortstack.prompts.formats import PromptFormats
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker

_API = "shortstack.formatting.v1.FormattingService"


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = FormattingConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("formatting", config))
        health = Health(config.liveness_s, clock)
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        blobs = BlobStore.open(config.storage_url)
        worker = formatting_worker(config, broker, blobs, health, telemetry, clock)
        add = (add_FormattingServiceServicer_to_server, FormattingServicer(PromptFormats.builtin()))
        server = GrpcServer(config.host, config.grpc_port, [add], health, [_API], telemetry)
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics)
        return run_until_signal([page, worker, server], grace_s=config.shutdown_grace_s, log=telemetry.log)


if __name__ == "__main__":
    sys.exit(run_service(run))
