"""The command line: help for every command, JSON from every listing, exit codes that mean something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from tests.e2e.stack import Stack
from typer.testing import CliRunner

from shortstack.cli.main import app


def commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))
LISTINGS = [
    ("status",),
    ("doctor",),
    ("topics", "list"),
    ("datasets", "list"),
    ("datasets", "report", "persona"),
    ("datasets", "rejected", "persona"),
    ("runs", "list"),
    ("models", "list"),
    ("keys", "list"),
]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    said = CliRunner().invoke(app, [*path, "--help"])
    assert said.exit_code == 0
    assert "Usage:" in said.output
    assert len(said.output.split("Usage:")[1].strip().splitlines()) > 2


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_every_listing_prints_json(stack: Stack, arguments: tuple[str, ...]) -> None:
    stack.ended_dataset("persona")
    rows = stack.listed(*arguments)
    assert rows
    assert isinstance(rows, dict if arguments[:2] == ("datasets", "report") else list)


def test_tables_name_what_there_is(stack: Stack) -> None:
    stack.ended_dataset("persona")
    runner, environment = CliRunner(), dict(stack.environment)
    table = runner.invoke(app, ["datasets", "list"], env=environment)
    row = next(line for line in table.stdout.splitlines() if line.startswith("persona "))
    assert {"ready", "491", "34", "18"} <= set(row.split())
    processes = runner.invoke(app, ["status"], env=environment)
    assert processes.exit_code == 0
    assert {"kafka", "gateway", "inference"} <= {line.split()[0] for line in processes.stdout.splitlines() if line}


def test_exit_codes_mean_something(stack: Stack) -> None:
    stack.ended_dataset("persona")
    assert "No such command" in stack.command("datasets", "lst", expect=2).stderr
    missing = stack.command("datasets", "report", "persna", expect=66)
    assert 'Did you mean "persona"' in missing.stderr
    conflict = stack.command("datasets", "accept", "persona", expect=73)
    assert "not held" in conflict.stderr
    invalid = stack.command("models", "traffic", "persona@prod", "nonsense", expect=65)
    assert "MODEL=WEIGHT" in invalid.stderr
    assert "Traceback" not in missing.stderr + conflict.stderr + invalid.stderr


def test_a_key_works_until_it_is_revoked(stack: Stack) -> None:
    import openai

    [made] = json.loads(stack.command("keys", "create", "e2e", "--json").stdout)
    with openai.OpenAI(base_url=f"{stack.services.gateway_url}/v1", api_key=made["key"], max_retries=0) as client:
        assert client.models.list().data
        stack.command("keys", "revoke", made["id"])

        def refused() -> bool | None:
            try:
                client.models.list()
            except openai.AuthenticationError:
                return True
            return None

        stack.until(refused)


def test_publishing_a_file_shows_where_each_record_went(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("publish") / "colours.csv"
    file.write_text("instruction,output\nName a colour.,Red.\nName a colour.,Red.\nName another.,\n")
    said = stack.command("datasets", "publish", str(file), "--name", "colours")
    assert "colours: ready" in said.stdout
    report = stack.listed("datasets", "report", "colours")
    assert (report["in"], report["rejected"], report["duplicates"], report["written"]) == (3, 1, 1, 1)
    stack.command("datasets", "delete", "colours", "--yes")
    assert stack.listed("datasets", "report", "colours")["state"] == "deleted"


def test_an_estimate_counts_what_the_run_has(stack: Stack, persona: Path, tmp_path: Path) -> None:
    stack.ended_dataset("persona")
    settings = tmp_path / "train.json"
    settings.write_text(json.dumps(json.loads((persona / "publication.json").read_text())["train"]))
    told = stack.listed("runs", "explain", "persona", "--train", str(settings))
    assert (told["train"]["records"], told["schedule"]["max_steps"]) == (423, 106)
    assert told["tokens"] > 423
