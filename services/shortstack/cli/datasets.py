"""``datasets``: publish, list, report, rejected, retry, accept, delete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.progress import BarColumn, Progress, TextColumn

from shortstack.assembly.v1 import assembly_pb2 as asm
from shortstack.cli.connection import Connection
from shortstack.cli.given import is_file_name, mapping_in, settings_given
from shortstack.cli.output import Elapsed, Json, console, errors, shorten, show
from shortstack.core.digest import file_sha256
from shortstack.core.errors import Invalid, NotFound
from shortstack.ingestion.v1 import ingestion_pb2 as ing
from shortstack.messages.v1 import dataset_pb2 as ds

__all__ = ["app", "dataset_row", "known_publications", "stage_file", "state_name", "watch_dataset"]

app = typer.Typer(help="Publish datasets and see where each record went.", no_args_is_help=True)

_ENDED = (ds.DATASET_STATE_READY, ds.DATASET_STATE_HELD, ds.DATASET_STATE_FAILED, ds.DATASET_STATE_DELETED)
_FAILED = 1
_FIRST_REJECTED = 20
_MOST_REJECTED = 100_000
_NEWS_S = 10.0
"""A repeated publication is recognised by ingestion in about the time that its files take to be hashed."""
Name = Annotated[str, typer.Argument(help="Dataset name, or publication id (its first 8 digits will do).")]


def state_name(state: ds.DatasetState.ValueType) -> str:
    """``ready``, ``held``, … of an enum value."""
    return ds.DatasetState.Name(state).removeprefix("DATASET_STATE_").lower()


def dataset_row(snapshot: ds.DatasetSnapshot) -> dict[str, Any]:
    """A dataset as a row of a table."""
    counts = snapshot.counts
    return {
        "dataset": snapshot.publication.dataset,
        "state": state_name(snapshot.state),
        "in": counts.items,
        # Once it is assembled, what is kept is what is chosen: in = kept + rejected + duplicates + failed.
        "kept": counts.chosen if snapshot.version else counts.kept,
        "rejected": counts.rejected + counts.malformed,
        "duplicates": counts.duplicates,
        "failed": counts.failed,
        "written": counts.written,
        "version": snapshot.version,
        "publication": snapshot.publication.publication,
        "attempt": snapshot.publication.attempt,
        "accepted_at": snapshot.publication.accepted_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"),
        "message": snapshot.message,
    }


def stage_file(connection: Connection, file: Path) -> str:
    """Puts a file below the uploads root, which ingestion may read, and returns its path there.

    Raises:
        NotFound: there is no such file.
    """
    if not file.is_file():
        raise NotFound(f"no file {file}", remedy="Give the path of a JSON, JSONL, CSV, TSV or Parquet file.")
    target = connection.settings.root / "uploads" / file_sha256(file)[:16] / file.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(file, partial)
        partial.replace(target)
    return str(target)


@app.command()
def publish(
    files: Annotated[list[Path], typer.Argument(help="JSON, JSONL (.gz, .zst), CSV, TSV or Parquet files.")],
    name: Annotated[str, typer.Option("--name", help="Name of the dataset.")],
    family: Annotated[
        str | None, typer.Option("--format", help="Family of the records; detected unless given.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="GIVEN=MEANT, for example --column A=input; repeat it.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Built-in recipe, or a YAML file.")] = None,
    prompt_format: Annotated[str | None, typer.Option(help="Prompt format to train and serve with.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the records.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Train on it when ready: a YAML file of settings, or key=value,key=value.")
    ] = None,
    deploy: Annotated[str | None, typer.Option(help="Serve the model as this alias, such as support@prod.")] = None,
    wait: Annotated[bool, typer.Option(help="Show progress until the dataset is ready, held or failed.")] = True,
) -> None:
    """Publish files as a dataset."""
    connection = Connection.open()
    message: dict[str, Any] = {
        "dataset": name,
        "source": {"uris": [stage_file(connection, file) for file in files]},
        "format": family,
        "columns": _pairs(column or []) or None,
        "recipe": _recipe(recipe),
        "prompt_format": prompt_format,
        "license": license_,
        "train": settings_given(train, "--train") if train is not None else ({} if deploy else None),
        "deploy": {"alias": deploy, "suffix": name} if deploy else None,
    }
    message = {key: value for key, value in message.items() if value is not None}
    known = known_publications(connection, name) if wait else {}
    answer = connection.ingestion.PublishDataset(
        ing.PublishDatasetRequest(owner=connection.owner, request_json=json.dumps(message).encode()), timeout=60
    )
    errors().print(f"Published to {answer.topic}[{answer.partition}] at {answer.offset}", markup=False)
    if wait:
        _end_with(watch_dataset(connection, name, known, [file_sha256(file) for file in files]))


def _end_with(ended: ds.DatasetSnapshot) -> None:
    _print_report(ended)
    if ended.wishes:
        console().print(f"It is trained on next. Follow it: shortstack runs watch {ended.wishes[-1].job}", markup=False)
    if ended.state != ds.DATASET_STATE_READY:
        raise typer.Exit(_FAILED)


def known_publications(connection: Connection, name: str) -> dict[str, ds.DatasetSnapshot]:
    """What there is of a dataset's name by publication, to be told apart from what comes after it."""
    request = ing.ListDatasetsRequest(owner=connection.owner, dataset=name)
    answer = connection.ingestion.ListDatasets(request, timeout=30)
    return {found.publication.publication: found for found in answer.datasets}


