"""The ``shortstack`` command."""

from __future__ import annotations

import sys

import click
import grpc
import typer

from shortstack.cli import chat, datasets, demo, keys, models, runs, stack
from shortstack.cli.output import errors
from shortstack.core.errors import ShortstackError, wire_code
from shortstack.core.grpc import error_from_rpc

__all__ = ["app", "main"]

_UNAVAILABLE_HELP = "Is the stack up? See: shortstack status. Start it with: shortstack up"

app = typer.Typer(
    name="shortstack",
    help="Instruct data in, chat API out: publish a dataset, fine-tune a model on it, chat with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
stack.add_to(app)
demo.add_to(app)
app.add_typer(datasets.app, name="datasets")
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")
chat.add_to(app)
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Runs the command line. Exit codes: 0 done; 2 wrong usage; else after sysexits.h, as the README lists them."""
    try:
        app(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except grpc.RpcError as error:
        _fail(error_from_rpc(error))
    except ShortstackError as error:
        _fail(error)


def _fail(error: ShortstackError) -> None:
    code = wire_code(error)
    hint = f"\n{_UNAVAILABLE_HELP}" if code.grpc == "UNAVAILABLE" else ""
    errors().print(f"[bold red]error:[/] {error}{hint}", highlight=False, markup=True)
    sys.exit(code.exit_code)


if __name__ == "__main__":
    main()
