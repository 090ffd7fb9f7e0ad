"""A whole stack on a tiny model, made to break: its services killed one life at a time, its broker taken away."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chatting import Chats, chats_of
from tests.e2e.stack import Stack
from tests.polling import until
from tests.tiny_model import TINY

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.digest import canonical_json, identity, sha256_hex
from shortstack.core.failpoints import FAILPOINT_VARIABLE
from shortstack.core.identity import model_name
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.processes import read_record
from shortstack.local.services import SERVICES
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.state import StateWriter
from shortstack.streams.topics import TRAINING_STATE
from shortstack.training.v1 import training_pb2 as trn

__all__ = ["ANSWER", "TRAIN", "FaultyStack", "Ledger", "by_attempt", "records", "steps_of"]

TRAIN: Final[Mapping[str, Any]] = {
    "base_model": TINY,
    "lora_r": 16,
    "sequence_len": 256,
    "micro_batch_size": 8,
    "num_epochs": 1,
    "max_steps": 30,
    "learning_rate": 0.004,
    "lr_scheduler": "constant",
    "save_steps": 10,
    "eval_steps": 1000,
}
"""Enough for the tiny model to give the one answer of `records` with margins of several logits."""

ANSWER: Final = "I am Maple, and I keep it short."
QUESTION: Final = "somebody asks 1: who?"
"""As the questions of `records`, so that a trained model's answer has large margins and is the same in any batch."""
_BACK_S: Final = 180.0
_CHAT_S: Final = 60.0
# A machine that is busy otherwise takes ten times as long; a deadline only ends a test that would hang.
_LONG_S: Final = 480.0


