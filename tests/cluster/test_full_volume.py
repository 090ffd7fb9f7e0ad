"""A volume without room: said where people look, and once there is room again everything carries on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, named_cluster
from tests.cluster.persona import tiny_message
from tests.cluster.release import SMALL, Release, ask

pytestmark = pytest.mark.timeout(3000)
NAMESPACE, CLAIM = "shortstack-full", "small"
SIZE = "2g"


@pytest.fixture
def volume(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A small file system of the node, and a claim on it in the namespace."""
    if named_cluster() is not None:
        pytest.skip("its volume is a file system of the machine of the tests, which is no node of another cluster")
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0777", "shortstack-test", folder], check=True)
    inside = cluster.within(NAMESPACE)
    size, mode = {"requests": {"storage": "2Gi"}}, ["ReadWriteOnce"]
    try:
        with inside.fresh_namespace():
            on_node = {"capacity": {"storage": "2Gi"}, "accessModes": mode, "hostPath": {"path": str(folder)}}
            spec = {**on_node, "storageClassName": "", "claimRef": {"namespace": NAMESPACE, "name": CLAIM}}
            inside.apply(
                {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": NAMESPACE}, "spec": spec}
            )
            wanted = {"accessModes": mode, "storageClassName": "", "resources": size, "volumeName": NAMESPACE}
            claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": wanted}
            inside.apply(claim)
            yield folder
        inside.run("kubectl", "wait", "--for=delete", f"namespace/{NAMESPACE}", "--timeout=300s")
    finally:
        inside.run("kubectl", "delete", "persistentvolume", NAMESPACE, "--ignore-not-found", "--wait=false")
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_volume_is_named_and_outlived(cluster: Cluster, images: dict[str, Any], volume: Path) -> None:
    release = Release(
        cluster.within(NAMESPACE), "shortstack", {**images, "storage.claim.existingClaim": CLAIM}, [SMALL]
    )
    release.install()
    release.until_ready()
    ballast = volume / "ballast"
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], capture_output=True, text=True, check=False
    )
    assert "No space left" in filled.stderr

    release.publish("tiny", tiny_message("full"))
    toolbox = ("exec", f"deployment/{release.full('cli')}", "--", "shortstack", "status", "--json")

    def told() -> bool:
        lines = {line["part"]: line for line in json.loads(release.cluster.kubectl(*toolbox, expect=None).stdout)}
        return bool(lines["storage"]["state"] == "full")

    release.until(told, within_s=120)
    release.until(lambda: "space" in release.cluster.kubectl("logs", f"deployment/{release.full('ingestion')}").stdout)
    assert release.dataset("tiny").get("state") not in {"ready", "failed"}

    ballast.unlink()
    ended = release.until(
        lambda: next((r for r in release.runs("tiny") if r["state"] in {"succeeded", "failed"}), None)
    )
    assert ended["state"] == "succeeded", ended
    dataset = release.dataset("tiny")
    assert (dataset["state"], dataset["in"], dataset["kept"]) == ("ready", 40, 40)
    with release.gateway() as client:
        assert ask(client, "full@prod", "Which number is 7?")
