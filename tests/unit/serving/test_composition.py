"""The rollout that settings name, and what they may not say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal
from shortstack.serving.composition import rollout_of
from shortstack.serving.config import ServingConfig
from shortstack.serving.deployments.rollout import DeploymentRollout
from shortstack.serving.rollout import EmbeddedRollout
from shortstack.storage.blobs import MemoryBlobStore

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: test, user: {token: none}}]
contexts: [{name: test, context: {cluster: test, user: test, namespace: here}}]
"""


def test_one_machine_has_the_embedded_server() -> None:
    with rollout_of(ServingConfig(), MemoryBlobStore(), FakeClock()) as rollout:
        assert isinstance(rollout, EmbeddedRollout)


def test_a_cluster_has_deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("SHORTSTACK_ROLLOUT", "deployments")
    with rollout_of(ServingConfig(), MemoryBlobStore(), FakeClock()) as rollout:
        assert isinstance(rollout, DeploymentRollout)


def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with (
        pytest.raises(Fatal, match="no cluster is known here"),
        rollout_of(ServingConfig(rollout="deployments"), MemoryBlobStore(), FakeClock()),
    ):
        pass


def test_to_replace_and_to_keep_exclude_each_other() -> None:
    config = ServingConfig(rollout="deployments", rollout_strategy="replace")
    with (
        pytest.raises(Fatal, match="SHORTSTACK_SERVING_KEEP_SUPERSEDED=false"),
        rollout_of(config, MemoryBlobStore(), FakeClock()),
    ):
        pass
