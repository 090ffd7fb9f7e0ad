"""The cluster that KUBECONFIG names, else the lab beside the repository, else every test here is skipped."""

from __future__ import annotations

import os
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
    """The release of most tests: one small node, no GPU, everything embedded.

    SHORTSTACK_TEST_NAMESPACE names a namespace to keep instead, for work on a single test.
    """
    kept = os.environ.get("SHORTSTACK_TEST_NAMESPACE")
    inside = cluster.within(kept or "shortstack-test")
    with inside.kept_namespace() if kept else inside.fresh_namespace():
        made = Release(inside, "shortstack", images, [SMALL])
        if not made.is_installed():
            made.install()
        made.until_ready()
        yield made
