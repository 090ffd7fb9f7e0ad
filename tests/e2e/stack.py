"""A whole stack for tests: real broker, real services, real model, in a folder and on ports of its own."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import openai
from kafka import (  # type: ignore[attr-defined] # its names are lazy
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    TopicPartition,
)
from kafka.admin import OffsetSpec
from kafka.errors import CoordinatorLoadInProgressError
from tests.polling import until
from typer.testing import CliRunner

from shortstack.cli.connection import Connection
from shortstack.cli.main import app
from shortstack.core.errors import NotFound
from shortstack.core.grpc import error_from_rpc
from shortstack.core.identity import DEFAULT_OWNER
from shortstack.ingestion.v1 import ingestion_pb2 as ing
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.v1 import serving_pb2 as srv
from shortstack.training.v1 import training_pb2 as trn

__all__ = ["ALIASES", "BASE", "DATASET_ENDED", "JOB_ENDED", "Stack", "free_base", "holds"]

BASE: Final = "smollm2-135m-instruct"
ALIASES: Final = {"gpt-4o-mini": BASE}
DATASET_ENDED: Final = frozenset(
    {ds.DATASET_STATE_READY, ds.DATASET_STATE_HELD, ds.DATASET_STATE_FAILED, ds.DATASET_STATE_DELETED}
)
JOB_ENDED: Final = frozenset({tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED})

# A machine that is busy otherwise is several times slower; a deadline is there to end a test that would hang.
SOON_S: Final = 120.0
_COMMAND_S: Final = 240.0
_LOG_LINES: Final = 25

T = TypeVar("T")


def free_base() -> int:
    """A port base of which the whole hundred seems free."""
    for _ in range(50):
        base = random.randrange(20_100, 32_000, 100)
        try:
            for offset in (10, 11, 20, 30, 40, 50, 71, 80, 92, 93):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise AssertionError("no hundred free ports found")


def holds(answer: str, words: Sequence[str]) -> bool:
    """Whether one of ``words`` stands in ``answer`` as a whole word, without regard to case."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


