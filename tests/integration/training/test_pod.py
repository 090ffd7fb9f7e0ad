"""An attempt's pod: its three containers as processes over a shared folder, a tiny model, a real broker and store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.training.conftest import DEADLINE_S, Bench
from tests.polling import until

from shortstack.core.digest import file_sha256
from shortstack.declarations.base_models import BaseModel
from shortstack.storage.weights import import_base
from shortstack.training.launcher import STOPPED, AttemptOrder
from shortstack.training.pod.objects import order_key, result_key

# Real trainers: each start imports torch, which takes a busy machine a while.
pytestmark = pytest.mark.timeout(900)

_SECRET = ("SHORTSTACK_STORAGE_URL", "SHORTSTACK_KAFKA_BOOTSTRAP")
SETTINGS: dict[str, Any] = {"bf16": False, "max_steps": 300, "save_steps": 50, "lora_dropout": 0.1}


@dataclass
class Pod:
    """One attempt's pod: a folder of its own, gone with it, and a process a container."""

    bench: Bench
    attempt: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.bench.folder / f"pod-{self.attempt}"

    @property
    def run(self) -> Path:
        return self.work / "run"

    def start(self, container: str, **more: str) -> subprocess.Popen[bytes]:
        """A container, in a session of its own; the trainer's knows neither Kafka nor the object store."""
        self.work.mkdir(exist_ok=True)
        environment = {**os.environ, **self.bench.environment, **more}
        if container == "train":
            environment = {name: value for name, value in environment.items() if name not in _SECRET}
        environment |= {
            "SHORTSTACK_RUN": self.bench.run,
            "SHORTSTACK_ATTEMPT": str(self.attempt),
            "SHORTSTACK_WORK": str(self.work),
        }
        with (self.bench.folder / f"pod-{self.attempt}.{container}.log").open("wb") as log:
            command = [sys.executable, "-m", "shortstack.training.pod", container]
            made = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes[container] = made
        return made

    def prepare(self) -> int:
        return self.start("prepare").wait(120)

    def begin(self) -> None:
        """As the kubelet does: prepare to its end, then both others at once."""
        assert self.prepare() == 0, self.log("prepare")
        self.start("agent")
        self.start("train")

    def kill(self, container: str) -> None:
        """SIGKILL to the container's first process, and with it to all others, as the kernel does."""
        if self.processes[container].poll() is not None:
            return
        first = psutil.Process(self.processes[container].pid)
        everything = [first, *first.children(recursive=True)]
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes[container].wait(10)

    def wait(self, container: str) -> int:
        return self.processes[container].wait(400)

    def end(self) -> None:
        """The pod is gone, its folder too."""
        for container in self.processes:
            self.kill(container)
        shutil.rmtree(self.work, ignore_errors=True)

    def log(self, container: str) -> str:
        return (self.bench.folder / f"pod-{self.attempt}.{container}.log").read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.run / "events.jsonl"
        text = path.read_bytes() if path.exists() else b""
        lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
        return [line for line in lines if line["type"] == kind]

    def word(self) -> dict[str, Any]:
        return json.loads(self.bench.blobs.get(result_key(self.bench.run, self.attempt)))


@dataclass
class Pods:
    """Orders and pods of one run."""

    bench: Bench
    made: list[Pod] = field(default_factory=list)

    def order(self, attempt: int, config: Mapping[str, Any], **base: str) -> Pod:
        """An attempt's order in the store, as the launcher writes it, and its pod."""
        given = self.bench.order(attempt, **config)
        digest = BaseModel("tiny-llama", self.bench.base).digest()
        named = {"name": "tiny-llama", "path": "/nowhere", "digest": digest, **base}
        plan = {**given.plan, "base_model": named, "sample_questions": ["say ab"]}
        told = AttemptOrder(given.run, attempt, given.manifest, given.processes, plan)
        self.bench.blobs.put(order_key(given.run, attempt), told.to_json())
        self.made.append(Pod(self.bench, attempt))
        return self.made[-1]


@pytest.fixture
def pods(bench: Bench) -> Iterator[Pods]:
    """Pods on the bench; the base model has been imported."""
    import_base(bench.blobs, "tiny-llama", bench.base)
    made = Pods(bench)
    yield made
    for pod in made.made:
        pod.end()


