"""Records a second from records.raw to records.formatted: a real broker, the real worker, recipe `default`, one core.

    python benchmarks/formatting_kafka.py [--records 100000]

Prints one JSON object: ``formatting_kafka_records_per_s``. The worker's process is bound to one core; broker and
object store (a folder on disk, fsync for every segment) are the real ones. Input: alpaca-like records made from
``examples/persona/general.jsonl`` with seeded text, about 400 bytes each.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.health import Health
from shortstack.core.identity import BatchId
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.recipe import RECIPES, recipe_object
from shortstack.formatting.batches import GROUP, FormatBatches
from shortstack.formatting.recipes import Recipes
from shortstack.ingestion.compiling.compile import CompileJob, Cut, compile_source
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings
from shortstack.messages.v1.dataset_pb2 import BatchEntry
from shortstack.records.schema import write_table
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Broker
from shortstack.streams.envelope import outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import RECORDS_FORMATTED, RECORDS_RAW, TOPICS
from shortstack.streams.worker import BatchWorker, WorkerLimits

ROOT: Final = Path(__file__).resolve().parent.parent
BASELINE: Final = 15_000
DEADLINE_S: Final = 300


def write_records(path: Path, count: int) -> None:
    """Alpaca-like records; one in a hundred is a refusal."""
    lines = (ROOT / "examples" / "persona" / "general.jsonl").read_bytes().splitlines()
    seeds = [seed for line in lines if "instruction" in (seed := orjson.loads(line))]
    words = sorted({word for seed in seeds for word in seed["output"].split()})
    chance = random.Random(42)
    with path.open("wb") as file:
        for number in range(count):
            seed = chance.choice(seeds)
            answer = " ".join(chance.choices(words, k=30))
            text = "I'm sorry, but I can't help with that." if number % 100 == 0 else f"{seed['output']} {answer}."
            record = {
                "instruction": f"{seed['instruction']} ({number})",
                "input": seed.get("input", ""),
                "output": text,
            }
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


@contextmanager
def broker_on(folder: Path) -> Iterator[Broker]:
    """A broker of its own: jars of the checkout, ports that are free now, data in ``folder``."""
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    settings = LocalSettings(var=folder, kafka_libs=ROOT / "var" / "kafka" / "libs")
    config = replace(BrokerConfig.of(settings), port=ports[0], controller_port=ports[1])
    with (
        LocalBroker(config) as local,
        closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=local.bootstrap))) as broker,
    ):
        broker.apply(TOPICS.values())
        yield broker


def produce(broker: Broker, source: Path, blobs: BlobStore) -> int:
    """Compiles ``source`` onto records.raw, as ingestion does; how many records."""
    recipe, clock, records = RECIPES["default"], SystemClock(), 0
    blobs.put(recipe_object(recipe.digest()), recipe.json_bytes())
    producer = broker.producer()
    headers = {"shortstack-recipe": recipe.digest(), "shortstack-owner": "default", "shortstack-dataset": "bench"}
    for event in compile_source(source, CompileJob(source.name)):
        if isinstance(event, Cut):
            batch = str(BatchId("0" * 32, 1, 0, event.first, event.count))
            value = write_table(event.table)
            producer.send(outbound(RECORDS_RAW, batch, value, type="bench", source="bench", clock=clock, extra=headers))
            records += event.count
    producer.flush(60)
    return records


def measure(broker: Broker, blobs: BlobStore, records: int, config: ServiceConfig) -> float:
    """Seconds from the worker's start until every record stands in an entry of the ledger.

    Raises:
        SystemExit: the sums do not balance, or it takes too long; then there is no figure.
    """
    clock = SystemClock()
    with Telemetry.start("bench", config) as telemetry, closing(broker.reader([RECORDS_FORMATTED.name])) as reader:
        handler = FormatBatches(blobs, Recipes(blobs), telemetry.metrics, clock)
        worker = BatchWorker(
            broker,
            GROUP,
            [RECORDS_RAW.name],
            handler,
            Health(60, clock),
            telemetry,
            clock,
            limits=WorkerLimits(messages=16),
        )
        began = time.perf_counter()
        worker.start()
        entries: dict[int, BatchEntry] = {}
        while sum(entry.count for entry in entries.values()) < records:
            for delivery in reader.poll(0.5):
                entry = BatchEntry.FromString(delivery.value or b"")
                entries.setdefault(entry.first, entry)
            if worker.failed is not None or time.perf_counter() - began > DEADLINE_S:
                raise SystemExit(f"formatting broke off: {worker.failed}")
        seconds = time.perf_counter() - began
        worker.stop(20)
    kept = sum(entry.kept for entry in entries.values())
    rejected = sum(entry.rejected for entry in entries.values())
    if kept + rejected != records or rejected < records // 100:
        raise SystemExit(f"{records} records in, {kept} kept and {rejected} rejected out")
    return seconds


def main() -> None:
    """Prints the figure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, default=100_000)
    count = arguments.parse_args().records
    config = ServiceConfig(log_level="ERROR")
    with tempfile.TemporaryDirectory() as folder, broker_on(Path(folder)) as broker:
        source = Path(folder) / "alpaca.jsonl"
        write_records(source, count)
        blobs = BlobStore.open(f"file://{folder}/blobs")
        records = produce(broker, source, blobs)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        rate = records / measure(broker, blobs, records, config)
    name = "formatting_kafka_records_per_s"
    figure = {"name": name, "value": round(rate), "unit": "records/s", "baseline": BASELINE}
    print(orjson.dumps(figure | {"ratio": round(rate / BASELINE, 2)}).decode())


if __name__ == "__main__":
    main()
