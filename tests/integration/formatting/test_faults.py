"""Both services as processes on a real broker, killed with -9 at each step: the ledger tiles, nothing stands twice."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
from tests.polling import until
from tests.s3 import S3Server

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.failpoints import FAILPOINT_VARIABLE
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings
from shortstack.messages.v1.dataset_pb2 import BatchEntry, Publication, PublicationEvent, SourceAnnounced
from shortstack.records.schema import SEGMENT_SCHEMA, read_table
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Delivery
from shortstack.streams.envelope import outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import DATASETS_INGEST, TOPICS

DEADLINE_S = 60.0
RECORDS = 9000


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class World:
    """A broker, an object store, and services that come and go."""

    broker: KafkaBroker
    folder: Path
    bootstrap: str
    storage: Mapping[str, str]

    @property
    def blobs(self) -> BlobStore:
        return BlobStore.open(self.storage["SHORTSTACK_STORAGE_URL"])

    @contextmanager
    def service(self, name: str, failpoint: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a service in a process; kills it if it still runs at the end."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SHORTSTACK_")} | {
            "SHORTSTACK_KAFKA_BOOTSTRAP": self.bootstrap,
            **self.storage,
            "SHORTSTACK_VAR": str(self.folder / "var"),
            "SHORTSTACK_SOURCE_ROOTS": str(self.folder / "sources"),
        }
        if failpoint is not None:
            environment[FAILPOINT_VARIABLE] = failpoint
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"shortstack.{name}.main"], env=environment, stderr=log, stdout=log
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def publish(self, dataset: str) -> None:
        """Publishes a file of `RECORDS` pairs, each a little different."""
        sources = self.folder / "sources"
        sources.mkdir(exist_ok=True)
        lines = (
            orjson.dumps({"prompt": f"{dataset}: what is {n}?", "completion": f"It is {n}. " + "x" * 200})
            for n in range(RECORDS)
        )
        (sources / f"{dataset}.jsonl").write_bytes(b"\n".join(lines))
        producer = self.broker.producer()
        value = orjson.dumps({"dataset": dataset, "source": f"{dataset}.jsonl"})
        producer.send(outbound(DATASETS_INGEST, dataset, value, type="test", source="test", clock=SystemClock()))
        producer.close(30)

    def messages(self, topic: str) -> list[Delivery]:
        """Everything on a topic."""
        with closing(self.broker.reader([topic])) as reader:
            found: list[Delivery] = []
            while not reader.caught_up():
                found += reader.poll(0.2)
            return found

    def ledger(self, dataset: str) -> tuple[list[Publication], list[SourceAnnounced], list[BatchEntry]]:
        """Acceptances and announcements of a dataset, and all its entries in log order."""
        events = [PublicationEvent.FromString(m.value or b"") for m in self.messages("datasets.publications")]
        accepted = [e.accepted for e in events if e.HasField("accepted") and e.accepted.dataset == dataset]
        ids = {publication.publication for publication in accepted}
        announced = [e.announced for e in events if e.HasField("announced") and e.announced.publication in ids]
        entries = [BatchEntry.FromString(m.value or b"") for m in self.messages("records.formatted")]
        return accepted, announced, [entry for entry in entries if entry.publication in ids]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(
            condition,
            lambda: f"{what}; {self.log('ingestion')} {self.log('formatting')}",
            deadline_s=DEADLINE_S,
            every_s=0.2,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[World]:
    """A world on a folder."""
    folder = tmp_path_factory.mktemp("faults")
    with running_world(folder, repository, {"SHORTSTACK_STORAGE_URL": f"file://{folder}/blobs"}) as made:
        yield made


@contextmanager
def running_world(folder: Path, repository: Path, storage: Mapping[str, str]) -> Iterator[World]:
    """A broker with its topics; the jars are those of the checkout."""
    libs = Path(os.environ.get("SHORTSTACK_VAR", repository / "var")) / "kafka" / "libs"
    settings = LocalSettings(var=folder / "var", kafka_libs=libs, kafka_bootstrap=None)
    config = replace(BrokerConfig.of(settings), port=free_port(), controller_port=free_port())
    with (
        LocalBroker(config) as local,
        closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=local.bootstrap))) as one,
    ):
        one.apply(TOPICS.values())
        yield World(one, folder, local.bootstrap, storage)


def first_entries(entries: list[BatchEntry]) -> dict[int, BatchEntry]:
    """First record → the first entry of its batch in log order."""
    first: dict[int, BatchEntry] = {}
    for entry in entries:
        first.setdefault(entry.first, entry)
    return first


def tiles(world: World, dataset: str) -> bool:
    _, announced, entries = world.ledger(dataset)
    first, at = first_entries(entries), 0
    while at in first:
        at += first[at].count
    return bool(announced) and at == announced[0].records == RECORDS


def killed(world: World, process: subprocess.Popen[bytes], failpoint: str) -> None:
    """Waits until a process has run into its failpoint."""
    world.until(lambda: process.poll() is not None, f"death at {failpoint}")
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("ingestion", "formatting"),
    [
        ("ingestion.mid_batches:2", "formatting.before_flush:3"),
        ("ingestion.before_announce", "worker.flushed"),
        (None, "worker.committed"),
    ],
)
def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing(
    world: World, ingestion: str | None, formatting: str
) -> None:
    """Each service runs into its failpoint, dies, and is started again."""
    dataset = formatting.replace(":", "-").replace("_", "-")
    world.publish(dataset)
    with world.service("formatting", formatting) as formatter:
        if ingestion is not None:
            with world.service("ingestion", ingestion) as ingester:
                killed(world, ingester, ingestion)
        with world.service("ingestion"):
            killed(world, formatter, formatting)
            with world.service("formatting"):
                world.until(lambda: tiles(world, dataset), f"the ledger of {dataset} tiles")
    accepted, announced, entries = world.ledger(dataset)
    assert {publication.attempt for publication in accepted} == {1}
    assert len({publication.publication for publication in accepted}) == 1
    assert len({source.SerializeToString(deterministic=True) for source in announced}) == 1
    seen: set[int] = set()
    for entry in first_entries(entries).values():
        data = world.blobs.get(entry.segment)
        assert hashlib.sha256(data).hexdigest() == entry.sha256
        rows = read_table(data, SEGMENT_SCHEMA).column("seq").to_pylist()
        assert not seen & set(rows)
        seen |= set(rows)
    assert seen == set(range(RECORDS))
    # Whatever came twice came the same: an entry names bytes, and bytes of one batch are one.
    assert len({(entry.first, entry.sha256) for entry in entries}) == len(first_entries(entries))


def test_two_services_share_an_object_store_over_the_network(tmp_path: Path, repository: Path) -> None:
    """The way from a file to the last ledger entry, with every object in S3, and a kill on the way."""
    with S3Server(tmp_path / "s3.log") as s3:
        s3.make_bucket("stack")
        storage = {**s3.environment, "SHORTSTACK_STORAGE_URL": "s3://stack/objects"}
        with running_world(tmp_path, repository, storage) as world:
            world.publish("remote")
            with world.service("ingestion"), world.service("formatting", "formatting.before_flush:3") as formatter:
                killed(world, formatter, "formatting.before_flush:3")
                with world.service("formatting"):
                    world.until(lambda: tiles(world, "remote"), "the ledger is whole")
            _, _, entries = world.ledger("remote")
            listed = s3.client().list_objects_v2(Bucket="stack")["Contents"]
            assert {f"objects/{entry.segment}" for entry in entries} <= {one["Key"] for one in listed}
            assert not list(tmp_path.glob("**/segments"))
