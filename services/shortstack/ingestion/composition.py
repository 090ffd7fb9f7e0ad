"""Ingestion's parts, put together once; a test puts the same together around `MemoryBroker`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from shortstack.core.clock import Clock
from shortstack.core.errors import Invalid
from shortstack.core.health import Health
from shortstack.core.identity import DEFAULT_OWNER
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.ingestion.config import IngestionConfig
from shortstack.ingestion.grpc_service import IngestionServicer
from shortstack.ingestion.preview import Previewer
from shortstack.ingestion.publishing.backlog import Backlog
from shortstack.ingestion.publishing.publisher import Publisher
from shortstack.ingestion.publishing.requests import Requests
from shortstack.ingestion.publishing.upload_watch import UploadWatch
from shortstack.ingestion.publishing.wishes import WishChecker
from shortstack.ingestion.sources.pinning import Pins
from shortstack.ingestion.sources.policy import SourcePolicy
from shortstack.ingestion.sources.uploads import Uploads
from shortstack.ingestion.worker import IngestionWorker
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.prompts.formats import PromptFormats
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Broker
from shortstack.streams.late_producer import LateProducer
from shortstack.streams.state import StateReader
from shortstack.streams.topics import DATASETS_STATE, ingest_topic

__all__ = ["IngestionParts", "wish_checker"]

_RECIPE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class IngestionParts:
    """What runs (state, backlog, uploads, worker, in this order) and what answers (servicer)."""

    state: StateReader[DatasetSnapshot]
    backlog: Backlog
    uploads: UploadWatch
    worker: IngestionWorker
    servicer: IngestionServicer

    @classmethod
    def build(
        cls,
        config: IngestionConfig,
        broker: Broker,
        blobs: BlobStore,
        health: Health,
        telemetry: Telemetry,
        clock: Clock,
    ) -> IngestionParts:
        """Builds everything; nothing runs yet.

        Raises:
            Fatal: an alias names a base model that is not declared.
        """
        policy = SourcePolicy(config.roots, blobs)

        checker = wish_checker(config, policy)
        pins = Pins(blobs, config.work_dir, config.source_max_bytes)
        state = StateReader(broker, DATASETS_STATE, DatasetSnapshot)
        backlog = Backlog(broker, config.ingest_backlog)
        uploads = Uploads(blobs)
        after = timedelta(hours=config.upload_hours)
        watch = UploadWatch(broker, uploads, clock, telemetry.log, after=after)
        requests = Requests(checker, policy, pins, uploads, state, config.limits, telemetry.log, watch.waiting)
        memory = config.reader_memory_bytes
        publisher = Publisher(
            new_producer=broker.producer,
            blobs=blobs,
            pins=pins,
            metrics=telemetry.metrics,
            log=telemetry.log,
            clock=clock,
            throttle=backlog,
            memory_bytes=memory,
        )
        topics = [ingest_topic(owner).name for owner in (DEFAULT_OWNER, *config.ingest_owners)]
        worker = IngestionWorker(
            broker,
            topics,
            requests,
            publisher,
            LateProducer(broker.producer),
            health,
            telemetry,
            clock,
            workers=config.ingest_workers,
        )
        previewer = Previewer(checker, policy, pins, config.limits, memory_bytes=memory)
        servicer = IngestionServicer(requests, previewer, state, LateProducer(broker.producer), clock)
        return cls(state, backlog, watch, worker, servicer)


def _read_recipe(policy: SourcePolicy, uri: str, owner: str) -> bytes:
    with policy.resolve(uri, owner)[0].open() as source:
        text = source.read(_RECIPE_BYTES + 1)
    if len(text) > _RECIPE_BYTES:
        raise Invalid(
            f"is longer than {_RECIPE_BYTES} bytes", where=f"recipe {uri}", remedy="Shorten it.", param="recipe.uri"
        )
    return text


def wish_checker(config: IngestionConfig, policy: SourcePolicy) -> WishChecker:
    """What a publication's wishes are checked by.

    Raises:
        Fatal: an alias names a base model that is not declared.
    """
    folders = {name: Path(folder) for name, folder in config.base_models.items()}
    return WishChecker(
        PromptFormats.builtin().names(),
        BaseModels(folders, config.model_aliases),
        partial(_read_recipe, policy),
        serves_merged=config.serves_merged,
    )