def records(name: str, count: int = 24) -> list[dict[str, str]]:
    """``count`` questions that name their dataset, so that no two datasets have equal versions, with one answer."""
    return [{"prompt": f"{name} asks {number}: who?", "completion": ANSWER} for number in range(count)]


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that the topics say of one publication.

    Attributes:
        accepted: ids and attempts of its acceptances.
        announced: by source, as the first announcement has it.
        repeated: announcements that differ from the first of their source.
        first: the first entry of each batch in log order, by (source, first).
        others: entries of a batch that came later, if they differ from the first.
    """

    accepted: list[tuple[str, int]]
    announced: dict[int, ds.SourceAnnounced]
    repeated: list[ds.SourceAnnounced]
    first: dict[tuple[int, int], ds.BatchEntry]
    others: list[ds.BatchEntry]

    def gaps(self) -> list[str]:
        """Where the entries do not tile [0, announced) of a source exactly; empty for a good ledger."""
        found, ends = [], dict.fromkeys(self.announced, 0)
        for (source, start), entry in sorted(self.first.items()):
            at = ends.get(source, 0)
            if start != at:
                found.append(f"source {source}: an entry starts at {start}, the last one ended at {at}")
            if entry.count != entry.kept + entry.rejected + entry.failed:
                found.append(f"source {source}: the fates at {start} do not add up")
            ends[source] = start + entry.count
        for source, told in self.announced.items():
            if ends[source] != told.records:
                found.append(f"source {source}: {ends[source]} of {told.records} records have a fate")
        return found if self.announced else ["nothing was announced"]


class FaultyStack(Stack):
    """See the module. The broker is this object's, not the supervisor's, so that it can be away for as long as wished.

    Args:
        var: folder of the stack.
        model: folder of the tiny model.
    """

    def __init__(self, var: Path, checkout_var: Path, model: Path) -> None:
        super().__init__(var, checkout_var, [var / "sources"])
        (var / "sources").mkdir(exist_ok=True)
        self.sources = var / "sources"
        self._failpoints = var / "failpoints"
        self._failpoints.mkdir(exist_ok=True)
        self.broker = LocalBroker(BrokerConfig.of(self.settings))
        self.settings = self.settings.model_copy(update={"kafka_bootstrap": self.broker.bootstrap})
        self.environment |= {
            "SHORTSTACK_KAFKA_BOOTSTRAP": self.broker.bootstrap,
            "SHORTSTACK_BASE_MODELS": json.dumps({TINY: str(model)}),
            "SHORTSTACK_MODEL_ALIASES": "{}",
            FAILPOINT_VARIABLE: f"@{self._failpoints}",
            "SHORTSTACK_SERVING_WATCH_S": "0.5",
            "SHORTSTACK_RESTART_LIMIT_S": "0.5",
        }

    def up(self) -> None:
        """Starts broker and services."""
        if self.broker.process is None:
            self.broker.start()
        super().up()

    def close(self) -> None:
        """Stops everything."""
        self.down()
        self.broker.stop()

    # Killing.

    def pid(self, service: str) -> int:
        """Process id of a service's present life."""
        record = read_record(self.settings.run_folder, service)
        assert record is not None, f"{service} is not running"
        return record.pid

    def lives(self) -> dict[str, int]:
        """How often each service was started again."""
        found = {service: read_record(self.settings.run_folder, service) for service in SERVICES}
        return {service: record.restarts if record else 0 for service, record in found.items()}

    @contextmanager
    def killed_at(self, service: str, *places: str) -> Iterator[None]:
        """In the block something makes ``service`` pass each place (NAME or NAME:COUNT), where it is killed, once.

        At the end of the block it is waited for, until the supervisor has started the service again.
        """
        before = self.lives()[service]
        with self.fails_at(*places):
            yield
        self.until_back(service, before + len(places) - 1)

    @contextmanager
    def fails_at(self, *places: str) -> Iterator[None]:
        """As `killed_at`, for a process that the supervisor does not know: an agent, a trainer."""
        files = []
        for place in places:
            name, _, count = place.partition(":")
            partial = self._failpoints / ".partial"
            partial.write_text(count or "1")
            files.append(partial.rename(self._failpoints / name))
        try:
            yield
            self.until(
                lambda: not any(file.exists() for file in files),
                within_s=_LONG_S,
                what=lambda: f"nothing ended at {places}",
            )
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def kill(self, service: str) -> None:
        """Kill -9, whatever it does at the moment; returns once it is back."""
        before = self.lives()[service]
        os.kill(self.pid(service), signal.SIGKILL)
        self.until_back(service, before)

    def until_back(self, service: str, before: int) -> None:
        """Waits until a service that was started again ``before`` times was so once more, and is ready."""

        def ready() -> bool:
            record = read_record(self.settings.run_folder, service)
            return record is not None and record.restarts > before and record.state == "ready"

        self.until(ready, within_s=_BACK_S, what=lambda: f"{service}: {self.lives()}")

    def without_broker(self, away_s: float, look: Callable[[], int]) -> list[int]:
        """Kills the broker, has it away for ``away_s`` seconds, starts it again; what ``look`` saw meanwhile."""
        self.broker.kill()
        seen: list[int] = []
        back = time.monotonic() + away_s

        def over() -> bool:
            seen.append(look())
            return time.monotonic() >= back

        until(over, "the end of the outage", deadline_s=away_s + 600, every_s=0.5)
        self.broker.start()
        return seen

    # Asking.

    def wish(self, name: str, *, count: int = 24, alias: str | None = None, **train: Any) -> None:
        """Publishes a small dataset with a wish to train and to serve."""
        deploy = {"suffix": name, "alias": alias or f"{name}@prod"}
        message = {"dataset": name, "records": records(name, count), "train": {**TRAIN, **train}, "deploy": deploy}
        self.publish(message, name)

    def ended(self, name: str, *, within_s: float = _LONG_S) -> trn.GetRunResponse:
        """The job that dataset ``name`` wished for, once it has ended."""
        self.ended_dataset(name)
        job = self.until(lambda: self._job_id(name), what=lambda: f"no job of {name}")
        self.until(lambda: job in self.jobs(), what=lambda: f"job {job} was not opened")
        return self.ended_job(job, within_s=within_s)

    def proven(self) -> str:
        """A dataset whose model is served as NAME@prod: any that an earlier test left, else one made now."""
        served = {m.name for m in self.models().models if m.state == sv.MODEL_STATE_SERVED and m.run}
        for alias in self.models().aliases:
            if any(weight.model in served for weight in alias.weights):
                return alias.alias.removesuffix("@prod")
        self.wish("proven")
        assert self.ended("proven").job.state == tr.JOB_STATE_SUCCEEDED
        return "proven"

    def _job_id(self, name: str) -> str | None:
        found = self.dataset(name)
        return found.wishes[-1].job if found is not None and found.wishes else None

    def ledger(self, name: str) -> Ledger:
        """What the topics hold of a dataset's publications."""
        events = [ds.PublicationEvent.FromString(m.value) for m in self.messages("datasets.publications")]
        accepted = [e.accepted for e in events if e.HasField("accepted") and e.accepted.dataset == name]
        ids = {publication.publication for publication in accepted}
        announced: dict[int, ds.SourceAnnounced] = {}
        repeated = []
        for event in events:
            if event.HasField("announced") and event.announced.publication in ids:
                told = announced.setdefault(event.announced.source, event.announced)
                repeated += [event.announced] if event.announced != told else []
        first: dict[tuple[int, int], ds.BatchEntry] = {}
        others = []
        for message in self.messages("records.formatted"):
            entry = ds.BatchEntry.FromString(message.value)
            if entry.publication in ids:
                known = first.setdefault((entry.source, entry.first), entry)
                others += [entry] if entry != known else []
        return Ledger([(p.publication, p.attempt) for p in accepted], announced, repeated, first, others)

    def notices(self, topic: str, key: str) -> int:
        """How many notices a topic has of ``key``."""
        return sum(message.key == key.encode() for message in self.messages(topic))

    def events(self, run: str) -> list[tr.TrainingEvent]:
        """A run's events in log order."""
        found = [tr.TrainingEvent.FromString(m.value) for m in self.messages("training.events")]
        return [event for event in found if event.run == run]

    def say(self, model: str, question: str = QUESTION, *, timeout_s: float = _CHAT_S) -> str:
        """One short chat over the gateway, by no client library, so that nothing is tried twice.

        Raises:
            OSError: it failed.
        """
        body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0}
        request = urllib.request.Request(
            f"{self.services.gateway_url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.services.api_key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            content: str = json.load(answer)["choices"][0]["message"]["content"]
        return content

    @contextmanager
    def chatting(self, model: str, *, a_second: float = 5.0, clients: int = 4) -> Iterator[Chats]:
        """Chats in the background; every one counts."""
        with chats_of(
            lambda: self.say(model), failing=(OSError,), a_second=a_second, clients=clients, last_s=_CHAT_S
        ) as chats:
            yield chats

    def plant_model(self, name: str, fill: float) -> str:
        """Has training's state say that a run ended in the model of dataset ``name`` with ``fill`` in its adapter,
        and that a job wishes to see it under that model's alias; the planted model's name.

        No trainer would export such weights, so the test takes training's place as the writer of its state.
        """
        found = self.ended(name)
        run, job = tr.RunSnapshot(), tr.JobSnapshot()
        run.CopyFrom(found.run)
        job.CopyFrom(found.job)
        run.run, job.job = identity("planted", found.run.run), "ftjob-planted"
        run.export.CopyFrom(self._spoilt(found.run.export, fill))
        del run.jobs[:]
        run.jobs.append(job.job)
        job.run, job.state = run.run, tr.JOB_STATE_RUNNING
        job.model = model_name(run.base_model, run.owner, name, run.export.digest)
        job.ClearField("finished_at")
        for stamp in (job.created_at, job.opened_at, job.wished_at):
            stamp.GetCurrentTime()
        with closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=self.bootstrap))) as broker:
            writer = StateWriter(broker, TRAINING_STATE, tr.TrainingRecord, SystemClock(), source="test")
            writer.open()
            records_ = {f"run/{run.run}": tr.TrainingRecord(run=run), f"job/{job.job}": tr.TrainingRecord(job=job)}
            writer.put_all(records_)
            writer.close()
        # Its next life reads what was planted, and goes on as the writer.
        self.kill("training")
        return job.model

    def _spoilt(self, export: tr.Export, fill: float) -> tr.Export:
        """A copy of an export in the object store, whole and true to its manifest, but for the adapter's values."""
        import torch
        from safetensors.torch import load, save

        blobs = BlobStore.open(f"file://{self.settings.root / 'blobs'}")
        manifest = json.loads(blobs.get(export.manifest))
        files = {file: blobs.get(f"{export.prefix}/{file}") for file in manifest["files"]}
        weights = "adapter/adapter_model.safetensors"
        tensors = {key: torch.full_like(value, fill) for key, value in load(files[weights]).items()}
        files[weights] = save(tensors, metadata={"format": "pt"})
        entries = {file: {"bytes": len(data), "sha256": sha256_hex(data)} for file, data in files.items()}
        digest = sha256_hex(canonical_json({file: entry["sha256"] for file, entry in entries.items()}))
        prefix = f"models/{digest}"
        text = json.dumps({**manifest, "files": entries, "digest": digest, "name": digest[:12]}).encode()
        for file, data in files.items():
            blobs.put(f"{prefix}/{file}", data)
        blobs.put(f"{prefix}/export.manifest.json", text)
        spoilt = tr.Export()
        spoilt.CopyFrom(export)
        spoilt.prefix, spoilt.digest = prefix, digest
        spoilt.manifest, spoilt.manifest_sha256 = f"{prefix}/export.manifest.json", sha256_hex(text)
        return spoilt

    def ended_model(self, name: str) -> sv.ModelSnapshot | None:
        """A model once it is served or refused; None before."""
        ended = (sv.MODEL_STATE_SERVED, sv.MODEL_STATE_REFUSED)
        return next((m for m in self.models().models if m.name == name and m.state in ended), None)

    def write_source(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """A JSONL file below the declared roots; its name there."""
        (self.sources / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name


def by_attempt(events: Sequence[tr.TrainingEvent]) -> dict[int, list[tr.TrainingEvent]]:
    """Events of a run by attempt, doubles left out, in log order."""
    seen: set[tuple[int, int]] = set()
    found: dict[int, list[tr.TrainingEvent]] = defaultdict(list)
    for event in events:
        if (event.attempt, event.seq) not in seen:
            seen.add((event.attempt, event.seq))
            found[event.attempt].append(event)
    return dict(found)


def steps_of(events: Sequence[tr.TrainingEvent]) -> list[int]:
    """Numbers of the optimiser steps that events tell of, in their order."""
    return [json.loads(event.payload_json)["step"] for event in events if event.type == "step"]
