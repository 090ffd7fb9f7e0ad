"""Settings of the ingestion service."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from shortstack.core.config import ServiceConfig
from shortstack.ingestion.reading.items import Limits

__all__ = ["IngestionConfig"]

_MIB = 1024 * 1024
_LIMITS = Limits()


class IngestionConfig(ServiceConfig):
    """What the ingestion service is told beside the shared settings."""

    source_roots: str = Field(
        os.pathsep.join(("examples", "var/uploads")),
        description=f'Folders whose files may be published, joined by "{os.pathsep}"',
    )
    source_max_bytes: int = Field(64 * 1024 * _MIB, ge=1, description="Largest single source, in bytes")
    ingest_owners: tuple[str, ...] = Field(
        (), description="Owners whose topics datasets.ingest.OWNER are read beside datasets.ingest, as JSON"
    )
    ingest_workers: int = Field(8, ge=1, description="Publications under way at the same time")
    upload_hours: float = Field(24.0, gt=0, description="Hours after which an upload that is not whole fails")
    ingest_backlog: int = Field(64, ge=1, description="Batches sent and not formatted yet, beyond which reading pauses")
    reader_memory_bytes: int = Field(
        2048 * _MIB, ge=512 * _MIB, description="Address space of the process that reads untrusted files"
    )
    reader_item_bytes: int = Field(
        _LIMITS.item_bytes, ge=1024, description="Longest line or array element; a longer one is malformed"
    )
    reader_unpacked_bytes: int = Field(
        _LIMITS.decompressed_bytes, ge=1024, description="Most bytes that a compressed source may unpack to"
    )
    base_models: dict[str, str] = Field(
        {"smollm2-135m-instruct": "var/models/smollm2-135m-instruct"},
        description='Base models that may be trained, as JSON: {"NAME": "FOLDER"}',
    )
    model_aliases: dict[str, str] = Field(
        {}, description='Names that clients may use for base models, as JSON: {"gpt-4o-mini": "smollm2-135m-instruct"}'
    )

    serves_merged: bool = Field(
        False, description="Whether servers take whole models; the embedded inference server takes adapters alone"
    )

    @property
    def roots(self) -> list[Path]:
        """The folders of ``source_roots``."""
        return [Path(root) for root in self.source_roots.split(os.pathsep) if root]

    @property
    def limits(self) -> Limits:
        """Bounds on what reading a file may cost."""
        return Limits(item_bytes=self.reader_item_bytes, decompressed_bytes=self.reader_unpacked_bytes)

    @property
    def work_dir(self) -> Path:
        """Folder for copies of sources while they are worked on."""
        return self.var / "ingestion"
