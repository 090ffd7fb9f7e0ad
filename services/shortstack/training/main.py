"""Training service: the controller of jobs and runs, and its API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.grpc import GrpcServer
from shortstack.core.health import Health, HealthServer
from shortstack.core.lifecycle import Component, run_service, run_until_signal
from shortstack.core.loop import Loop
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.messages.v1.serving_pb2 import ModelRecord
from shortstack.storage.blobs import BlobStore
from shortstack.storage.late_bases import LateBases
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.state import StateReader
from shortstack.training.config import TrainingConfig
from shortstack.training.controller import TrainingController
from shortstack.training.grpc_service import TrainingServicer
from shortstack.training.launcher import Launcher
from shortstack.training.processes import ProcessLauncher
from shortstack.training.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server

_API = "shortstack.training.v1.TrainingService"


def _processes(config: TrainingConfig, clock: Clock) -> Launcher:
    return ProcessLauncher(config.runs_dir)


def _kubernetes(config: TrainingConfig, clock: Clock) -> Launcher:
    # Imported here: the client of the API takes 10 MB and most of a second, which one machine has no use for.
    from shortstack.cluster.api import Cluster
    from shortstack.training.kubernetes_launcher import KubernetesLauncher

    return KubernetesLauncher(
        Cluster.connect(namespace=config.namespace, owner=config.owner),
        BlobStore.open(config.storage_url),
        config.training_job_template,
        storage_url=config.storage_url,
        clock=clock,
    )


_LAUNCHERS: Final[Mapping[str, Callable[[TrainingConfig, Clock], Launcher]]] = {
    "processes": _processes,
    "kubernetes": _kubernetes,
}


def run() -> int:
    """Builds the service and runs it until a signal."""
    config, clock = TrainingConfig(), SystemClock()
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("training", config))
        health = Health(config.liveness_s, clock)
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        bases = BaseModels(config.base_models, config.model_aliases)
        datasets = StateReader(broker, topics.DATASETS_STATE, DatasetSnapshot)
        models = StateReader(broker, topics.MODELS_STATE, ModelRecord)
        launcher = _LAUNCHERS[config.launcher](config, clock)
        controller = TrainingController(
            broker, datasets, models, launcher, bases, config=config, telemetry=telemetry, clock=clock
        )
        loop = Loop("jobs", controller, health, telemetry, clock)
        servicer = TrainingServicer(controller, datasets, bases, LateProducer(broker.producer), clock, config)
        add = (add_TrainingServiceServicer_to_server, servicer)
        server = GrpcServer(config.host, config.grpc_port, [add], health, [_API], telemetry)
        page = HealthServer(config.host, config.http_port, health, telemetry.metrics)
        parts: list[Component] = [page, datasets, models, launcher, loop, server]
        if config.launcher == "kubernetes":  # on one machine they lie where their names lead to
            parts.append(LateBases(config.base_models, BlobStore.open(config.storage_url), telemetry.log, clock))
        return run_until_signal(parts, grace_s=config.shutdown_grace_s, log=telemetry.log)


if __name__ == "__main__":
    sys.exit(run_service(run))
