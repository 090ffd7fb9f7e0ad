"""The serving service as a process, killed between a rollout and its event: one model, told once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tests.integration.serving.conftest import BASE, Fine
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.messages.v1.state_pb2 import StateEnvelope
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.state import StateReader, StateWriter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
DEADLINE_S = 60


@pytest.fixture
def start(tmp_path: Path, server: str, tiny_base: Path, kafka_bootstrap: str) -> Iterator[Callable[..., Any]]:
    """Starts the service, with a failpoint or without."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "SHORTSTACK_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "SHORTSTACK_STORAGE_URL": f"file://{tmp_path / 'blobs'}",
        "SHORTSTACK_VAR": str(tmp_path),
        "SHORTSTACK_INFERENCE_URL": server,
        "SHORTSTACK_BASE_MODELS": json.dumps({BASE: str(tiny_base)}),
    }

    def run(failpoint: str = "") -> subprocess.Popen[bytes]:
        with (tmp_path / f"service-{len(started)}.log").open("wb") as log:
            command = [sys.executable, "-m", "shortstack.serving.main"]
            environ = {**environment, "SHORTSTACK_FAILPOINT": failpoint}
            started.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_killed_between_rollout_and_event_it_serves_the_model_once(
    start: Callable[..., Any], fine_tune: Callable[..., Fine], kafka_bootstrap: str, tmp_path: Path
) -> None:
    config = ServiceConfig(kafka_bootstrap=kafka_bootstrap)
    with ExitStack() as stack:
        broker = stack.enter_context(closing(KafkaBroker.connect(config)))
        broker.apply(topics.TOPICS.values())
        export = fine_tune(1).put(BlobStore.open(f"file://{tmp_path / 'blobs'}"))
        name = f"ft:{BASE}:default:demo:{export.digest[:12]}"
        writer = StateWriter(broker, topics.TRAINING_STATE, tr.TrainingRecord, SystemClock())
        writer.open()
        stack.callback(writer.close)
        run = tr.RunSnapshot(run="run-serving", state=tr.RUN_STATE_SUCCEEDED, export=export, base_model=BASE)
        job = tr.JobSnapshot(job="ftjob-serving", owner="default", run=run.run, model=name)
        job.state, job.request_json = tr.JOB_STATE_RUNNING, '{"train":{},"deploy":{"alias":"tiny@prod"}}'
        job.opened_at.GetCurrentTime()
        records = {f"run/{run.run}": tr.TrainingRecord(run=run), f"job/{job.job}": tr.TrainingRecord(job=job)}
        writer.put_all(records)
        models = StateReader(broker, topics.MODELS_STATE, sv.ModelRecord)
        models.start()
        stack.callback(models.stop, 5.0)

        assert start("serving.after_rollout").wait(DEADLINE_S) == -signal.SIGKILL
        service = start()
        until(lambda: (found := models.get("alias/tiny@prod")) and found.alias.weights[0].model == name, "the alias")
        record = models.get(f"model/{name}")
        assert record is not None
        assert record.model.state == sv.MODEL_STATE_SERVED
        service.send_signal(signal.SIGTERM)
        assert service.wait(DEADLINE_S) == 0

        reader = broker.reader([topics.MODELS_STATE.name])
        states: list[int] = []
        while not reader.caught_up():
            for delivery in reader.poll(0.2):
                if delivery.key == f"model/{name}".encode():
                    payload = StateEnvelope.FromString(delivery.value or b"").payload
                    states.append(sv.ModelRecord.FromString(payload).model.state)
        assert states.count(sv.MODEL_STATE_SERVED) == 1
