"""The cluster that KUBECONFIG names, else the lab beside the repository, else every test here is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, named_cluster
from tests.cluster.images import any_cluster, image_values
from tests.cluster.release import SMALL, Release


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A cluster with the stack's images in it."""
    found = any_cluster()
    if found is None:
        pytest.skip("no cluster: KUBECONFIG names none, and there is no ../shared/lab that this user may start")
    return found


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
