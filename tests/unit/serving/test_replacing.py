"""Where there is no room for two servers: the old one goes first, and comes back if the new one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.serving.deployed import Deployed

from shortstack.core.errors import Poison
from shortstack.serving.deployments.rollout import Terms
from shortstack.serving.rollout import NotReady


@pytest.fixture
def replacing(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path, Terms(drain_s=30.0, replace=True, patience_s=600.0))


def test_to_replace_the_new_server_starts_when_the_pods_of_the_old_are_gone(replacing: Deployed) -> None:
    replacing.with_base()
    old, new = replacing.roll_out(replacing.export("a")), replacing.export("b")
    name = replacing.server_of(old.export)
    pod = replacing.kubernetes.pod_of(name)
    replacing.kubernetes.pods_linger = True
    replacing.clock.advance(1)
    with pytest.raises(NotReady, match=f"{name}, which makes room"):
        replacing.rollout.roll_out(new, lambda: None, [old])
    assert len(replacing.servers()) == 1
    replacing.kubernetes.remove_pod(pod)
    assert replacing.roll_out(new, [old]).url == f"http://{replacing.server_of(new)}:8080"
    assert name not in replacing.servers()


def test_to_replace_a_damaged_export_leaves_the_old_server_alone(replacing: Deployed) -> None:
    replacing.with_base()
    old, new = replacing.roll_out(replacing.export("a")), replacing.export("b")
    new.manifest_sha256 = "0" * 64
    with pytest.raises(Poison):
        replacing.rollout.roll_out(new, lambda: None, [old])
    assert replacing.server_of(old.export) in replacing.servers()


def test_to_replace_a_new_server_that_does_not_start_gives_the_place_back(replacing: Deployed) -> None:
    replacing.with_base()
    old, new = replacing.roll_out(replacing.export("a")), replacing.export("b")
    with pytest.raises(NotReady):
        replacing.rollout.roll_out(new, lambda: None, [old])
    words = "0/1 nodes are available: 1 Insufficient cpu."
    replacing.kubernetes.unschedulable(replacing.kubernetes.pod_of(replacing.server_of(new)), words)
    replacing.clock.advance(590)
    with pytest.raises(NotReady, match="Insufficient cpu"):
        replacing.rollout.roll_out(new, lambda: None, [old])
    replacing.clock.advance(20)
    with pytest.raises(Poison, match=r"not ready after 610 s: .*Insufficient cpu") as raised:
        replacing.rollout.roll_out(new, lambda: None, [old])
    assert "comes back" in raised.value.remedy
