"""What runs the pods of a fake cluster: weights are fetched by the command of the init container, servers are real."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from tests.fakes.kubernetes import FakeKubernetes
from tests.integration.serving.conftest import serving

from shortstack.serving.deployments.server import SERVER_LABEL, Addresses

NOWHERE = "http://127.0.0.1:9"


class Kubelet(Addresses):
    """Starts and ends servers as Deployments come and go, when `sync` is called; says where they answer."""

    def __init__(self, kubernetes: FakeKubernetes, folder: Path) -> None:
        self._kubernetes, self._folder = kubernetes, folder
        self._running: dict[str, tuple[str, ExitStack]] = {}

    def sync(self) -> None:
        """One round."""
        wanted = {found["metadata"]["name"]: found for found in self._kubernetes.all("deployments")}
        for name in self._running.keys() - wanted.keys():
            self._running.pop(name)[1].close()
        for name, deployment in wanted.items():
            pod = self._kubernetes.pod_of(name)
            if name not in self._running:
                self._start(name, pod, deployment["spec"]["template"]["spec"])
            if name in self._running:
                healthy = httpx.get(f"{self._running[name][0]}/health", timeout=30).status_code == 200
                self._kubernetes.run(pod, ready=healthy)

    def close(self) -> None:
        """Ends every server."""
        for _, stack in self._running.values():
            stack.close()
        self._running.clear()

    def _start(self, name: str, pod: str, spec: dict[str, Any]) -> None:
        fetch = {entry["name"]: entry["value"] for entry in spec["initContainers"][0]["env"]}
        server = {entry["name"]: entry["value"] for entry in spec["containers"][0]["env"]}
        volume = self._folder / name
        fetch["SHORTSTACK_WEIGHTS_DIR"] = f"{volume}{fetch['SHORTSTACK_WEIGHTS_DIR']}"
        command = [sys.executable, "-m", "shortstack.storage.weights", "fetch"]
        ended = subprocess.run(command, env=os.environ | fetch, capture_output=True, text=True, timeout=60, check=False)
        if ended.returncode:
            self._kubernetes.crash(pod, "weights", ended.returncode, message=ended.stderr)
            return
        stack = ExitStack()
        url = stack.enter_context(serving(Path(f"{volume}{server['MODEL_ID']}")))
        self._running[name] = (url, stack)

    # Where servers answer: a Service has endpoints once its pod is ready.

    def url(self, server: str) -> str:
        return self._running[f"server-{server}"][0] if f"server-{server}" in self._running else NOWHERE

    def server(self, url: str) -> str:
        names = [name for name, (there, _) in self._running.items() if there == url]
        return names[0].removeprefix("server-") if names else ""

    def pod(self, pod: dict[str, Any]) -> str:
        return self.url(pod["metadata"]["labels"][SERVER_LABEL])