def losses(text: bytes) -> dict[int, float]:
    lines = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_trainer_killed_after_its_second_stored_checkpoint_is_followed_by_a_pod_that_goes_on(
    pods: Pods, bench: Bench
) -> None:
    """Step numbers go on, and losses and export are those of an unbroken run, to the last bit."""
    first = pods.order(1, SETTINGS)
    first.begin()
    until(lambda: bench.blobs.exists(f"runs/{bench.run}/stored/2.json"), "two checkpoints", deadline_s=DEADLINE_S)
    first.kill("train")
    assert first.wait("agent") != 0
    word = first.word()
    assert (word["code"], word["final"]) == ("trainer_died", False), first.log("agent")
    assert word["message"] == "the trainer was killed and left no word; see trainer.log"
    first.end()

    second = pods.order(2, SETTINGS)
    second.begin()
    assert second.wait("train") == 0, second.log("train")
    assert second.wait("agent") == 0, second.log("agent")
    (started,) = second.events("started")
    reached = started["step"]
    assert (reached >= 100, reached % 50) == (True, 0)
    assert [event["step"] for event in second.events("step")] == list(range(reached + 1, 301))
    export = second.word()["export"]
    papers = {name: bench.blobs.get(f"runs/{bench.run}/attempt-2/{name}") for name in ("metrics.jsonl", "trainer.log")}
    second.end()

    unbroken = pods.order(3, {**SETTINGS, "resume_from_checkpoint": False})
    unbroken.begin()
    assert unbroken.wait("agent") == 0, unbroken.log("agent")
    assert [event["step"] for event in unbroken.events("step")] == list(range(1, 301))
    assert losses((unbroken.run / "metrics.jsonl").read_bytes()) == losses(papers["metrics.jsonl"])
    assert sorted(losses(papers["metrics.jsonl"])) == list(range(1, 301))
    assert unbroken.word()["export"]["digest"] == export["digest"]

    manifest = json.loads(bench.blobs.get(export["manifest"]))
    for name, entry in manifest["files"].items():
        assert bench.blobs.size(f"{export['prefix']}/{name}") == entry["bytes"]
    summary = json.loads(bench.blobs.get(f"runs/{bench.run}/attempt-2/summary.json"))
    assert (summary["steps"], summary["max_steps"]) == (300, 300)
    shipped = bench.shipped()
    assert {attempt for attempt, _ in shipped} == {1, 2, 3}
    assert shipped == sorted(shipped)


def test_a_pod_that_is_told_to_end_leaves_a_checkpoint_and_says_so(pods: Pods, bench: Bench) -> None:
    pod = pods.order(1, {**SETTINGS, "max_steps": 4000, "save_steps": 2000})
    pod.begin()
    until(lambda: pod.events("step"), "the first step", deadline_s=DEADLINE_S)
    for container in ("train", "agent"):  # the kubelet tells both
        pod.processes[container].send_signal(signal.SIGTERM)
    assert pod.wait("train") != 0
    assert pod.wait("agent") != 0
    assert pod.word()["code"] == STOPPED, pod.log("agent")
    entry = json.loads(bench.blobs.get(f"runs/{bench.run}/stored/1.json"))
    assert entry["step"] == pod.events("step")[-1]["step"]


def test_what_the_trainer_refuses_is_final_and_has_its_words(pods: Pods) -> None:
    pod = pods.order(1, {**SETTINGS, "lora_r": 0})
    pod.begin()
    assert pod.wait("agent") != 0
    word = pod.word()
    assert (word["code"], word["final"]) == ("bad_plan", True), pod.log("agent")
    assert "lora_r" in word["message"]


def test_preparation_fetches_everything_by_digest_and_refuses_another_base(pods: Pods, bench: Bench) -> None:
    pod = pods.order(1, SETTINGS)
    assert pod.prepare() == 0, pod.log("prepare")
    plan = json.loads((pod.run / "plan.json").read_bytes())
    base = Path(plan["base_model"]["path"])
    assert base.is_relative_to(pod.work)
    for path in bench.base.iterdir():
        assert file_sha256(base / path.name) == file_sha256(path)
    for path in [*plan["dataset"]["train"], *plan["dataset"]["validation"]]:
        assert Path(path).is_file()

    other = pods.order(2, SETTINGS, digest="e" * 32)
    assert other.prepare() != 0
    assert other.word()["final"] is True
    assert 'base model "tiny-llama"' in other.word()["message"]
    assert other.log("prepare").strip().splitlines()[-1].startswith("error: ")


def test_a_dataset_that_is_gone_is_the_last_word(pods: Pods, bench: Bench) -> None:
    bench.blobs.delete_prefix("publications/default/pub-1/versions/v1")
    pod = pods.order(1, SETTINGS)
    assert pod.prepare() != 0
    assert (pod.word()["code"], pod.word()["final"]) == ("agent", True)
