"""Settings of the assembly service."""

from __future__ import annotations

from pydantic import Field

from shortstack.core.config import ServiceConfig

__all__ = ["AssemblyConfig"]


class AssemblyConfig(ServiceConfig):
    """What the assembly service is told beside the shared settings."""

    assembly_stalled_after_s: float = Field(
        900.0, gt=0, description="Seconds without a new ledger entry after which an incomplete dataset is stalled"
    )
    assembly_workers: int = Field(2, ge=1, description="Datasets assembled at the same time, a child process each")
    assembly_timeout_s: float = Field(3600.0, gt=0, description="Seconds until an assembling child is given up")
    assembly_progress_s: float = Field(
        1.0, gt=0, description="Least seconds between two progress snapshots of a dataset"
    )
