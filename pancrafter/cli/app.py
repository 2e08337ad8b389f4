"""The ``pancrafter`` command itself; its subcommands register here."""

from __future__ import annotations

import typer

from pancrafter.cli.shared import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns satellite archives into sharpened, trustworthy imagery.",
)
