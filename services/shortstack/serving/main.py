"""Serving service: the controller of models and aliases, and its API."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from shortstack.core.clock import SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import Component, run_service, run_until_signal
from shortstack.core.loop import Loop
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1.training_pb2 import TrainingRecord
from shortstack.serving.composition import rollout_of
from shortstack.serving.config import ServingConfig
from shortstack.serving.controller import ServingController
from shortstack.serving.grpc_service import ServingServicer
from shortstack.serving.v1.serving_pb2_grpc import add_ServingServiceServicer_to_server
from shortstack.storage.blobs import BlobStore
from shortstack.storage.late_bases import LateBases
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.state import StateReader

_API = "shortstack.serving.v1.ServingService"


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = ServingConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("serving", config))
        health = Health(config.liveness_s, clock)
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        blobs = BlobStore.open(config.storage_url)
        rollout = stack.enter_context(rollout_of(config, blobs, clock))
        training = StateReader(broker, topics.TRAINING_STATE, TrainingRecord)
        controller = ServingController(
            broker, training, rollout, config.base_models, config=config, telemetry=telemetry, clock=clock
        )
        loop = Loop("models", controller, health, telemetry, clock)
        servicer = ServingServicer(controller, LateProducer(broker.producer), clock)
        add = (add_ServingServiceServicer_to_server, servicer)
        server = GrpcServer(config.host, config.grpc_port, [add], health, [_API], telemetry)
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics)
        parts: list[Component] = [page, training, loop, server]
        if config.rollout == "deployments":  # on one machine they lie where their names lead to
            parts.append(LateBases(config.base_models, blobs, telemetry.log, clock))
        return run_until_signal(parts, grace_s=config.shutdown_grace_s, log=telemetry.log)


if __name__ == "__main__":
    sys.exit(run_service(run))
