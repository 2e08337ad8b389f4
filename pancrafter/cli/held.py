"""``pancrafter held``: scenes that the quality gate set aside for a person."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.ledger import existing_ledger, one_scene
from pancrafter.cli.shared import JsonOption, LedgerSinkOption, SceneArgument, StateDirOption, print_json

held_app = typer.Typer(no_args_is_help=True, help="Decide on scenes that the quality gate holds.")
app.add_typer(held_app, name="held")

ReasonOption = Annotated[str, typer.Option("--reason", help="Goes into the history; of a release, into the item too.")]


@held_app.command("list")
def held_list(*, sink: LedgerSinkOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List held scenes with the reason and the figures that matter."""
    from pancrafter.states import State
    from pancrafter.summary import row_json

    with existing_ledger(state_dir) as ledger:
        rows = ledger.rows(sink=sink, states=[State.HELD])
    if as_json:
        print_json([row_json(row) for row in rows])
        return
    for row in rows:
        typer.echo(f"{row.key}  {row.sensor}\n  {row.reason}")
    typer.echo(f"{len(rows)} held" + ("; pancrafter held release|reject SCENE --reason TEXT" if rows else ""))


@held_app.command("release")
def held_release(
    scene: SceneArgument,
    *,
    reason: ReasonOption,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Let a held scene be published by the next run, labelled as released by a person."""
    with one_scene(scene, sink, state_dir) as (ledger, row):
        ledger.approve(row.key, reason)
    typer.echo(f"{row.key}: released; the next run publishes it")


@held_app.command("reject")
def held_reject(
    scene: SceneArgument,
    *,
    reason: ReasonOption,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Set a held scene aside for good; it comes back when its source changes."""
    with one_scene(scene, sink, state_dir) as (ledger, row):
        ledger.mark_refused(row.key, "rejected", reason)
    typer.echo(f"{row.key}: rejected; it comes back when its source changes, or by `pancrafter ledger redrive`")