class Stack:
    """One local stack and everything a user may reach it by.

    Args:
        var: its folder; models and the broker's jars are linked from ``checkout_var``.
        roots: folders that publications may read from, beside the uploads.
    """

    def __init__(self, var: Path, checkout_var: Path, roots: Sequence[Path]) -> None:
        (var / "kafka").mkdir(parents=True, exist_ok=True)
        for name in ("models", "kafka/libs", "kafka/archive"):
            if (checkout_var / name).exists() and not (var / name).exists():
                (var / name).symlink_to((checkout_var / name).resolve())
        base = free_base()
        # The stack as it is by default, whatever the shell that runs the tests has set.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("SHORTSTACK_")}
        java = os.environ.get("SHORTSTACK_JAVA")
        self.environment = ours | ({"SHORTSTACK_JAVA": java} if java else {})
        self.environment |= {
            "SHORTSTACK_VAR": str(var),
            "SHORTSTACK_PORT_BASE": str(base),
            "SHORTSTACK_SOURCE_ROOTS": os.pathsep.join(map(str, [*roots, var / "uploads"])),
            "SHORTSTACK_MODEL_ALIASES": json.dumps(ALIASES),
            "SHORTSTACK_START_DEADLINE_S": "240",
        }
        self.settings = LocalSettings(
            var=var,
            port_base=base,
            gateway_port=None,
            kafka_bootstrap=None,
            kafka_libs=None,
            java=java,
            storage_url=None,
            base_models=None,
        )
        self.services = Connection(self.settings, DEFAULT_OWNER)

    # Running it.

    def up(self) -> None:
        """Starts everything and returns when all is ready."""
        self.command("up")

    def down(self) -> None:
        """Stops everything; data stays."""
        self.command("down")

    def command(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs ``shortstack ARGUMENTS`` as a process and checks its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "shortstack.cli.main", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        said = f"shortstack {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.returncode == expect, said
        return done

    def listed(self, *arguments: str) -> Any:
        """What a command prints with ``--json``; in this process, since starting one takes seconds."""
        said = CliRunner().invoke(app, [*arguments, "--json"], env=dict(self.environment))
        assert said.exit_code == 0, f"shortstack {' '.join(arguments)} exited {said.exit_code}:\n{said.output}"
        return json.loads(said.stdout)

    def logs(self) -> dict[str, str]:
        """The last lines of each process's log."""
        found = sorted(self.settings.log_folder.glob("*.log"))
        return {log.stem: "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]) for log in found}

    # Kafka, as any program may use it.

    @property
    def bootstrap(self) -> str:
        """Address of the broker."""
        return self.settings.bootstrap

    def publish(self, message: bytes | dict[str, Any], key: str) -> tuple[int, int]:
        """Puts one message on ``datasets.ingest`` with plain kafka-python; its partition and offset."""
        value = message if isinstance(message, bytes) else json.dumps(message).encode()
        with closing(KafkaProducer(bootstrap_servers=self.bootstrap, acks="all")) as producer:
            sent = producer.send("datasets.ingest", key=key.encode(), value=value).get(timeout=60)
        return sent.partition, sent.offset

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, group_id=None, enable_auto_commit=False)
        with closing(consumer):
            yield consumer

    @staticmethod
    def _partitions(consumer: Any, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]

    def messages(self, topic: str) -> list[Any]:
        """Everything that stands on a topic."""
        with self._reader() as consumer:
            partitions = self._partitions(consumer, topic)
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            ends = consumer.end_offsets(partitions)
            found: list[Any] = []
            deadline = time.monotonic() + SOON_S
            while any(consumer.position(partition) < ends[partition] for partition in partitions):
                assert time.monotonic() < deadline, f"{topic} could not be read to its end"
                for records in consumer.poll(timeout_ms=500).values():
                    found.extend(records)
        return found

    def ends(self, *topics: str) -> dict[str, int]:
        """How many messages each topic has ever had."""
        with self._reader() as consumer:
            return {t: sum(consumer.end_offsets(self._partitions(consumer, t)).values()) for t in topics}

    def groups(self) -> dict[str, dict[TopicPartition, int]]:
        """Consumer groups and the offsets that they committed."""
        with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            return self._committed(admin)

    @staticmethod
    def _committed(admin: Any) -> dict[str, dict[TopicPartition, int]]:
        names: list[str] = []

        def listed() -> bool:
            try:
                names[:] = sorted(group["group_id"] for group in admin.list_groups())
            except CoordinatorLoadInProgressError:
                return False  # a broker that has just started
            return True

        until(listed, "the broker to know its groups", every_s=0.25)
        found = admin.list_group_offsets(names) if names else {}
        return {name: {p: told.offset for p, told in offsets.items()} for name, offsets in found.items()}

    def lag(self) -> dict[str, int]:
        """Messages that each group has not committed, of the partitions that it ever committed."""
        with self._reader() as consumer:
            return {
                group: sum(consumer.end_offsets(list(offsets)).values()) - sum(offsets.values())
                for group, offsets in self.groups().items()
                if offsets
            }

    @contextmanager
    def broker_alone(self) -> Iterator[None]:
        """The broker without any service, while the stack is down."""
        with LocalBroker(BrokerConfig.of(self.settings)):
            yield

    def reset_groups(self) -> list[str]:
        """Sets every group back to the beginning of all that it has committed; the groups' names."""
        with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            groups = {name: offsets for name, offsets in self._committed(admin).items() if offsets}
            for name, offsets in groups.items():
                admin.reset_group_offsets(name, dict.fromkeys(offsets, OffsetSpec.EARLIEST))
        return sorted(groups)

    # The services' own words.

    def datasets(self) -> list[ds.DatasetSnapshot]:
        """The newest publication of every dataset."""
        request = ing.ListDatasetsRequest(owner=DEFAULT_OWNER)
        return list(self.services.ingestion.ListDatasets(request, timeout=60).datasets)

    def dataset(self, name: str) -> ds.DatasetSnapshot | None:
        """The newest publication of a dataset."""
        return next((d for d in self.datasets() if d.publication.dataset == name), None)

    def jobs(self) -> dict[str, trn.GetRunResponse]:
        """Every job with its run."""
        answer = self.services.training.ListRuns(trn.ListRunsRequest(owner=DEFAULT_OWNER, limit=1000), timeout=60)
        return {found.job.job: found for found in answer.runs}

    def models(self) -> srv.ListModelsResponse:
        """Models and aliases."""
        return self.services.serving.ListModels(srv.ListModelsRequest(owner=DEFAULT_OWNER), timeout=60)

    def model(self, name: str) -> sv.ModelSnapshot:
        """A model by its name."""
        return next(model for model in self.models().models if model.name == name)

    def refusal(self, message: dict[str, Any]) -> str:
        """What the publishing call says of a message that it refuses."""
        import grpc

        request = ing.PublishDatasetRequest(owner=DEFAULT_OWNER, request_json=json.dumps(message).encode())
        try:
            self.services.ingestion.PublishDataset(request, timeout=60)
        except grpc.RpcError as error:
            return str(error_from_rpc(error))
        raise AssertionError(f"it was accepted: {message}")

    def client(self) -> openai.OpenAI:
        """The official client, told no more than a base URL and a key."""
        return openai.OpenAI(base_url=f"{self.services.gateway_url}/v1", api_key=self.services.api_key, max_retries=2)

    def ask(self, model: str, question: str, **more: Any) -> str:
        """One greedy answer to one question."""
        with self.client() as client:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=40, **more
            )
        return answer.choices[0].message.content or ""

    # Waiting.

    def until(
        self, look: Callable[[], T | None], *, within_s: float = SOON_S, what: Callable[[], object] = lambda: ""
    ) -> T:
        """The first thing that ``look`` finds; fails after ``within_s`` with what ``what`` then says."""
        found = until(look, what, deadline_s=within_s, every_s=0.25)
        assert found is not None
        return found

    def ended_dataset(self, name: str, *, publication: str = "", within_s: float = SOON_S) -> ds.DatasetSnapshot:
        """The dataset once it is ready, held, failed or deleted."""

        def look() -> ds.DatasetSnapshot | None:
            found = self.dataset(name)
            return found if found is not None and found.state in DATASET_ENDED else None

        return self.until(look, within_s=within_s, what=lambda: self.dataset(name))

    def ended_job(self, job: str, *, within_s: float) -> trn.GetRunResponse:
        """A job and its run once it has ended."""

        def look() -> trn.GetRunResponse | None:
            found = self.jobs().get(job)
            return found if found is not None and found.job.state in JOB_ENDED else None

        return self.until(look, within_s=within_s, what=lambda: self.jobs().get(job))

    def settled_models(self) -> None:
        """Waits until the base model is served: the first thing that a chat needs."""
        served = sv.MODEL_STATE_SERVED
        self.until(lambda: any(m.name == BASE and m.state == served for m in self.models().models) or None)

    def job_of(self, name: str) -> str:
        """Id of the job that a dataset's newest publication asked for first."""
        found = self.dataset(name)
        if found is None or not found.wishes:
            raise NotFound(f"no job of dataset {name}")
        return found.wishes[0].job
