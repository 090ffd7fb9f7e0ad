"""``chat``: talk to a model through the gateway, with the ``openai`` client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import openai
import typer

from shortstack.cli.connection import Connection, gateway_error
from shortstack.cli.output import console, errors
from shortstack.core.errors import Transient

__all__ = ["add_to", "ask", "client", "gateway_faults"]

_MAX_TOKENS = 256


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chat)


def client(connection: Connection) -> openai.OpenAI:
    """The ``openai`` client on this stack's gateway."""
    return openai.OpenAI(base_url=f"{connection.gateway_url}/v1", api_key=connection.api_key, max_retries=2)


def ask(api: openai.OpenAI, model: str, question: str, max_tokens: int = 60) -> str:
    """One greedy answer."""
    answer = api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0
    )
    return answer.choices[0].message.content or ""


@contextmanager
def gateway_faults(connection: Connection) -> Iterator[None]:
    """The client's errors as the stack's own, so that a command ends with one line and an exit code.

    Raises:
        ShortstackError: the gateway does not answer, refuses, or breaks off.
    """
    try:
        yield
    except openai.APIConnectionError as error:
        raise Transient(f"the gateway does not answer at {connection.gateway_url}") from error
    except openai.APIStatusError as error:
        raise gateway_error(error.status_code, error.body or error.message) from error
    except openai.APIError as error:
        raise Transient(f"the answer broke off: {error.message}", where="gateway") from error


def chat(
    model: Annotated[str | None, typer.Option(help="Model or alias; the newest fine-tune, else the base.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this one thing and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    context: Annotated[str | None, typer.Option(help="Material to answer from, sent as the context role.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 for the likeliest answer.")] = 0.0,
) -> None:
    """Chat with a model. Without --message it reads lines until Ctrl-D."""
    connection = Connection.open()
    api = client(connection)
    with gateway_faults(connection):
        name = model or _default_model(api)
        history: list[Any] = [{"role": "system", "content": system}] if system else []
        if message is not None:
            # Beside the answer, which standard output has to itself.
            errors().print(f"Asking {name}.", style="dim", markup=False, highlight=False, soft_wrap=True)
            _turn(api, name, history, message, context, temperature)
            return
        errors().print(f"Chatting with {name}. Ctrl-D ends.", markup=False)
        _converse(api, name, history, context, temperature)


def _converse(api: openai.OpenAI, model: str, history: list[Any], context: str | None, temperature: float) -> None:
    """Turns until Ctrl-D. A question that is refused is forgotten, so that the next one can be asked."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line.strip():
            continue
        before = len(history)
        try:
            _turn(api, model, history, line, context, temperature)
        except openai.APIStatusError as error:
            del history[before:]
            refused = gateway_error(error.status_code, error.body or error.message)
            errors().print(str(refused), style="red", markup=False)


def _default_model(api: openai.OpenAI) -> str:
    models = sorted(api.models.list().data, key=lambda m: (m.id.startswith("ft:"), m.created))
    if not models:
        raise Transient("no model is served yet")
    return models[-1].id


def _turn(
    api: openai.OpenAI, model: str, history: list[Any], line: str, context: str | None, temperature: float
) -> None:
    history.append({"role": "user", "content": line})
    if context:
        history.append({"role": "context", "content": context})
    stream = api.chat.completions.create(
        model=model, messages=history, stream=True, temperature=temperature, max_tokens=_MAX_TOKENS
    )
    pieces = []
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    console().print()
    history.append({"role": "assistant", "content": "".join(pieces)})
