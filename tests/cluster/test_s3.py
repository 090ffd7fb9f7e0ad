"""Objects in a bucket and no shared volume: the same way, from a dataset to an answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, named_cluster
from tests.cluster.persona import tiny_message
from tests.cluster.release import SMALL, Release, ask
from tests.polling import until

pytestmark = pytest.mark.timeout(2400)
BUCKET = "shortstack"


@pytest.fixture
def bucket(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """Endpoint of moto's S3 on this machine, as pods reach it, with an empty bucket."""
    if named_cluster() is not None:
        pytest.skip("its S3 server runs on the machine of the tests, which pods of another cluster may not reach")
    nodes = json.loads(cluster.run("kubectl", "get", "nodes", "--output=json").stdout)["items"]
    address = next(a["address"] for a in nodes[0]["status"]["addresses"] if a["type"] == "InternalIP")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(port)]
    endpoint = f"http://{address}:{port}"
    with (tmp_path / "moto.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            until(lambda: _made(endpoint), "moto's S3")
            yield endpoint
        finally:
            server.terminate()


def _made(endpoint: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request")
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"moto refuses a bucket: {error.read()!r}") from error
    except OSError:
        return False


def test_a_bucket_alone_carries_a_dataset_to_an_answer(cluster: Cluster, images: dict[str, Any], bucket: str) -> None:
    inside = cluster.within("shortstack-s3")
    host, _, port = bucket.removeprefix("http://").partition(":")
    values = {
        **images,
        "storage.kind": "s3",
        "storage.s3": {"bucket": BUCKET, "prefix": "here", "endpointUrl": bucket, "existingSecret": "bucket-key"},
        "networkPolicy.s3": {"ports": [int(port)], "to": [{"ipBlock": {"cidr": f"{host}/32"}}]},
    }
    with inside.fresh_namespace():
        keys = ["--from-literal=AWS_ACCESS_KEY_ID=test", "--from-literal=AWS_SECRET_ACCESS_KEY=test"]
        inside.kubectl("create", "secret", "generic", "bucket-key", *keys)
        release = Release(inside, "shortstack", values, [SMALL])
        release.install(wait=True)
        release.until_ready()
        claims = {claim["metadata"]["name"] for claim in inside.items("persistentvolumeclaims")}
        assert not [name for name in claims if "blobs" in name], claims
        release.publish("tiny", tiny_message("s3"))
        ended = release.until(
            lambda: next((r for r in release.runs("tiny") if r["state"] in {"succeeded", "failed"}), None)
        )
        assert ended["state"] == "succeeded", ended
        with release.gateway() as client:
            assert ask(client, "s3@prod", "Which number is 7?")
        release.uninstall()
