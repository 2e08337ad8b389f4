"""The ``pancrafter`` command itself; its subcommands register here."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.shared import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns satellite archives into sharpened, trustworthy imagery.",
)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    if asked:
        from pancrafter.version import code_commit, code_version

        commit = code_commit()
        typer.echo(f"pancrafter {code_version()}" + (f", commit {commit}" if commit else ""))
        raise typer.Exit


@app.callback()
def _before_any_command(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print which version this is, and end."),
    ] = False,
) -> None:
    pass
