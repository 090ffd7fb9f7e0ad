"""The processes of the local stack: their commands, environments, ports, and how each tells that it is ready."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shortstack.core.errors import Fatal, ShortstackError
from shortstack.local.base_model import BASE_MODEL
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.ports import require_free
from shortstack.local.processes import last_lines
from shortstack.local.settings import LocalSettings

__all__ = [
    "SERVICES",
    "Probe",
    "ServiceSpec",
    "Stage",
    "apply_topics",
    "http_probe",
    "local_stages",
    "served_model",
    "service_environment",
]

SERVICES: Final = ("inference", "serving", "training", "assembly", "formatting", "ingestion", "gateway")
"""In the order of their start: whoever serves before whoever calls."""

_HOST: Final = "127.0.0.1"
_PROBE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What a process says of itself: whether it can serve, and whether it is stuck (told so by /livez)."""

    ready: bool
    stuck: bool = False


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to be kept running.

    Attributes:
        name: of the service; names its log and its state file too.
        command: what to run.
        environment: all of its environment.
        ports: by what they are for.
        log: file of its output.
        probe: asks the process how it is; must return within a few seconds and not raise.
        before: done before every start; raises Fatal when a start makes no sense.
        explain: the error for "it ended" or "it is not ready", after what its log says.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ports: Mapping[str, int]
    log: Path
    probe: Callable[[], Probe]
    before: Callable[[], None] = _nothing
    explain: Callable[[str], ShortstackError] | None = None

    def fault(self, what: str) -> ShortstackError:
        """The error for ``what`` happened."""
        if self.explain is not None:
            return self.explain(what)
        said = [line for line in last_lines(self.log, 40) if line.strip()]
        tail = f"; it said last: {said[-1].strip()[:400]}" if said else ""
        return Fatal(f"{what}{tail}", where=self.name, remedy=f"Read {self.log}.")


@dataclass(frozen=True, slots=True)
class Stage:
    """Processes that start together; the next stage follows when ``services`` are ready and ``afterwards`` is done.

    Attributes:
        services: awaited before the next stage.
        afterwards: done between this stage and the next.
        meanwhile: started with the others, but awaited only at the very end; for what is slow and needs nobody.
    """

    services: Sequence[ServiceSpec]
    afterwards: Callable[[], object] = field(default=_nothing)
    meanwhile: Sequence[ServiceSpec] = ()


def local_stages(settings: LocalSettings) -> list[Stage]:
    """Broker (unless an external one is named), then topics, then all services.

    Inference starts with the broker: it takes longest, for torch, and needs no Kafka.
    """
    broker = [] if settings.kafka_bootstrap else [_broker(settings)]
    first, *others = (_service(settings, name) for name in SERVICES)
    return [Stage(broker, lambda: apply_topics(settings), meanwhile=[first]), Stage(others)]


def service_environment(settings: LocalSettings, service: str) -> dict[str, str]:
    """The environment of ``service``: ours, its ports, and where its peers are."""
    ports = settings.ports.taken_by(service)
    root = settings.root
    common = {
        "SHORTSTACK_VAR": str(root),
        "SHORTSTACK_STACK": str(root),
        "SHORTSTACK_KAFKA_BOOTSTRAP": settings.bootstrap,
        "SHORTSTACK_STORAGE_URL": settings.storage_url or f"file://{root / 'blobs'}",
        "SHORTSTACK_BASE_MODELS": json.dumps(_base_models(settings)),
        "SHORTSTACK_HTTP_PORT": str(ports["http"]),
        "SHORTSTACK_GRPC_PORT": str(ports.get("grpc", 0)),
        "PYTHONUNBUFFERED": "1",
    }
    defaults = {
        # Two OpenMP threads on two busy cores wait for each other: 0.7 to 39 tokens/s where one holds 15 to 19.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "SHORTSTACK_SOURCE_ROOTS": os.pathsep.join([str(_examples()), str(root / "uploads")]),
    }
    return defaults | dict(os.environ) | common | settings.ports.addresses() | _own(settings, service)