def watch_dataset(
    connection: Connection, name: str, known: Mapping[str, ds.DatasetSnapshot], sources: Sequence[str]
) -> ds.DatasetSnapshot:
    """Shows records and rate until the dataset that was just published has an end; the snapshot as it then stands.

    Args:
        connection: to ingestion.
        name: of the dataset.
        known: what there was of that name before.
        sources: sha256 of the files that were published. Where an older publication has just these, it may be the
            same one, of which nothing new will be heard.
    """
    same = [old for old in known.values() if _sources(old) == list(sources)]
    if same and not _is_news(connection, name, known, sources):
        errors().print("Nothing is new: this was published before, with the same settings.")
        return max(same, key=lambda old: old.publication.accepted_at.ToNanoseconds())
    request = ing.WatchDatasetRequest(owner=connection.owner, dataset=name)
    with _bars() as progress:
        task = progress.add_task(name, total=None, of="?", rate="")
        for answer in connection.ingestion.WatchDataset(request):
            snapshot = answer.dataset
            if not _differs(snapshot, known, sources):
                continue
            speed = progress.tasks[task].speed
            # With what could not be read, so that the bar ends at the report's "items read".
            ended, read = (number + snapshot.counts.malformed for number in (snapshot.formatted, snapshot.announced))
            progress.update(
                task,
                description=f"{name} {state_name(snapshot.state)}",
                completed=ended,
                total=read or None,
                of=f"{read:,}" if read else "?",
                rate=f"{speed:,.0f}/s" if speed else "",
            )
            if snapshot.state in _ENDED:
                return snapshot
    raise NotFound(f'no dataset "{name}"')


def _bars() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.fields[of]} items"),
        TextColumn("{task.fields[rate]}"),
        Elapsed(),
    )
    return Progress(*columns, console=errors(), transient=False)


def _sources(snapshot: ds.DatasetSnapshot) -> list[str]:
    return [source.sha256 for source in snapshot.publication.sources]


def _differs(snapshot: ds.DatasetSnapshot, known: Mapping[str, ds.DatasetSnapshot], sources: Sequence[str]) -> bool:
    """Whether it may be what was just published: new, or known with these very sources and changed since.

    An older publication of the same name may still be under way, and end in the meantime.
    """
    old = known.get(snapshot.publication.publication)
    return old is None or (snapshot != old and _sources(old) == list(sources))


