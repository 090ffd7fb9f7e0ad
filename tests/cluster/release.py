"""One release of the chart, and what its users reach it by: a Kafka client in a pod, the toolbox, the gateway."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from tests.chatting import Chats, chats_of
from tests.cluster.cluster import Cluster, words
from tests.polling import until

__all__ = ["SMALL", "Release", "ask", "ask_if_loaded"]

CHART: Final = Path(__file__).parents[2] / "helm" / "shortstack"
SMALL: Final = CHART / "values" / "small-cpu.yaml"
READY_S: Final = 600.0
# A deadline ends a test that would hang; a machine that is busy otherwise is several times slower.
LONG_S: Final = 1500.0
AWAY_S: Final = 180.0
CHAT_S: Final = 120.0
TRY_AGAIN: Final = 75
_POLL_S: Final = 0.5
_KINDS: Final = (
    "pods,replicasets,jobs,deployments,statefulsets,services,configmaps,secrets,networkpolicies,"
    "serviceaccounts,roles,rolebindings,ingresses"
)
"""Of what a release makes, all but volumes."""

T = TypeVar("T")

_PUBLISH: Final = """
import json, os, sys
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers=os.environ["BOOTSTRAP"], acks="all", max_request_size=1048576)
for line in sys.stdin:
    key, message = json.loads(line)
    sent = producer.send("datasets.ingest", key=key.encode(), value=json.dumps(message).encode()).get(timeout=60)
    print(sent.topic, sent.partition, sent.offset)
