"""Assembly service: the dataset controller and its API."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from shortstack.assembly.child import ChildAssembler
from shortstack.assembly.config import AssemblyConfig
from shortstack.assembly.controller import DatasetController
from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.v1.assembly_pb2_grpc import add_AssemblyServiceServicer_to_server
from shortstack.core.clock import SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import run_service, run_until_signal
from shortstack.core.loop import Loop
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1.training_pb2 import TrainingRecord
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.state import StateReader


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = AssemblyConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("assembly", config))
        health = Health(config.liveness_s, clock)
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        blobs = BlobStore.open(config.storage_url)
        assembler = stack.enter_context(closing(ChildAssembler(config.assembly_timeout_s)))
        controller = DatasetController(broker, blobs, assembler, config=config, telemetry=telemetry, clock=clock)
        loop = Loop("datasets", controller, health, telemetry, clock)
        training = StateReader(broker, topics.TRAINING_STATE, TrainingRecord)
        servicer = AssemblyServicer(controller, blobs, training, LateProducer(broker.producer), clock)
        server = GrpcServer(
            config.host,
            config.grpc_port,
            [(add_AssemblyServiceServicer_to_server, servicer)],
            health,
            ["shortstack.assembly.v1.AssemblyService"],
            telemetry,
        )
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics)
        return run_until_signal([page, training, loop, server], grace_s=config.shutdown_grace_s, log=telemetry.log)


if __name__ == "__main__":
    sys.exit(run_service(run))
