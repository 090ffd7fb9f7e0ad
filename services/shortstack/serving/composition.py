"""Which rollout the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Fatal
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.config import ServingConfig
from shortstack.serving.rollout import EmbeddedRollout, Rollout
from shortstack.serving.tgi import TgiClient
from shortstack.storage.blobs import BlobStore

__all__ = ["rollout_of"]


@contextmanager
def _embedded(config: ServingConfig, blobs: BlobStore, clock: Clock) -> Iterator[Rollout]:
    with closing(TgiClient(config.inference_url, config.serving_prove_timeout_s)) as client:
        yield EmbeddedRollout(client, blobs, config.weights_dir, PromptFormats.builtin())


@contextmanager
def _deployments(config: ServingConfig, blobs: BlobStore, clock: Clock) -> Iterator[Rollout]:
    from shortstack.cluster.api import Cluster  # one machine has no need of a Kubernetes client
    from shortstack.serving.deployments.fleet import Fleet
    from shortstack.serving.deployments.rollout import DeploymentRollout, Terms
    from shortstack.serving.deployments.server import Servers

    replace = config.rollout_strategy == "replace"
    if replace and config.serving_keep_superseded:
        raise Fatal(
            "to replace servers and to keep those of superseded models exclude each other",
            where="SHORTSTACK_ROLLOUT_STRATEGY",
            remedy="Set SHORTSTACK_SERVING_KEEP_SUPERSEDED=false, or SHORTSTACK_ROLLOUT_STRATEGY=surge.",
        )
    servers = Servers(config.server_template)
    cluster = Cluster.connect(namespace=config.namespace, owner=config.owner)
    rollout = DeploymentRollout(
        Fleet(cluster, servers.selector, clock),
        servers,
        partial(TgiClient, timeout_s=config.serving_prove_timeout_s),
        blobs,
        config.weights_dir,
        PromptFormats.builtin(),
        config.base_models,
        clock,
        Terms(config.serving_drain_s, replace, config.serving_start_timeout_s),
    )
    with closing(rollout):
        yield rollout


_ROLLOUTS: Final[Mapping[str, Callable[[ServingConfig, BlobStore, Clock], AbstractContextManager[Rollout]]]] = {
    "embedded": _embedded,
    "deployments": _deployments,
}


def rollout_of(config: ServingConfig, blobs: BlobStore, clock: Clock) -> AbstractContextManager[Rollout]:
    """The rollout of ``SHORTSTACK_ROLLOUT``; leave it to let go of connections.

    Raises:
        Fatal: the settings contradict each other, or there is no cluster here.
    """
    return _ROLLOUTS[config.rollout](config, blobs, clock)
