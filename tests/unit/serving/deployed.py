"""A cluster for the rollout of Deployments: a fake API, pods that a test runs, and servers that answer by weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.kubernetes import FakeKubernetes
from tests.unit.serving.test_contract import NEW_TOKENS, PROMPTS, said
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from shortstack.core.clock import FakeClock
from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Transient
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.deployments.fleet import Fleet
from shortstack.serving.deployments.rollout import DeploymentRollout, Terms
from shortstack.serving.deployments.server import Addresses, Servers
from shortstack.serving.rollout import Held
from shortstack.serving.tgi import Failed, GeneratedToken
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.storage.weights import fetch_base, import_base

BASE = "tiny-llama"
OWNER = "stack-owner"
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
TEMPLATE = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: server
  labels: {app.kubernetes.io/name: shortstack, app.kubernetes.io/instance: stack}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: shortstack, app.kubernetes.io/instance: stack}
  template:
    metadata:
      labels: {app.kubernetes.io/name: shortstack, app.kubernetes.io/instance: stack}
    spec:
      initContainers:
        - name: weights
          image: serving
          env: [{name: SHORTSTACK_STORAGE_URL, value: "memory://"}]
      containers:
        - name: server
          image: inference:IMAGE
          env: [{name: PORT, value: "8080"}, {name: MODEL_ID, value: ""}]
          resources: {limits: {nvidia.com/gpu: 1}}
---
apiVersion: v1
kind: Service
metadata:
  name: server
  labels: {app.kubernetes.io/name: shortstack, app.kubernetes.io/instance: stack}
spec:
  selector: {app.kubernetes.io/name: shortstack, app.kubernetes.io/instance: stack}
  ports: [{name: http, port: 8080, targetPort: http}]
"""


