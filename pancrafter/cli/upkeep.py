"""``pancrafter census`` and ``sweep``: does everything agree, and clear up."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.ledger import ledger_redrive, require_ledger
from pancrafter.cli.shared import (
    SCENE_FAILED,
    JsonOption,
    Search,
    SinkOption,
    StateDirOption,
    console_for_tables,
    missing_catalog,
    note,
    print_json,
    takes,
)
from pancrafter.options import settings_from
from pancrafter.words import counted


@app.command()
@takes(Search)
def census(
    search: Search,
    *,
    checksums: Annotated[bool, typer.Option("--checksums", help="Read every published file, not only sizes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare source, ledger, files and output catalog both ways; exit status 1 if anything differs."""
    from pancrafter.census import take_census
    from pancrafter.summary import print_census

    settings = search.settings()
    taken = take_census(settings, checksums=checksums)
    if missing := missing_catalog(settings):
        note(missing)
    if as_json:
        print_json({**taken.model_dump(mode="json"), "clean": taken.clean})
    else:
        print_census(console_for_tables(), taken)
    raise typer.Exit(0 if taken.clean else SCENE_FAILED)


@app.command()
def sweep(
    *,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free the scenes of dead workers, and remove what they left behind; safe beside runs."""
    from pancrafter.sweep import sweep as do_sweep

    settings = settings_from(sink=sink, state_dir=state_dir)
    require_ledger(settings)
    swept = do_sweep(settings)
    if as_json:
        print_json(swept.model_dump(mode="json"))
        return
    for key in swept.freed:
        typer.echo(f"free again: {key}")
    for key in swept.dead:
        typer.echo(f"dead, lost too many workers: {key}")
    for leftover in swept.removed:
        typer.echo(f"removed {leftover.place}/{leftover.name}: {leftover.reason}")
    typer.echo(f"{len(swept.freed)} freed, {len(swept.dead)} dead, {counted(len(swept.removed), 'leftover')} removed")


app.command("redrive")(ledger_redrive)
