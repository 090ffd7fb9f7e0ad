"""``demo``: the main job, end to end, on this machine, and what ``make run`` shows.

Starts the stack, asks some questions, publishes examples/persona with one message that carries ``train`` and
``deploy``, follows it, asks the same questions again.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import openai
import typer
from rich.table import Table
from rich.text import Text

from shortstack.cli.chat import ask, client, gateway_faults
from shortstack.cli.connection import Connection
from shortstack.cli.datasets import known_publications, state_name, watch_dataset
from shortstack.cli.output import console, errors, show
from shortstack.cli.runs import watch_job
from shortstack.core.digest import file_sha256
from shortstack.core.errors import Fatal, NotFound, Transient
from shortstack.ingestion.v1 import ingestion_pb2 as ing
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import await_end, kept_up, resident_mb
from shortstack.local.supervisor import SUPERVISOR
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.v1 import serving_pb2 as srv
from shortstack.training.v1 import training_pb2 as pb

__all__ = ["add_to"]

_EXAMPLE: Final = "persona"
_SAMPLE_S: Final = 1.0
_NEWS_S: Final = 120.0
"""What one service has done, another hears of in well under a second; on a machine that does much else, later."""
_POLL_S: Final = 0.2


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(demo)


@dataclass(slots=True)
class _PeakMemory:
    """Highest sum of the resident memory of the stack's processes and of this one, in MiB, sampled every second."""

    settings: LocalSettings
    peak_mb: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._sample, name="memory", daemon=True).start()

    def stop(self) -> float:
        self._ended.set()
        return self.peak_mb

    def _sample(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, resident_mb(self.settings))
            if self._ended.wait(_SAMPLE_S):
                return


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="Stop everything at the end, also in a terminal.")] = False,
) -> None:
    """Run the main job on this machine and show the result."""
    started = time.monotonic()
    settings = LocalSettings()
    folder = _example_folder()
    memory = _PeakMemory(settings)
    memory.start()
    with _interrupted_once(), kept_up(settings, _say) as ours:
        if not ours:
            errors().print("The stack was up already; it is left running at the end.")
        connection = Connection.open()
        with gateway_faults(connection):
            _run(connection, folder, started, memory)
        memory.stop()
        if ours and sys.stdout.isatty() and not exit_:
            console().print("Serving until Ctrl-C. In another terminal: .venv/bin/shortstack chat")
            _serve(settings)


def _say(line: str) -> None:
    # A terminal that was closed takes no more lines; what is up must be stopped all the same.
    with suppress(OSError):
        errors().print(line, style="dim", markup=False, highlight=False)


def _run(connection: Connection, folder: Path, started: float, memory: _PeakMemory) -> None:
    settings, api = memory.settings, client(connection)
    publication: dict[str, Any] = json.loads((folder / "publication.json").read_text())
    questions = [entry["question"] for entry in json.loads((folder / "questions.json").read_text())["questions"]]
    alias, summary_file = publication["deploy"]["alias"], settings.root / "summary.json"
    base, aliases = _await_base(connection)
    if summary_file.exists() and alias in aliases:
        _await_model(api, alias)
        errors().print(f"Dataset, model and alias {alias} exist already; nothing is trained again.")
        summary = json.loads(summary_file.read_text())
        _show(settings, connection, summary, alias)
        return
    _await_model(api, base)
    before = [ask(api, base, question) for question in questions]
    snapshot = _publish(connection, folder, publication)
    job, train_seconds = _train(connection, snapshot)
    after = [ask(api, alias, question) for question in questions]
    summary = {
        **_records(snapshot),
        "answers": [
            {"question": question, "before": was, "after": is_}
            for question, was, is_ in zip(questions, before, after, strict=True)
        ],
        "model": job.model,
        "train_seconds": round(train_seconds, 1),
        "total_seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(memory.stop()),
    }
    partial = summary_file.with_suffix(".partial")
    partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    partial.replace(summary_file)
    _show(settings, connection, summary, alias)


def _await_base(connection: Connection) -> tuple[str, set[str]]:
    """The base model's name, and the aliases there are; serving finds the base a moment after its start."""
    deadline = time.monotonic() + _NEWS_S
    while time.monotonic() < deadline:
        found = connection.serving.ListModels(srv.ListModelsRequest(owner=connection.owner), timeout=30)
        bases = [model.name for model in found.models if not model.owner]
        if bases:
            return bases[0], {alias.alias for alias in found.aliases}
        time.sleep(_POLL_S)
    raise Transient(f"serving knows no base model after {_NEWS_S:.0f} s", remedy="See the log of serving.")


def _await_model(api: openai.OpenAI, name: str) -> None:
    """The gateway hears of routes a moment after serving has found the model on its server."""
    deadline = time.monotonic() + _NEWS_S
    while time.monotonic() < deadline:
        if any(model.id == name for model in api.models.list()):
            return
        time.sleep(_POLL_S)
    raise Transient(f"the gateway has no route to {name} after {_NEWS_S:.0f} s", remedy="See the log of serving.")


