"""The ``shortstack`` command."""

from __future__ import annotations

import sys

import grpc
import typer
from rich.markup import escape

from shortstack.cli import chat, datasets, demo, keys, models, runs, stack
from shortstack.cli.output import errors
from shortstack.core.errors import Fatal, ShortstackError, wire_code
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
        # Its own way of ending: 2 for wrong usage, 130 for Ctrl-C, and the status of typer.Exit.
        app()
    except grpc.RpcError as error:
        _fail(error_from_rpc(error))
    except ShortstackError as error:
        _fail(error)
    except OSError as error:
        _fail(
            Fatal(
                error.strerror or str(error), where=str(error.filename or ""), remedy="Check the disk and its rights."
            )
        )


def _fail(error: ShortstackError) -> None:
    code = wire_code(error)
    hint = f"\n{_UNAVAILABLE_HELP}" if code.grpc == "UNAVAILABLE" else ""
    # Whole lines, so that what a message quotes can be searched for and copied.
    errors().print(f"[bold red]error:[/] {escape(str(error))}{hint}", highlight=False, soft_wrap=True)
    sys.exit(code.exit_code)


if __name__ == "__main__":
    main()