def http_probe(ready_url: str, live_url: str | None = None) -> Callable[[], Probe]:
    """Asks ``ready_url`` (200 is ready) and, while that says no, ``live_url`` (503 is stuck)."""

    def probe() -> Probe:
        if _status(ready_url) == 200:
            return Probe(ready=True)
        return Probe(ready=False, stuck=live_url is not None and _status(live_url) == 503)

    return probe


def apply_topics(settings: LocalSettings, owners: Sequence[str] = (), *, replication: int | None = None) -> list[str]:
    """Creates the declared topics on the broker in use; a line for each change made.

    Args:
        owners: whose ingest topics are made beside those of SHORTSTACK_INGEST_OWNERS.
        replication: of new topics; else what the settings say.

    Raises:
        Transient, Fatal: the broker does not answer, or refuses.
        Invalid: a name that no owner may have.
    """
    from shortstack.ingestion.config import IngestionConfig
    from shortstack.streams.apply import topics_with
    from shortstack.streams.kafka import KafkaBroker

    config = IngestionConfig(kafka_bootstrap=settings.bootstrap)
    topics = topics_with([*config.ingest_owners, *owners])
    broker = KafkaBroker.connect(config)
    try:
        broker.ready(config.kafka_bootstrap_timeout_s)
        return broker.apply(topics, replication=replication or config.kafka_replication)
    finally:
        broker.close()


def _own(settings: LocalSettings, service: str) -> dict[str, str]:
    """What one service alone is told. Inference takes TGI's names: in a cluster TGI stands in its place."""
    table = {
        "inference": {
            "MODEL_ID": str(served_model(settings)[1]),
            "HOSTNAME": _HOST,
            "PORT": str(settings.ports.http("inference")),
            # TGI's own name, without a prefix: a key meant for something else would lock serving out.
            "API_KEY": "",
            "GRACEFUL_TERMINATION_TIMEOUT": "10",
        },
    }
    return table.get(service, {})


def served_model(settings: LocalSettings) -> tuple[str, Path]:
    """Name and folder of the base model that inference runs: the first of the table.

    Raises:
        Fatal: SHORTSTACK_BASE_MODELS is no table.
    """
    name, folder = next(iter(_base_models(settings).items()))
    return name, Path(folder)


def _base_models(settings: LocalSettings) -> dict[str, str]:
    """Base models and their folders; inference runs the first."""
    if settings.base_models is None:
        return {BASE_MODEL: str(settings.root / "models" / BASE_MODEL)}
    try:
        found = json.loads(settings.base_models)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(folder, str) for folder in found.values()):
        raise Fatal(
            f"{settings.base_models!r} is no table of base models",
            where="SHORTSTACK_BASE_MODELS",
            remedy='Set it to JSON of this form: {"NAME": "FOLDER"}',
        )
    return found


def _service(settings: LocalSettings, name: str) -> ServiceSpec:
    base = f"http://{_HOST}:{settings.ports.http(name)}"
    health = {"inference": http_probe(f"{base}/health")}
    return ServiceSpec(
        name=name,
        command=(sys.executable, "-m", f"shortstack.{name}.main"),
        environment=service_environment(settings, name),
        ports=settings.ports.taken_by(name),
        log=settings.log_folder / f"{name}.log",
        probe=health.get(name, http_probe(f"{base}/readyz", f"{base}/livez")),
        before=lambda: _require_free_ports(settings, name),
    )


def _require_free_ports(settings: LocalSettings, service: str) -> None:
    for port in settings.ports.taken_by(service).values():
        require_free(port, service)


def _broker(settings: LocalSettings) -> ServiceSpec:
    broker = LocalBroker(BrokerConfig.of(settings))
    return ServiceSpec(
        name="kafka",
        command=broker.command(),
        environment=os.environ | {"SHORTSTACK_STACK": str(settings.root)},
        ports=settings.ports.taken_by("kafka"),
        log=broker.config.log,
        probe=lambda: Probe(ready=broker.is_ready()),
        before=broker.before_start,
        explain=broker.explain,
    )


def _examples() -> Path:
    """The examples of a checkout, or of the current folder."""
    checkout = Path(__file__).parents[3] / "examples"
    return checkout if checkout.is_dir() else Path.cwd() / "examples"


def _status(url: str) -> int:
    """HTTP status of ``url``; 0 if nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310 (loopback, our own ports)
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError):
        return 0
