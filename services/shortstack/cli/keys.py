"""``keys``: create, list, revoke API keys of the gateway."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer

from shortstack.cli.connection import Connection
from shortstack.cli.output import Json, console, errors, show
from shortstack.core.errors import Invalid, Transient

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
        show([created], [], as_json=True)
        return
    console().print(created["key"], markup=False)
    errors().print("Keep it: it is stored as a hash and cannot be shown again.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List keys, without the secret part."""
    rows = _call(Connection.open(), "GET", _PATH)["data"]
    shown = [{**row, "scopes": ", ".join(row.get("scopes", []))} for row in rows] if not as_json else rows
    show(shown, ["id", "name", "owner", "scopes", "created_at", "revoked_at"], as_json=as_json)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Id of the key.")]) -> None:
    """Revoke a key; it stops working at once."""
    _call(Connection.open(), "DELETE", f"{_PATH}/{key}")
    console().print(f"{key}: revoked", markup=False)


def _call(connection: Connection, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    url = f"{connection.gateway_url}{path}"
    headers = {"authorization": f"Bearer {connection.api_key}"}
    try:
        response = httpx.request(method, url, json=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        raise Transient(f"the gateway does not answer at {connection.gateway_url}") from error
    if response.status_code >= 400:
        raise Invalid(response.json()["error"]["message"], where="gateway")
    return response.json()
