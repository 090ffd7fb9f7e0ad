"""``keys``: create, list, revoke API keys of the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer

from shortstack.cli.connection import Connection, gateway_error
from shortstack.cli.output import Json, console, errors, show
from shortstack.core.errors import Transient

__all__ = ["app"]

app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
_PATH = "/v1/admin/keys"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    owner: Annotated[str | None, typer.Option(help="Whose datasets and models it reaches.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="chat, datasets or admin; repeat it.")] = None,
    as_json: Json = False,
) -> None:
    """Create a key; it is shown this once."""
    connection = Connection.open()
    body = {"name": name, "owner": owner or connection.owner, "scopes": scope or ["chat", "datasets"]}
    created = _call(connection, "POST", _PATH, body)
    if as_json:
        show([_row(created)], [], as_json=True)
        return
    console().print(created["key"], markup=False)
    errors().print("Keep it: it is stored as a hash and cannot be shown again.")
    errors().print(f"To end it: shortstack keys revoke {created['id']}", markup=False, soft_wrap=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List keys, without the secret part."""
    rows = [_row(key) for key in _call(Connection.open(), "GET", _PATH)["data"]]
    shown = rows if as_json else [{**row, "scopes": ", ".join(row["scopes"])} for row in rows]
    columns = ["id", "prefix", "name", "owner", "scopes", "created_at", "revoked_at"]
    show(shown, columns, as_json=as_json, empty="No keys.")


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.")]) -> None:
    """Revoke a key; it stops working at once."""
    _call(Connection.open(), "DELETE", f"{_PATH}/{key}")
    console().print(f"{key}: revoked", markup=False)


def _row(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key with its times as every other listing writes them: ISO, UTC; empty where there is none."""
    return {**key, "created_at": _time(key["created_at"]), "revoked_at": _time(key["revoked_at"])}


def _time(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _call(connection: Connection, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    url = f"{connection.gateway_url}{path}"
    headers = {"authorization": f"Bearer {connection.api_key}"}
    try:
        response = httpx.request(method, url, json=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        raise Transient(f"the gateway does not answer at {connection.gateway_url}") from error
    try:
        answer = response.json()
    except ValueError:
        answer = response.text[:200]
    if response.status_code >= 400:
        raise gateway_error(response.status_code, answer)
    return answer
