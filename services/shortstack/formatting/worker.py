"""Formatting's consumer: `FormatBatches` behind a `BatchWorker` on ``records.raw``."""

from __future__ import annotations

from shortstack.core.clock import Clock
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.formatting.batches import GROUP, FormatBatches, publication_of
from shortstack.formatting.config import FormattingConfig
from shortstack.formatting.recipes import Recipes
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Broker
from shortstack.streams.topics import RECORDS_RAW
from shortstack.streams.worker import BatchWorker, WorkerLimits

__all__ = ["formatting_worker"]


def formatting_worker(
    config: FormattingConfig, broker: Broker, blobs: BlobStore, health: Health, telemetry: Telemetry, clock: Clock
) -> BatchWorker:
    """The worker, not yet started."""
    handler = FormatBatches(blobs, Recipes(blobs), telemetry.metrics, clock)
    limits = WorkerLimits(messages=config.formatting_batches, origin=publication_of)
    return BatchWorker(broker, GROUP, [RECORDS_RAW.name], handler, health, telemetry, clock, limits=limits)
