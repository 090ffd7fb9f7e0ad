"""The short form: installed from nothing, asked by ``helm test``, uninstalled."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cluster.cluster import Cluster, words
from tests.cluster.release import SMALL, Release, ask

pytestmark = pytest.mark.timeout(3600)
BASE = "smollm2-135m-instruct"


def test_an_install_becomes_ready_passes_helms_test_and_leaves_with_its_release(
    cluster: Cluster, images: dict[str, Any]
) -> None:
    inside = cluster.within("shortstack-install")
    with inside.fresh_namespace():
        release = Release(inside, "shortstack", images, [SMALL])
        release.install(wait=True)
        release.until_ready()
        release.until(lambda: release.is_served(BASE), within_s=300)
        with release.gateway() as client:
            assert "Paris" in ask(client, BASE, "What is the capital of France?")
        inside.helm("test", release.name, "--timeout=10m")
        release.uninstall()
        release.until(lambda: not release.left(), within_s=60)
        claims = words(inside.items("persistentvolumeclaims"))
        assert claims == [f"data-{release.full('kafka')}-0", release.full("blobs"), release.full("gateway")]
