"""Assembly service: the dataset controller and its API."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from shortstack.assembly.config import AssemblyConfig
from shortstack.assembly.controller import ChildAssembler, DatasetController
from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.v1.assembly_pb2_grpc import add_AssemblyServiceServicer_to_server
from shortstack.core.clock import SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import run_service, run_until_signal
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.messages.v1.training_pb2 import TrainingRecord
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.state import StateReader, StateWriter


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = AssemblyConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("assembly", config))
        health = Health(config.liveness_s, clock)
        health.ready("ledger", False, "reading datasets.publications and records.formatted to their end")
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        blobs = BlobStore.open(config.storage_url)
        writer = StateWriter(broker, topics.DATASETS_STATE, DatasetSnapshot, clock)
        controller = DatasetController(
            broker,
            blobs,
            writer,
            ChildAssembler(config.assembly_timeout_s),
            config=config,
            health=health,
            telemetry=telemetry,
            clock=clock,
        )
        training = StateReader(broker, topics.TRAINING_STATE, TrainingRecord)
        servicer = AssemblyServicer(controller, blobs, training, broker.producer(), clock)
        server = GrpcServer(
            config.host,
            config.grpc_port,
            [(add_AssemblyServiceServicer_to_server, servicer)],
            health,
            ["shortstack.assembly.v1.AssemblyService"],
            telemetry,
        )
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics.registry)
        return run_until_signal(
            [page, training, controller, server], grace_s=config.shutdown_grace_s, log=telemetry.log
        )


if __name__ == "__main__":
    sys.exit(run_service(run))