def _is_news(
    connection: Connection, name: str, known: Mapping[str, ds.DatasetSnapshot], sources: Sequence[str]
) -> bool:
    """Whether anything of ``name`` comes to differ from ``known`` soon."""
    request = ing.WatchDatasetRequest(owner=connection.owner, dataset=name)
    try:
        for answer in connection.ingestion.WatchDataset(request, timeout=_NEWS_S):
            if _differs(answer.dataset, known, sources):
                return True
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    return False


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List datasets, newest first."""
    connection = Connection.open()
    answer = connection.ingestion.ListDatasets(ing.ListDatasetsRequest(owner=connection.owner), timeout=30)
    rows = sorted((dataset_row(d) for d in answer.datasets), key=lambda row: row["accepted_at"], reverse=True)
    columns = ["dataset", "state", "in", "kept", "rejected", "duplicates", "failed", "written", "version"]
    columns += ["publication", *(["message"] if any(row["message"] for row in rows) else [])]
    empty = "No datasets. Publish one with: shortstack datasets publish FILE --name N"
    show(rows, columns, as_json=as_json, empty=empty)


@app.command()
def report(name: Name, as_json: Json = False) -> None:
    """Show where each record of a dataset went."""
    connection = Connection.open()
    answer = connection.assembly.GetReport(asm.GetReportRequest(owner=connection.owner, dataset=name), timeout=30)
    if as_json:
        manifest = json.loads(answer.manifest_json) if answer.manifest_json else None
        reasons = [{"step": r.step, "reason": r.reason, "records": r.records} for r in answer.dataset.reasons]
        print(json.dumps({**dataset_row(answer.dataset), "reasons": reasons, "manifest": manifest}, indent=2))
        return
    _print_report(answer.dataset)


def _print_report(snapshot: ds.DatasetSnapshot) -> None:
    counts = snapshot.counts
    title = f"{snapshot.publication.dataset}: {state_name(snapshot.state)}"
    console().print(f"[bold]{title}[/]" + (f"  version {snapshot.version[:12]}" if snapshot.version else ""))
    fates = [
        ("items read", counts.items, ""),
        ("malformed", counts.malformed, "set aside at reading"),
        *((r.reason, r.records, f"rejected by {r.step}") for r in snapshot.reasons),
        ("duplicates", counts.duplicates, "exact, dropped by assembly"),
        ("mixed in", counts.mixed_in, "from other datasets"),
        ("written", counts.written, f"{counts.train:,} to train on, {counts.validation:,} to validate"),
    ]
    rows = [{"fate": fate, "records": records, "by": by} for fate, records, by in fates if records]
    show(rows, ["fate", "records", "by"], as_json=False, empty="No records.")
    if snapshot.message:
        console().print(snapshot.message, markup=False)
    if snapshot.remedy:
        console().print(snapshot.remedy, markup=False)


@app.command()
def rejected(
    name: Name,
    limit: Annotated[
        int | None, typer.Option(min=1, max=_MOST_REJECTED, help="Records to show: 20; with --json all.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Only this reason.")] = "",
    as_json: Json = False,
) -> None:
    """List records that are not in the dataset, each with the reason."""
    connection = Connection.open()
    wanted = limit or (_MOST_REJECTED if as_json else _FIRST_REJECTED)
    request = asm.ListRejectedRequest(owner=connection.owner, dataset=name, limit=wanted + 1, reason=reason)
    found = connection.assembly.ListRejected(request, timeout=60).records
    rows = [
        {
            "fate": r.fate,
            "place": r.place,
            "step": r.step,
            "reason": r.reason,
            "evidence": r.evidence if as_json else shorten(r.evidence, 60),
            "record": r.record_json if as_json else shorten(r.record_json, 80),
        }
        for r in found[:wanted]
    ]
    columns = ["fate", "place", "step", "reason", "evidence", "record"]
    show(rows, columns, as_json=as_json, empty="Nothing was rejected.")
    if len(found) > wanted:
        errors().print(f"These are the first {wanted}; there are more. For others: --limit N, --reason REASON, --json.")


@app.command()
def retry(name: Name) -> None:
    """Send what is missing of a stalled dataset again, or read one again that failed or has failed records."""
    connection = Connection.open()
    connection.assembly.RetryDataset(asm.RetryDatasetRequest(owner=connection.owner, dataset=name), timeout=30)
    console().print(f"Asked for again. Follow it with: shortstack datasets report {name}")


@app.command()
def accept(name: Name) -> None:
    """Let a held dataset through."""
    connection = Connection.open()
    request = asm.AcceptDatasetRequest(owner=connection.owner, dataset=name)
    answer = connection.assembly.AcceptDataset(request, timeout=30)
    console().print(f"{name}: {state_name(answer.dataset.state)}")


@app.command()
def delete(name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete the text of a name's every publication. Models trained on it, and copies by mix-in, stay and are named."""
    if not yes:
        typer.confirm(f"Delete all text of dataset {name}?", abort=True)
    connection = Connection.open()
    request = asm.DeleteDatasetRequest(owner=connection.owner, dataset=name)
    answer = connection.assembly.DeleteDataset(request, timeout=60)
    gone = f"{state_name(answer.dataset.state)}, {len(answer.publications)} publications"
    console().print(f"{name}: {gone}. Topics have forgotten it by {answer.forgotten_by}.")
    if answer.copies:
        console().print(f"Mixed-in copies of it remain in: {', '.join(answer.copies)}")
    if answer.models:
        console().print(f"Models that saw it: {', '.join(answer.models)}")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        given, sign, meant = text.partition("=")
        if not (given and sign and meant):
            raise Invalid(f'"{text}" is no pair', where="--column", remedy="Write GIVEN=MEANT, for example A=input.")
        pairs[given] = meant
    return pairs


def _recipe(text: str | None) -> str | Mapping[str, Any] | None:
    if text is None or not is_file_name(text):
        return text
    return mapping_in(Path(text), "--recipe")
