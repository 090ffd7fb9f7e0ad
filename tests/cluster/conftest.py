"""The cluster that KUBECONFIG names, else the lab beside the repository, else every test here is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, lab, named_cluster
from tests.cluster.images import LabImages, image_values
from tests.cluster.release import Release

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "helm" / "values" / "small-cpu.yaml"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A cluster with the stack's images in it."""
    named = named_cluster()
    if named is not None:
        return named
    found = lab(ROOT.parent / "shared")
    if found is None:
        pytest.skip("no cluster: KUBECONFIG names none, and there is no ../shared/lab that this user may start")
    started = found.up()
    LabImages(found.folder, started.environment).ensure()
    return started


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, Any]:
    """Chart values that name the images of the cluster."""
    return image_values(in_lab=named_cluster() is None)


@pytest.fixture(scope="session")
def release(cluster: Cluster, images: dict[str, Any]) -> Iterator[Release]:
    """The release of most tests: one small node, no GPU, everything embedded."""
    inside = cluster.within("shortstack-test")
    with inside.fresh_namespace():
        made = Release(inside, "shortstack", images, [SMALL])
        made.install()
        made.until_ready()
        yield made
