"""The ``pancrafter`` command itself; its subcommands register here."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.shared import Commands, print_version

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns satellite archives into sharpened, trustworthy imagery.",
)


def _version_asked(asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    if asked:
        print_version()
        raise typer.Exit


@app.callback()
def _before_any_command(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version_asked, is_eager=True, help="The same as the command version.")
    ] = False,
) -> None:
    pass
