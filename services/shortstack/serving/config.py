"""Settings of the serving service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shortstack.core.config import ServiceConfig

__all__ = ["ServingConfig"]


class ServingConfig(ServiceConfig):
    """What the serving service is told beside the shared settings."""

    base_models: dict[str, Path] = Field(
        {"smollm2-135m-instruct": Path("var/models/smollm2-135m-instruct")},
        description='Base models, as JSON: {"NAME": "FOLDER"}; the first is the one that the inference server runs',
    )
    inference_url: str = Field("http://127.0.0.1:18071", description="The embedded inference server")
    serving_dir: Path | None = Field(None, description="Folder of the weights that servers read (VAR/serving)")
    serving_watch_s: float = Field(1.0, gt=0, description="Seconds between two looks at the inference server")
    serving_prove_timeout_s: float = Field(300.0, gt=0, description="Seconds until a contract test is given up")

    @property
    def weights_dir(self) -> Path:
        """Folder of the weights that servers read."""
        return self.serving_dir or self.var / "serving"