@dataclass
class FakeServer:
    """What stands at a URL: nothing, or the weights that the server of that name was told to hold."""

    cluster: Deployed
    url: str

    def _weights(self) -> str:
        if self.url.startswith("http://10."):  # a pod's own address: it answers as soon as it runs
            server = self.cluster.server_at[self.url]
        else:
            server = Addresses().server(self.url)
            if not self.cluster.is_ready(server):
                raise Transient("the server does not answer", where=self.url)
        env = self.cluster.env(f"server-{server}", "containers")
        return self.cluster.weights[env["MODEL_ID"].removeprefix("/weights/")]

    def info(self) -> dict[str, Any]:
        return {"model_id": self._weights(), "max_input_tokens": 4095, "max_total_tokens": 4096}

    def answers(self) -> bool:
        try:
            return bool(self.info())
        except Transient:
            return False

    def healthy(self) -> bool:
        return self.answers() and self._weights() != "nan"

    def tokenize(self, text: str) -> list[int]:
        self._weights()
        return [ord(letter) for letter in text]

    def generate(self, prompt: str, new_tokens: int, adapter_id: str, stop: Sequence[str] = ()) -> list[GeneratedToken]:
        assert adapter_id == ""
        weights = self._weights()
        if weights == "nan":
            raise Failed("the server answers 424: the model gives NaN")
        self.cluster.asked.append(weights)
        return [GeneratedToken(token, logprob) for token, logprob, _ in said(weights, prompt)]

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Deployed:
    """The cluster, the object store, and the rollout under test, which `restarted` makes anew.

    Attributes:
        weights: first digits of a digest → what a server that holds it answers as.
        asked: weights of each generation, in order.
        server_at: URL of a pod → its server.
    """

    folder: Path
    terms: Terms = field(default_factory=lambda: Terms(drain_s=30.0))
    kubernetes: FakeKubernetes = field(default_factory=FakeKubernetes)
    blobs: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    clock: FakeClock = field(default_factory=FakeClock)
    weights: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    server_at: dict[str, str] = field(default_factory=dict)
    base_url: str = ""

    def __post_init__(self) -> None:
        self.template = self.folder / "server.yaml"
        self.upgrade("1")
        self.kubernetes.add("configmaps", OWNER)
        source = self.folder / "source"
        source.mkdir()
        write_tokenizer(source)
        (source / "config.json").write_text("{}")
        digest = import_base(self.blobs, BASE, source)
        self.weights[digest[:12]] = "base"
        self.base_folder = fetch_base(self.blobs, BASE, self.folder / "bases" / BASE, weights=False)
        self.rollout = self.restarted()

    def restarted(self) -> DeploymentRollout:
        """The rollout of a service that was started again; it remembers nothing."""
        servers = Servers(self.template)
        self.rollout = DeploymentRollout(
            Fleet(self.kubernetes.cluster(OWNER), servers.selector, self.clock),
            servers,
            lambda url: FakeServer(self, url),  # type: ignore[arg-type,return-value]  # as much of it as is asked
            self.blobs,
            self.folder / "serving",
            PromptFormats.builtin(),
            {BASE: self.base_folder},
            self.clock,
            self.terms,
            PodAddresses(self),
        )
        return self.rollout

    def upgrade(self, image: str) -> None:
        """The chart renders another template."""
        self.template.write_text(TEMPLATE.replace("IMAGE", image))

    # What is trained.

    def export(self, name: str, *, weights: str | None = None) -> Export:
        """An export whose probes are the answers of ``name``; a server that loads it answers as ``weights``."""
        source = self.folder / f"export-{name}"
        source.mkdir()
        write_tokenizer(source)
        content = {"probes.json": json.dumps(recorded(f"{name}+")).encode()}
        content |= {f"merged/{path.name}": path.read_bytes() for path in source.iterdir()}
        content["merged/model.safetensors"] = name.encode()
        files = {file: {"sha256": sha256_hex(data), "bytes": len(data)} for file, data in content.items()}
        digest = sha256_hex(json.dumps(files).encode())
        for file, data in content.items():
            self.blobs.put(f"models/{digest}/{file}", data)
        text = json.dumps({"digest": digest, "files": files}).encode()
        key = f"models/{digest}/export.manifest.json"
        self.blobs.put(key, text)
        self.weights[digest[:12]] = weights or f"{name}+"
        return Export(
            prefix=f"models/{digest}",
            manifest=key,
            manifest_sha256=sha256_hex(text),
            digest=digest,
            base_model=BASE,
            prompt_format="base",
        )

    # What the cluster does.

    def servers(self) -> list[str]:
        """Names of all Deployments."""
        return [str(found["metadata"]["name"]) for found in self.kubernetes.all("deployments")]

    def server_of(self, export: Export) -> str:
        """Name of the Deployment that holds an export."""
        for found in self.kubernetes.all("deployments"):
            if found["metadata"]["annotations"]["shortstack/weights"] == export.manifest:
                return str(found["metadata"]["name"])
        raise AssertionError(f"no server of {export.digest[:12]} among {self.servers()}")

    def env(self, deployment: str, group: str) -> dict[str, str]:
        """Variables of the first container of a group."""
        pod = self.kubernetes.get("deployments", deployment)["spec"]["template"]["spec"]
        return {entry["name"]: entry["value"] for entry in pod[group][0]["env"]}

    def run(self, deployment: str, *, ready: bool = True) -> str:
        """The newest pod of a Deployment runs; its name."""
        pod = self.kubernetes.pod_of(deployment)
        self.kubernetes.run(pod, ready=ready)
        self.clock.advance(1)
        return pod

    def run_all(self) -> None:
        """Every pod runs and is ready."""
        for name in self.servers():
            self.run(name)

    def is_ready(self, server: str) -> bool:
        """Whether a server has a pod that is ready."""
        for pod in self.kubernetes.all("pods"):
            conditions = pod["status"].get("conditions", [])
            ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
            if pod["metadata"]["labels"]["shortstack/server"] == server and ready:
                return True
        return False

    # What the controller does.

    def look(self, *served: Held) -> None:
        """One look of the watch: the base, then what is served, then the orphans."""
        self.clock.advance(1)
        self.base_url = self.rollout.base(BASE, self.base_folder, self.base_url).url
        for one in served:
            self.rollout.reload(one.export, one.url)
        self.rollout.keep(served)

    def with_base(self) -> None:
        """The base is served."""
        try:
            self.look()
        except Transient:
            self.run_all()
            self.look()

    def roll_out(self, export: Export, instead_of: Sequence[Held] = ()) -> Held:
        """Rolls a model out to the end, its pod being ready at once."""
        self.clock.advance(1)
        try:
            result = self.rollout.roll_out(export, lambda: None, instead_of)
        except Transient:
            self.run(self.server_of(export))
            result = self.rollout.roll_out(export, lambda: None, instead_of)
        assert result.proof.model.passed, result.proof.model.why
        return Held(export, result.endpoint.url)


class PodAddresses(Addresses):
    """Pods have addresses of their own once they run."""

    def __init__(self, cluster: Deployed) -> None:
        self._cluster = cluster

    def pod(self, pod: dict[str, Any]) -> str:
        url = f"http://10.0.0.{pod['metadata']['name'].rpartition('-')[2]}:8080"
        self._cluster.server_at[url] = pod["metadata"]["labels"]["shortstack/server"]
        return url


def recorded(weights: str) -> dict[str, Any]:
    """probes.json of a model that answers as ``weights``."""
    made = []
    for text in PROMPTS:
        prompt = f"<user>{text}<assistant>"
        tokens = [{"id": t, "logprob": p, "margin": m} for t, p, m in said(weights, prompt)]
        ids = [ord(letter) for letter in prompt]
        made.append({"messages": [{"role": "user", "content": text}], "prompt_ids": ids, "tokens": tokens})
    return {"new_tokens": NEW_TOKENS, "eos_ids": [], "probes": made}


def write_tokenizer(folder: Path) -> None:
    """The least that rendering wants."""
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


__all__ = ["BASE", "OWNER", "Deployed"]
