"""Settings of the formatting service."""

from __future__ import annotations

from pydantic import Field

from shortstack.core.config import ServiceConfig

__all__ = ["FormattingConfig"]


class FormattingConfig(ServiceConfig):
    """What the formatting service is told beside the shared settings."""

    formatting_batches: int = Field(16, ge=1, description="Batches handled before offsets are committed, at most")
