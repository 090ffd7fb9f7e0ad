"""``models``: list, deploy, traffic, withdraw."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

import typer

from shortstack.cli.connection import Connection
from shortstack.cli.output import Json, console, show
from shortstack.core.errors import Invalid
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.v1 import serving_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="Served models and the aliases that route to them.", no_args_is_help=True)


def _row(model: sv.ModelSnapshot, aliases: list[sv.AliasSnapshot]) -> dict[str, Any]:
    routed = [
        f"{alias.alias} {weight.weight}%" for alias in aliases for weight in alias.weights if weight.model == model.name
    ]
    return {
        "model": model.name,
        "state": sv.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
        "aliases": ", ".join(routed),
        "format": model.endpoint.prompt_format,
        "context": model.endpoint.max_total_tokens,
        "updated_at": model.updated_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"),
        "message": model.message,
    }


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List models and the aliases that route to them."""
    connection = Connection.open()
    answer = connection.serving.ListModels(pb.ListModelsRequest(owner=connection.owner), timeout=30)
    rows = [_row(model, list(answer.aliases)) for model in answer.models]
    show(rows, ["model", "state", "aliases", "format", "context", "updated_at", "message"], as_json=as_json)


@app.command()
def deploy(
    run: Annotated[str, typer.Argument(help="Id of a run that succeeded; its first 8 digits will do.")],
    suffix: Annotated[str, typer.Option(help="Part of the model's name.")] = "model",
    alias: Annotated[str, typer.Option(help="Alias that moves to it.")] = "",
) -> None:
    """Serve the model of a run."""
    connection = Connection.open()
    request = pb.DeployModelRequest(owner=connection.owner, run=run, suffix=suffix, alias=alias)
    answer = connection.serving.DeployModel(request, timeout=30)
    console().print(f"{answer.model.name}: see it come up with: shortstack models list", markup=False)


@app.command()
def traffic(
    alias: Annotated[str, typer.Argument(help="Alias, for example support@prod.")],
    weights: Annotated[list[str], typer.Argument(help="MODEL=WEIGHT, weights adding up to 100.")],
) -> None:
    """Route an alias to models by weight."""
    connection = Connection.open()
    parsed = [_weight(text) for text in weights]
    request = pb.SetTrafficRequest(owner=connection.owner, alias=alias, weights=parsed)
    answer = connection.serving.SetTraffic(request, timeout=30)
    console().print(f"{alias}: " + ", ".join(f"{w.model} {w.weight}%" for w in answer.alias.weights), markup=False)


@app.command()
def withdraw(model: Annotated[str, typer.Argument(help="Model id.")]) -> None:
    """Take a model out of traffic; its weights are kept."""
    connection = Connection.open()
    connection.serving.WithdrawModel(pb.WithdrawModelRequest(owner=connection.owner, model=model), timeout=30)
    console().print(f"{model}: withdrawn", markup=False)


def _weight(text: str) -> sv.Weight:
    model, _, weight = text.rpartition("=")
    if not model or not weight.isdecimal():
        raise Invalid(f'"{text}" is no weight', remedy="Write MODEL=WEIGHT, for example ft:base:me:a:0123=100.")
    return sv.Weight(model=model, weight=int(weight))
