"""Run in the toolbox: has training's state say that a run ended in a model of NaN, which is wished under an alias.

No trainer would export such weights, so this takes training's place as the writer of its state; the training pod is
restarted afterwards, and goes on as the writer. Argument: the dataset whose model is spoilt. Prints the model's name.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.digest import canonical_json, file_sha256, identity, sha256_hex
from shortstack.core.identity import model_name
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.storage.blobs import BlobStore
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.state import StateWriter
from shortstack.streams.topics import TRAINING_STATE

PIECE = 1 << 20


def spoilt(blobs: BlobStore, export: tr.Export, folder: Path) -> tr.Export:
    """A copy of an export, whole and true to its manifest, with every weight a NaN. The toolbox has little memory, so
    files go by way of ``folder``, in pieces."""
    manifest = json.loads(blobs.get(export.manifest))
    entries = {}
    for file in manifest["files"]:
        local = folder / file
        local.parent.mkdir(parents=True, exist_ok=True)
        with blobs.stream(f"{export.prefix}/{file}") as source, local.open("wb") as target:
            if file.endswith(".safetensors"):
                # Eight bytes of the header's length, the header, the tensors; all bits set is a NaN in every float.
                start = source.read(8)
                target.write(start + source.read(int.from_bytes(start, "little")))
                while piece := source.read(PIECE):
                    target.write(b"\xff" * len(piece))
            else:
                shutil.copyfileobj(source, target, PIECE)
        entries[file] = {"bytes": local.stat().st_size, "sha256": file_sha256(local)}
    digest = sha256_hex(canonical_json({file: entry["sha256"] for file, entry in entries.items()}))
    prefix = f"models/{digest}"
    text = json.dumps({**manifest, "files": entries, "digest": digest, "name": digest[:12]}).encode()
    for file in entries:
        blobs.put_file(f"{prefix}/{file}", folder / file)
    blobs.put(f"{prefix}/export.manifest.json", text)
    planted = tr.Export()
    planted.CopyFrom(export)
    planted.prefix, planted.digest = prefix, digest
    planted.manifest, planted.manifest_sha256 = f"{prefix}/export.manifest.json", sha256_hex(text)
    return planted


def main(dataset: str) -> None:
    """Writes the run and the job."""
    config = ServiceConfig()
    blobs = BlobStore.open(config.storage_url)
    with closing(KafkaBroker.connect(config)) as broker:
        writer = StateWriter(broker, TRAINING_STATE, tr.TrainingRecord, SystemClock(), source="test")
        known = writer.open()
        served = [r.job for r in known.values() if r.job.dataset == dataset and r.job.state == tr.JOB_STATE_SUCCEEDED]
        newest = max(served, key=lambda job: job.opened_at.ToNanoseconds())
        run, job = tr.RunSnapshot(), tr.JobSnapshot()
        run.CopyFrom(known[f"run/{newest.run}"].run)
        job.CopyFrom(newest)
        run.run, job.job = identity("planted", run.run), "ftjob-planted"
        with tempfile.TemporaryDirectory() as folder:
            run.export.CopyFrom(spoilt(blobs, run.export, Path(folder)))
        del run.jobs[:]
        run.jobs.append(job.job)
        job.run, job.state = run.run, tr.JOB_STATE_RUNNING
        job.model = model_name(run.base_model, run.owner, dataset, run.export.digest)
        job.ClearField("finished_at")
        for stamp in (job.created_at, job.opened_at, job.wished_at):
            stamp.GetCurrentTime()
        writer.put_all({f"run/{run.run}": tr.TrainingRecord(run=run), f"job/{job.job}": tr.TrainingRecord(job=job)})
        writer.close()
    sys.stdout.write(f"{job.model}\n")


if __name__ == "__main__":
    main(sys.argv[1])
