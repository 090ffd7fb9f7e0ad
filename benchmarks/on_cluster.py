"""The chart on a cluster whose nodes have the images: how long until all is ready, and until the main job has answered.

    make bench-cluster

Prints four JSON objects: ``install_ready_seconds`` (`helm install` to every pod ready), ``idle_memory_mb`` (working
set of all pods but the broker and the model server, as metrics-server has it), ``main_job_seconds`` (the persona
dataset published to the topic until its model is served) and ``gateway_image_mb`` (the gateway's image over the Python
image that it stands on; left out, with the reason, where buildah does not have both). Baselines are the bounds that the
project sets itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import orjson

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.cluster import named_cluster  # noqa: E402 - the path comes first
from tests.cluster.images import PYTHON_IMAGE, any_cluster, image_name, image_values  # noqa: E402
from tests.cluster.persona import persona_message  # noqa: E402
from tests.cluster.release import SMALL, Release  # noqa: E402

READY_BOUND_S: Final = 180.0
MEMORY_BOUND_MB: Final = 1229.0
JOB_BOUND_S: Final = 600.0
IMAGE_BOUND_MB: Final = 200.0
NOT_COUNTED: Final = frozenset({"kafka", "server"})
MIB: Final = 2**20
UNITS: Final = {"": 1, "Ki": 2**10, "Mi": MIB, "Gi": 2**30}


def main() -> int:
    """Installs in a namespace of its own, measures, uninstalls."""
    cluster = any_cluster()
    if cluster is None:
        sys.stderr.write(
            "There is no cluster: KUBECONFIG names none, and the one beside the repository is not there.\n"
        )
        return 1
    inside = cluster.within("shortstack-bench")
    with inside.fresh_namespace():
        release = Release(inside, "shortstack", image_values(in_lab=named_cluster() is None), [SMALL])
        began = time.monotonic()
        release.install()
        release.until_ready()
        show("install_ready_seconds", time.monotonic() - began, "s", READY_BOUND_S)
        show("idle_memory_mb", release.until(lambda: idle_mb(release), within_s=180), "MiB", MEMORY_BOUND_MB)
        began = time.monotonic()
        release.publish("persona", persona_message())
        ended = release.until(lambda: ended_job(release))
        if ended["state"] != "succeeded":
            sys.stderr.write(f"The main job {ended['state']}: {ended['error']}\n")
            return 1
        show("main_job_seconds", time.monotonic() - began, "s", JOB_BOUND_S)
        release.uninstall()
    show_gateway_image()
    return 0


def ended_job(release: Release) -> dict[str, Any] | None:
    """The persona's job once it is over."""
    rows = [row for row in release.runs("persona") if row["state"] in {"succeeded", "failed", "cancelled"}]
    return rows[0] if rows else None


def idle_mb(release: Release) -> float | None:
    """MiB that the services' pods hold; None until metrics-server has seen all of them."""
    pods = {
        pod["metadata"]["name"]
        for pod in release.cluster.items("pods", release.selector)
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] not in NOT_COUNTED
        and pod["status"]["phase"] == "Running"
    }
    path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{release.cluster.namespace}/pods"
    listed = json.loads(release.cluster.run("kubectl", "get", "--raw", path).stdout)["items"]
    seen = {item["metadata"]["name"]: item["containers"] for item in listed}
    if not pods <= seen.keys():
        return None
    used = [container["usage"]["memory"] for pod in pods for container in seen[pod]]
    return sum(map(mebibytes, used))


def mebibytes(quantity: str) -> float:
    """A quantity of bytes as the API writes it: the largest unit that leaves it whole, none for 0."""
    digits = quantity.rstrip("KMGi")
    return int(digits) * UNITS[quantity.removeprefix(digits)] / MIB


def show_gateway_image() -> None:
    """Prints the gateway's image over what it stands on, or why there is no such figure."""
    gateway = image_name("gateway")
    if shutil.which("buildah") is None:
        sys.stderr.write("gateway_image_mb is left out: there is no buildah here, so nothing was built by it.\n")
        return
    if missing := [image for image in (gateway, PYTHON_IMAGE) if not is_built(image)]:
        sys.stderr.write(f"gateway_image_mb is left out: buildah does not have {' and '.join(missing)}.\n")
        return
    show("gateway_image_mb", image_mb(gateway) - image_mb(PYTHON_IMAGE), "MB", IMAGE_BOUND_MB)


def is_built(name: str) -> bool:
    """Whether buildah has an image."""
    command = ["buildah", "inspect", "--type=image", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def image_mb(name: str) -> float:
    """Size of an image's files, in millions of bytes."""
    container = said("buildah", "from", "--pull-never", name)
    try:
        return int(said("du", "-sb", said("buildah", "mount", container)).split()[0]) / 1e6
    finally:
        said("buildah", "rm", container)


def said(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def show(name: str, value: float, unit: str, baseline: float) -> None:
    """Prints one figure."""
    figure = {"name": name, "value": round(value, 1), "unit": unit, "baseline": baseline}
    print(orjson.dumps(figure | {"ratio": round(value / baseline, 2)}).decode(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
