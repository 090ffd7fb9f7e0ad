"""``up``, ``down``, ``status``, ``doctor``, ``topics``: the stack on this machine; ``status`` of one elsewhere too."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from shortstack.cli.connection import Connection
from shortstack.cli.elsewhere import is_elsewhere, pages, status_elsewhere
from shortstack.cli.output import Json, console, errors, show
from shortstack.core.config import ServiceConfig
from shortstack.local.doctor import doctor as diagnose
from shortstack.local.services import apply_topics
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down as stop_stack
from shortstack.local.stack import status as stack_status
from shortstack.local.stack import up as start_stack
from shortstack.streams.topics import TOPICS

__all__ = ["add_to"]

_NOT_READY = 69
"""EX_UNAVAILABLE of sysexits.h."""


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(doctor)
    topics = typer.Typer(help="Kafka topics.", no_args_is_help=True)
    topics.command("apply")(topics_apply)
    topics.command("list")(topics_list)
    app.add_typer(topics, name="topics")


def _say(line: str) -> None:
    errors().print(f"[dim]{line}[/]", highlight=False)


def up() -> None:
    """Start broker and services in the background; returns when all are ready."""
    settings = LocalSettings()
    start_stack(settings, _say)
    console().print(f"Ready. Chat API: http://127.0.0.1:{settings.ports.gateway_port}/v1  Stop with: shortstack down")


def down() -> None:
    """Stop everything cleanly; data stays."""
    stopped = stop_stack(LocalSettings(), _say)
    console().print(f"Stopped: {', '.join(stopped)}" if stopped else "Nothing was running.")


def status(as_json: Json = False) -> None:
    """Show every process of the stack; exits 69 unless all are ready."""
    if is_elsewhere(os.environ):
        _status_elsewhere(as_json)
        return
    lines = stack_status(LocalSettings())
    rows = [
        {
            **asdict(line),
            "pid": line.pid if as_json else str(line.pid or ""),
            "rss_mb": round(line.rss_mb),
            "uptime_s": round(line.uptime_s),
            "ports": " ".join(f"{name}={port}" for name, port in line.ports.items()) if not as_json else line.ports,
        }
        for line in lines
    ]
    show(rows, ["service", "state", "pid", "ports", "rss_mb", "uptime_s", "restarts", "error"], as_json=as_json)
    if any(line.state != "ready" for line in lines):
        raise typer.Exit(_NOT_READY)


def _status_elsewhere(as_json: bool) -> None:
    found = status_elsewhere(pages(os.environ), ServiceConfig(), Connection.open())
    show([asdict(line) for line in found], ["part", "state", "address", "says"], as_json=as_json)
    if not all(line.well for line in found):
        raise typer.Exit(_NOT_READY)


def doctor(as_json: Json = False) -> None:
    """Check Python, Java, ports, disk, memory, model and jars; exits 1 if something must be mended."""
    findings = diagnose(LocalSettings())
    rows = [asdict(finding) for finding in findings]
    show(rows, list(rows[0]) if rows else [], as_json=as_json)
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)


def topics_apply(
    owners: Annotated[
        list[str] | None, typer.Argument(help="Whose ingest topics to create, beside SHORTSTACK_INGEST_OWNERS.")
    ] = None,
    replication: Annotated[int, typer.Option(help="Replicas of each new topic.")] = 1,
) -> None:
    """Create the declared topics and set their configs; doing it again changes nothing."""
    for line in apply_topics(LocalSettings(), owners or (), replication=replication):
        console().print(line)


def topics_list(as_json: Json = False) -> None:
    """List the declared topics."""
    rows = [
        {
            "topic": t.name,
            "key": t.key,
            "value": t.value,
            "kind": str(t.kind),
            "partitions": t.partitions,
            "retention_days": t.retention_days if t.retention_days is not None else "compacted",
            "max_bytes": t.max_bytes,
        }
        for t in TOPICS.values()
    ]
    show(rows, list(rows[0]), as_json=as_json)