def _publish(connection: Connection, folder: Path, publication: dict[str, Any]) -> ds.DatasetSnapshot:
    """One message, as any producer may send it; then the records' way, live."""
    root = folder.parent
    uris = [str(root / uri) for uri in publication["source"]["uris"]]
    recipe = publication.get("recipe")
    message = {**publication, "source": {**publication["source"], "uris": uris}}
    if isinstance(recipe, dict) and "uri" in recipe:
        message["recipe"] = {"uri": str(root / recipe["uri"])}
    request = ing.PublishDatasetRequest(owner=connection.owner, request_json=json.dumps(message).encode())
    known = known_publications(connection, publication["dataset"])
    answer = connection.ingestion.PublishDataset(request, timeout=60)
    errors().print(f"Published {_EXAMPLE} to {answer.topic}[{answer.partition}] at {answer.offset}", markup=False)
    sources = [file_sha256(Path(uri)) for uri in uris]
    snapshot = watch_dataset(connection, publication["dataset"], known, sources)
    if snapshot.state != ds.DATASET_STATE_READY:
        raise Fatal(f"dataset {_EXAMPLE} is {state_name(snapshot.state)}: {snapshot.message}", remedy=snapshot.remedy)
    return snapshot


def _train(connection: Connection, snapshot: ds.DatasetSnapshot) -> tuple[tr.JobSnapshot, float]:
    wanted = snapshot.wishes[-1].job
    _await_job(connection, wanted)
    job = watch_job(connection, wanted)
    if job.state != tr.JOB_STATE_SUCCEEDED:
        raise Fatal(f"training did not succeed: {job.error}", remedy=job.remedy or "See: shortstack runs list")
    run = connection.training.GetRun(pb.GetRunRequest(owner=connection.owner, id=wanted), timeout=30).run
    seconds = run.finished_at.ToDatetime(tzinfo=UTC) - run.created_at.ToDatetime(tzinfo=UTC)
    return job, seconds.total_seconds()


def _await_job(connection: Connection, job: str) -> None:
    """Training reads the dataset's snapshot a moment after it is written."""
    deadline = time.monotonic() + _NEWS_S
    while time.monotonic() < deadline:
        answer = connection.training.ListRuns(pb.ListRunsRequest(owner=connection.owner, limit=1000), timeout=30)
        if any(found.job.job == job for found in answer.runs):
            return
        time.sleep(_POLL_S)
    raise Transient(f"training has not opened job {job}", remedy="See the log of training.")


def _records(snapshot: ds.DatasetSnapshot) -> dict[str, int]:
    counts = snapshot.counts
    return {
        "records_in": counts.items,
        "kept": counts.chosen,
        "rejected": counts.rejected + counts.malformed,
        "duplicates": counts.duplicates,
        "failed": counts.failed,
    }


def _show(settings: LocalSettings, connection: Connection, summary: dict[str, Any], alias: str) -> None:
    table = Table("question", "before", "after", show_lines=True)
    for answer in summary["answers"]:
        # As text: what a model says in brackets is no markup.
        table.add_row(*(Text(answer[column]) for column in ("question", "before", "after")))
    console().print(table)
    fates = ("records_in", "kept", "rejected", "duplicates", "failed")
    show([{fate: summary[fate] for fate in fates}], fates, as_json=False)
    console().print(
        f"Trained in {summary['train_seconds']:.0f} s, {summary['total_seconds']:.0f} s in all, "
        f"{summary['peak_memory_mb']:,} MB at most."
    )
    places = [
        {"what": "chat API", "where": f"{connection.gateway_url}/v1  (model {alias})"},
        {"what": "key", "where": f"{settings.root / 'gateway' / 'key'}"},
        {"what": "metrics", "where": f"{connection.gateway_url}/metrics"},
        {"what": "summary", "where": f"{settings.root / 'summary.json'}"},
        {"what": "rejected", "where": f"shortstack datasets rejected {_EXAMPLE}"},
    ]
    show(places, ["what", "where"], as_json=False)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """In the block SIGTERM and a closed terminal do what Ctrl-C does, and only the first of them does anything.

    The stack is a session of its own, which no signal reaches but by way of the block's end; and that end, once begun,
    is not to be broken off. What was ignored before (`nohup`) stays ignored.
    """
    all_kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kinds = [kind for kind in all_kinds if signal.getsignal(kind) is not signal.SIG_IGN]

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {kind: signal.signal(kind, interrupt) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _serve(settings: LocalSettings) -> None:
    """Waits for Ctrl-C, or for somebody else to stop the stack."""
    with suppress(KeyboardInterrupt):
        await_end(settings)
        log = settings.log_folder / f"{SUPERVISOR}.log"
        _say(f"The stack is no longer up: it was stopped from elsewhere. If by nobody, {log} says why.")


def _example_folder() -> Path:
    """examples/persona of this checkout, or of the current folder."""
    candidates = [Path(__file__).parents[3] / "examples" / _EXAMPLE, Path("examples") / _EXAMPLE]
    for folder in candidates:
        if (folder / "publication.json").is_file():
            return folder.resolve()
    raise NotFound(f"examples/{_EXAMPLE} is not here", remedy="Run it in a clone of the repository.")
