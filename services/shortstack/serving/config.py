"""Settings of the serving service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
    serving_quiet_watch_s: float = Field(
        5.0, gt=0, description="Deployments: seconds between two looks while nothing is under way and all is well"
    )
    serving_prove_timeout_s: float = Field(300.0, gt=0, description="Seconds until a contract test is given up")
    serving_keep_superseded: bool = Field(
        True, description="Whether a model stays served when its last alias has moved to another"
    )
    serving_drain_s: float = Field(
        10.0, ge=0, description="Seconds from the end of a model's routes until its server or adapter goes"
    )
    rollout: Literal["embedded", "deployments"] = Field(
        "embedded",
        description="Where models are served: `embedded`, adapters on SHORTSTACK_INFERENCE_URL; `deployments`, a "
        "Kubernetes Deployment each",
    )
    rollout_strategy: Literal["surge", "replace"] = Field(
        "surge",
        description="Deployments: `surge` starts a model's server beside the one it supersedes; `replace` after that "
        "is gone, for clusters without a spare GPU (wants SHORTSTACK_SERVING_KEEP_SUPERSEDED=false)",
    )
    server_template: Path = Field(
        Path("/etc/shortstack/server.yaml"), description="Deployments: template of a server's Deployment and Service"
    )
    owner: str = Field("", description="ConfigMap of the release, which owns what is made in the cluster")
    namespace: str | None = Field(None, description="Namespace of what is made (the pod's own)")
    serving_start_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds a new server may take: in an upgrade until it is given up, with `replace` until the one "
        "it superseded comes back",
    )

    @property
    def quiet_watch_s(self) -> float:
        """Seconds between two looks while all is well. On one machine a look costs little."""
        return self.serving_quiet_watch_s if self.rollout == "deployments" else self.serving_watch_s

    @property
    def weights_dir(self) -> Path:
        """Folder of the weights that servers read."""
        return self.serving_dir or self.var / "serving"