producer.close()
"""


class Release:
    """A release in a namespace of its own.

    Args:
        values: of `helm install`, beside ``files``.
        files: values files.
    """

    def __init__(
        self, cluster: Cluster, name: str, values: Mapping[str, Any] | None = None, files: Sequence[Path] = ()
    ) -> None:
        self.cluster, self.name = cluster, name
        self.values, self.files = dict(values or {}), tuple(files)
        self.selector = f"app.kubernetes.io/instance={name}"

    # Installing.

    def _arguments(self, values: Mapping[str, Any]) -> list[str]:
        files = [argument for file in self.files for argument in ("--values", str(file))]
        return [self.name, str(CHART), *files, *(f"--set-json={key}={json.dumps(v)}" for key, v in values.items())]

    def is_installed(self) -> bool:
        """Whether a release of that name is there."""
        return self.cluster.helm("status", self.name, expect=None).returncode == 0

    def install(self, *, wait: bool = False) -> None:
        """``helm install``."""
        self.cluster.helm("install", *self._arguments(self.values), *(["--wait", "--timeout=10m"] if wait else []))

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """``helm upgrade`` with other values."""
        self.values |= values
        self.cluster.helm("upgrade", *self._arguments(self.values), "--wait", "--timeout=10m")

    def uninstall(self) -> None:
        """``helm uninstall``."""
        self.cluster.helm("uninstall", self.name)

    def left(self) -> list[str]:
        """What is still there of it, kind and name, but for volumes."""
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for item in self.cluster.items(_KINDS)
            if item["metadata"].get("labels", {}).get("app.kubernetes.io/name") == "shortstack"
        ]

    def full(self, component: str) -> str:
        """The name of a component's objects."""
        return f"{self.name}-{component}"

    def unready(self) -> dict[str, str]:
        """What is not ready yet, and in which phase it is; Jobs' pods that have done their work are."""
        found = {}
        for pod in self.cluster.items("pods", self.selector):
            status = pod["status"]
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
            if not ready and status.get("phase") != "Succeeded":
                found[pod["metadata"]["name"]] = str(status.get("phase"))
        return found

    def until_ready(self, within_s: float = READY_S) -> None:
        """Waits until every pod is ready, the base model's server, which a controller makes, among them."""

        def ready() -> bool:
            pods = self.cluster.items("pods", self.selector)
            components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
            return {"gateway", "server"} <= components and not self.unready()

        self.until(ready, within_s=within_s)

    def until(self, look: Callable[[], T | None], *, within_s: float = LONG_S) -> T:
        """The first thing that ``look`` finds; fails with the pods' states after ``within_s``."""
        found = until(
            look,
            lambda: f"\n{self.cluster.kubectl('get', 'all').stdout}",
            deadline_s=within_s,
            every_s=_POLL_S,
        )
        assert found is not None  # `until` gives nothing that is not true
        return found

    # Asking it.

    def printed(self, component: str, *command: str) -> str:
        """What a command prints in a component's pod."""
        return self.cluster.kubectl("exec", f"deployment/{self.full(component)}", "--", *command).stdout.strip()

    def servers(self) -> list[str]:
        """Names of the model servers' Deployments."""
        return words(self.cluster.items("deployments", f"{self.selector},app.kubernetes.io/component=server"))

    def listed(self, *arguments: str) -> Any:
        """What ``shortstack ARGUMENTS --json`` prints in the toolbox; while a service is away it says to try again."""
        command = ["exec", f"deployment/{self.full('cli')}", "--", "shortstack", *arguments, "--json"]
        deadline = time.monotonic() + AWAY_S
        while True:
            done = self.cluster.kubectl(*command, expect=None)
            if done.returncode == 0:
                return json.loads(done.stdout)
            assert done.returncode == TRY_AGAIN, f"{' '.join(arguments)} exited {done.returncode}: {done.stderr}"
            assert time.monotonic() < deadline, f"{' '.join(arguments)}: {done.stderr}"

    def publish(self, key: str, *messages: Mapping[str, Any]) -> None:
        """Puts messages on ``datasets.ingest`` with kafka-python, in the toolbox's pod."""
        lines = "".join(json.dumps([key, message]) + "\n" for message in messages)
        bootstrap = f"BOOTSTRAP={self.full('kafka')}:9092"
        pod = ["exec", "--stdin", f"deployment/{self.full('cli')}", "--", "env", bootstrap, "python", "-c", _PUBLISH]
        self.cluster.kubectl(*pod, given=lines)

    def dataset(self, name: str) -> dict[str, Any]:
        """The newest publication of a dataset; empty while there is none."""
        rows = [row for row in self.listed("datasets", "list") if row["dataset"] == name]
        return max(rows, key=lambda row: row["accepted_at"], default={})

    def runs(self, dataset: str) -> list[dict[str, Any]]:
        """Runs on a dataset."""
        return [row for row in self.listed("runs", "list") if row["dataset"] == dataset]

    def steps(self, job: str) -> dict[int, list[int]]:
        """Numbers of the optimiser steps that a fine-tuning job reported, by attempt, as they came."""
        found: dict[int, list[int]] = {}
        with self.gateway() as client:
            after: dict[str, str] = {}
            while True:
                path = f"/v1/fine_tuning/jobs/{job}/events"
                page = client.get(path, params={"limit": "100", **after}).raise_for_status().json()
                for event in page["data"]:
                    if "train_loss" in event["data"]:
                        found.setdefault(int(event["id"].split("-")[-2]), []).insert(0, event["data"]["step"])
                if not page["has_more"]:
                    return found
                after = {"after": page["data"][-1]["id"]}

    def models(self) -> list[dict[str, Any]]:
        """All models, as ``models list`` has them."""
        rows: list[dict[str, Any]] = self.listed("models", "list")
        return rows

    def is_served(self, model: str) -> bool:
        """Whether a model has been proven and answers. Ready pods are not yet that: until then the gateway says 503."""
        return (model, "served") in {(row["model"], row["state"]) for row in self.models()}

    def key(self) -> str:
        """The gateway's first key."""
        secret = self.cluster.kubectl("get", "secret", self.full("gateway-key"), "--output=json").stdout
        return base64.b64decode(json.loads(secret)["data"]["api-key"]).decode()

    @contextmanager
    def gateway(self) -> Iterator[httpx.Client]:
        """A client of the gateway."""
        headers = {"authorization": f"Bearer {self.key()}"}
        with (
            self.cluster.forwarded(f"service/{self.full('gateway')}", 80) as port,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=CHAT_S) as client,
        ):
            yield client

    # Chatting.

    @contextmanager
    def chatting(self, model: str, question: str, *, a_second: float = 5.0, clients: int = 5) -> Iterator[Chats]:
        """Chats in the background, ``a_second`` of them, until the end of the block; every one counts."""
        with (
            self.gateway() as client,
            chats_of(
                lambda: ask(client, model, question, max_tokens=12),
                failing=(httpx.HTTPError, AssertionError),
                a_second=a_second,
                clients=clients,
                last_s=CHAT_S + 10,
            ) as chats,
        ):
            yield chats


def ask(client: httpx.Client, model: str, question: str, *, max_tokens: int = 40) -> str:
    """One greedy answer."""
    answer = ask_if_loaded(client, model, question, max_tokens=max_tokens)
    assert answer is not None, f"{model} is loading"
    return answer


def ask_if_loaded(client: httpx.Client, model: str, question: str, *, max_tokens: int = 40) -> str | None:
    """One greedy answer; None while the gateway says that the model is loading, and when to ask again."""
    body = {"model": model, "messages": [{"role": "user", "content": question}]}
    reply = client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": max_tokens})
    if reply.status_code == 503:
        assert "retry-after" in reply.headers, reply.text
        return None
    assert reply.status_code == 200, f"{reply.status_code} {reply.text}"
    answer: str = reply.json()["choices"][0]["message"]["content"]
    return answer
