"""The training service as a process: killed and started again it adopts what runs; ended, it leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import orjson
import pytest
from tests.integration.training.conftest import MANIFEST, Bench, processes_of, until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.state import StateReader, StateWriter

Start = Callable[[], "subprocess.Popen[bytes]"]


# Real trainers: each start imports torch, which takes a busy machine a while.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def start(bench: Bench) -> Iterator[Start]:
    """Starts the service on the bench."""
    started: list[subprocess.Popen[bytes]] = []

    def run() -> subprocess.Popen[bytes]:
        with (bench.folder / f"service-{len(started)}.log").open("wb") as log:
            command = [sys.executable, "-m", "shortstack.training.main"]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_service_that_was_killed_adopts_the_attempt_and_then_ends_everything(
    own_bootstrap: str, bench: Bench, start: Start
) -> None:
    assert bench.bootstrap == own_bootstrap  # the only writer of its training.state
    job = f"ftjob-{bench.run}"
    config, clock = ServiceConfig(kafka_bootstrap=bench.bootstrap), SystemClock()
    with ExitStack() as stack:
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        writer = StateWriter(broker, topics.DATASETS_STATE, ds.DatasetSnapshot, clock)
        writer.open()
        stack.callback(writer.close)
        reader = StateReader(broker, topics.TRAINING_STATE, tr.TrainingRecord)
        reader.start()
        stack.callback(reader.stop, 5.0)

        def ready(job: str, train: dict[str, object]) -> None:
            publication = ds.Publication(publication=f"pub-{job}", attempt=1, owner="default", dataset="tiny")
            counts = ds.DatasetCounts(records=24, written=24, train=20, validation=4)
            snapshot = ds.DatasetSnapshot(
                publication=publication,
                state=ds.DATASET_STATE_READY,
                counts=counts,
                version="v1",
                manifest=MANIFEST,
            )
            wish = snapshot.wishes.add(job=job, train_json=orjson.dumps(train).decode())
            wish.requested_at.FromDatetime(clock.now().replace(tzinfo=None))
            writer.put(publication.publication, snapshot)

        def run_of(job: str) -> tr.RunSnapshot | None:
            record = reader.get(f"job/{job}")
            found = reader.get(f"run/{record.job.run}") if record is not None else None
            return found.run if found is not None else None

        def state_of(job: str) -> int:
            record = reader.get(f"job/{job}")
            return record.job.state if record is not None else 0

        # Many steps of a tiny model: it must still be at them when it has been seen to be, and its service is gone.
        ready(job, {"micro_batch_size": 4, "lora_r": 4, "max_steps": 800, "save_steps": 400, "seed": os.getpid()})
        service = start()
        run = until(lambda: (found := run_of(job)) and found.step > 1 and found, "the first steps")
        (agent,) = processes_of(bench.runs / run.run / "attempt-1.order.json")
        service.kill()
        service.wait()
        service = start()
        until(lambda: state_of(job) == tr.JOB_STATE_SUCCEEDED, "success after a restart")
        finished = run_of(job)
        assert finished is not None
        assert finished.attempt == 1
        assert sorted(p.name for p in (bench.runs / run.run).glob("*.order.json")) == ["attempt-1.order.json"]
        assert bench.blobs.exists(finished.export.manifest)
        # Gone or a zombie: its parent was killed, and who adopts it may never reap it.
        until(lambda: agent.pid not in {p.pid for p in processes_of(bench.runs)}, "the adopted agent's end")

        ready(f"{job}-2", {"micro_batch_size": 4, "lora_r": 4, "max_steps": 5000, "seed": os.getpid() + 1})
        until(lambda: (found := run_of(f"{job}-2")) and found.step > 1, "steps of the second run")
        service.send_signal(signal.SIGTERM)
        assert service.wait(40) == 0
        assert processes_of(bench.runs) == []
