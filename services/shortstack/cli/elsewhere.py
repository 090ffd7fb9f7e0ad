"""``status`` of a stack that runs elsewhere: each service is asked itself, and Kafka, and the object store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import httpx

from shortstack.cli.connection import Connection
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import ShortstackError
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import DATASETS_INGEST
from shortstack.training.v1 import training_pb2 as pb

__all__ = ["PartStatus", "is_elsewhere", "pages", "status_elsewhere"]

_SERVICES: Final = ("ingestion", "formatting", "assembly", "training", "serving")
_HTTP_PORT: Final = 8081
"""Of every service's health and metrics, as the chart has it; the gateway answers beside its API."""
_WAIT_S: Final = 5.0
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of the status.

    Attributes:
        part: a service, kafka, storage, or a run that waits.
        state: ready, unready, away, full or waiting.
        address: where it was asked.
        says: what it said of itself, or what to do about its silence.
    """

    part: str
    state: str
    address: str
    says: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing has to be done for it; a run may wait for room for as long as it takes."""
        return self.state in {"ready", "waiting"}


def is_elsewhere(environment: Mapping[str, str]) -> bool:
    """Whether the environment names services, as the chart's toolbox has it, and not the stack of this machine."""
    return any(_variable(service) in environment for service in _SERVICES)


def pages(environment: Mapping[str, str], port: int = _HTTP_PORT) -> dict[str, str]:
    """Base URL of the health pages of each service that the environment names."""
    named = {service: environment.get(_variable(service), "") for service in _SERVICES}
    found = {service: f"http://{address.rpartition(':')[0]}:{port}" for service, address in named.items() if address}
    gateway = environment.get("SHORTSTACK_GATEWAY_URL")
    return found | ({"gateway": gateway.rstrip("/")} if gateway else {})


def status_elsewhere(
    found: Mapping[str, str], config: ServiceConfig, connection: Connection | None = None
) -> list[PartStatus]:
    """Asks everything at once, and waits a few seconds at most.

    Args:
        found: see `pages`.
        config: of Kafka and the object store.
        connection: to training, for the runs that wait; None leaves them out.
    """
    asked: list[Callable[[], Sequence[PartStatus]]] = [partial(_kafka, config), partial(_storage, config)]
    asked += [partial(_service, name, url) for name, url in found.items()]
    if connection is not None:
        asked.append(partial(_waiting, connection))
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda ask: ask(), asked))
    return [line for answer in answers for line in answer]


def _variable(service: str) -> str:
    return f"SHORTSTACK_{service.upper()}_ADDRESS"


def _service(name: str, url: str) -> list[PartStatus]:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=_WAIT_S)
        said: Any = answer.json()
        waiting = said["waiting"].items()
    except httpx.HTTPError as error:
        remedy = (
            f"Its pod is not there, or not ready. kubectl describe pod -l app.kubernetes.io/component={name} has what "
            "it waits for, kubectl logs its own words."
        )
        return [PartStatus(name, "away", url, f"{error}. {remedy}")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [PartStatus(name, "unready", url, f"HTTP {answer.status_code}, and not in a service's words")]
    why = "; ".join(f"{part}: {reason}" for part, reason in waiting)
    return [PartStatus(name, "ready" if answer.status_code == httpx.codes.OK else "unready", url, why)]


def _kafka(config: ServiceConfig) -> list[PartStatus]:
    broker = KafkaBroker.connect(config)
    try:
        broker.ready(min(_WAIT_S, config.kafka_bootstrap_timeout_s))
        broker.reader([DATASETS_INGEST.name]).close()
    except ShortstackError as error:
        return [PartStatus("kafka", "away", config.kafka_bootstrap, str(error))]
    finally:
        broker.close()
    return [PartStatus("kafka", "ready", config.kafka_bootstrap)]


def _storage(config: ServiceConfig) -> list[PartStatus]:
    url = config.storage_url
    try:
        scheme, _, path = url.partition("://")
        if scheme == "file":
            free = shutil.disk_usage(Path(path)).free
            full = PartStatus("storage", "full", url, f"{free / 2**20:.0f} MiB are free. Make the volume larger.")
            return [PartStatus("storage", "ready", url, f"{free / _GIB:.1f} GiB are free") if free >= _GIB else full]
        BlobStore.open(url).exists("status")
    except ShortstackError as error:
        return [PartStatus("storage", "away", url, str(error))]
    except OSError as error:
        return [PartStatus("storage", "away", url, f"{error.strerror}: is the volume mounted here?")]
    return [PartStatus("storage", "ready", url)]


def _waiting(connection: Connection) -> list[PartStatus]:
    """Runs that wait for the cluster; a training service that is away has its own line."""
    try:
        request = pb.ListRunsRequest(owner=connection.owner, limit=1000)
        answer = connection.training.ListRuns(request, timeout=_WAIT_S)
    except grpc.RpcError:
        return []
    runs = {found.run.run: found.run for found in answer.runs if found.run.state == tr.RUN_STATE_WAITING}
    return [PartStatus(f"run {name[:12]}", "waiting", run.dataset, run.message) for name, run in runs.items()]
