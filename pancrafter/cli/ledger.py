"""``pancrafter ledger``: what became of scenes, and another try for failed ones."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    SCENE_FAILED,
    JsonOption,
    LedgerSinkOption,
    SceneArgument,
    StateDirOption,
    console_for_tables,
    note,
    print_json,
)
from pancrafter.errors import PancrafterError
from pancrafter.options import OptionError, settings_from

if TYPE_CHECKING:
    from pancrafter.ledger import Ledger
    from pancrafter.settings import Settings
    from pancrafter.states import LedgerRow, SceneKey

MOST_NAMED = 200
"""Scenes that are named when very many are given another try."""

ledger_app = typer.Typer(no_args_is_help=True, help="See what became of scenes, and give failed ones another try.")
app.add_typer(ledger_app, name="ledger")


@ledger_app.command("list")
def ledger_list(
    *,
    states: Annotated[list[str] | None, typer.Option("--state", help="Only this state; may be given again.")] = None,
    sink: LedgerSinkOption = None,
    sensor: Annotated[str | None, typer.Option("--sensor", help="Only this sensor.")] = None,
    collection: Annotated[str | None, typer.Option("--collection", help="Only this source collection.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many scenes.")] = 200,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List scenes and where they stand."""
    from pancrafter.summary import print_ledger, row_json, state_line

    with existing_ledger(state_dir) as ledger:
        rows = ledger.rows(
            sink=sink, states=_states(states), sensor=sensor, collection=collection, order="newest", limit=limit
        )
        counts = ledger.counts(sink)
    if as_json:
        print_json([row_json(row) for row in rows])
        return
    if rows:
        print_ledger(console_for_tables(), rows)
    typer.echo(f"{len(rows)} listed; {state_line(counts)}")


@ledger_app.command("show")
def ledger_show(
    scene: SceneArgument,
    *,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print everything the ledger knows about one scene."""
    from pancrafter.summary import row_json, row_table

    with one_scene(scene, sink, state_dir) as (_, row):
        if as_json:
            print_json(row_json(row))
        else:
            console_for_tables().print(row_table(row), soft_wrap=False)


@ledger_app.command("why")
def ledger_why(
    scene: SceneArgument,
    *,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the history of one scene: how it came to its present state."""
    from pancrafter.summary import events_table

    with one_scene(scene, sink, state_dir) as (ledger, row):
        events = ledger.why(row.key)
    if as_json:
        print_json([event.model_dump(mode="json") for event in events])
        return
    typer.echo(f"{row.key} is {row.state.value}" + (f": {row.reason}" if row.reason else ""))
    console_for_tables().print(events_table(events), soft_wrap=False)


@ledger_app.command("redrive")
def ledger_redrive(
    scenes: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENE]...", help="ITEM or COLLECTION/ITEM; default: all that match.")
    ] = None,
    states: Annotated[
        list[str] | None, typer.Option("--state", help="States to take: dead and held unless given.")
    ] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only this refusal code or error class.")] = None,
    contains: Annotated[str | None, typer.Option("--contains", help="Only where the reason has this text.")] = None,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Give scenes another try after their cause is mended; the next run takes them."""
    if scenes and (states or code or contains):
        raise OptionError("--state, --code and --contains choose among all scenes; name scenes or give these, not both")
    with existing_ledger(state_dir) as ledger:
        if scenes:
            result = ledger.redrive([one_row(ledger, scene, sink).key for scene in scenes])
        else:
            wanted = _states(states) or ["dead", "held"]
            result = ledger.redrive(sink=sink, states=wanted, code=code, reason_contains=contains)
    most = None if scenes else MOST_NAMED
    for key in result.redriven[:most]:
        typer.echo(f"eligible again: {key}")
    for key, reason in result.left[:most]:
        note(f"left as it is: {key}: {reason}")
    if not scenes and (more := len(result.redriven[most:]) + len(result.left[most:])):
        typer.echo(f"and {more} more: see `pancrafter ledger list`")
    typer.echo(f"{len(result.redriven)} redriven, {len(result.left)} left")
    if scenes and result.left:
        raise typer.Exit(SCENE_FAILED)


@ledger_app.command("refuse")
def ledger_refuse(
    scene: SceneArgument,
    reason: Annotated[str, typer.Argument(help="Why it will not be sharpened.")],
    *,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Set a scene aside for good; it comes back when its source changes or somebody redrives it."""
    with one_scene(scene, sink, state_dir) as (ledger, row):
        if row.state == "confirmed":
            raise PancrafterError(
                f"scene {row.key}: is published as {row.output_item_id}; `pancrafter withdraw "
                f"{shlex.quote(str(row.key))} --reason TEXT` takes it out of the catalog and sets it aside"
            )
        ledger.mark_refused(row.key, "by-hand", reason)
    typer.echo(f"refused: {row.key}: {reason}")


@contextmanager
def one_scene(scene: str, sink: str | None, state_dir: str | None) -> Iterator[tuple[Ledger, LedgerRow]]:
    """The ledger of a state folder, and what it knows about the scene a person means."""
    with existing_ledger(state_dir) as ledger:
        yield ledger, one_row(ledger, scene, sink)


def one_row(ledger: Ledger, scene: str, sink: str | None) -> LedgerRow:
    """The scene a person means by ``ITEM`` or ``COLLECTION/ITEM``."""
    rows = {row.key: row for row in rows_meant(ledger, scene, sink)}
    if not rows:
        raise PancrafterError(f"no scene {scene!r} in ledger {ledger.url}; see `pancrafter ledger list`")
    return rows[the_one(scene, list(rows))]


def rows_meant(ledger: Ledger, scene: str, sink: str | None) -> list[LedgerRow]:
    """All scenes that a person may mean by ``ITEM`` or ``COLLECTION/ITEM``."""
    collection, _, item_id = scene.partition("/")
    found = ledger.find(scene, sink=sink)
    if found or not item_id:
        return found
    return [row for row in ledger.find(item_id, sink=sink) if row.key.collection == collection]


def the_one(scene: str, keys: Sequence[SceneKey]) -> SceneKey:
    """The only one of the scenes that a person may mean."""
    if len(keys) > 1:
        found = "; ".join(f"{key} --sink {key.sink}" for key in keys)
        raise PancrafterError(f"{scene!r} means {len(keys)} scenes: {found}; name one of them in full")
    return keys[0]


def _states(names: Sequence[str] | None) -> list[str] | None:
    from pancrafter.states import State

    known = [state.value for state in State]
    for name in names or ():
        if name not in known:
            raise OptionError(f"--state: found {name!r}, expected one of {', '.join(known)}")
    return list(names) if names else None


def require_ledger(settings: Settings) -> None:
    """Tell a place without a ledger from one whose ledger has nothing to say.

    Raises:
        OptionError: There is none in the state folder.
    """
    if not settings.has_ledger:
        file = Path(settings.state_dir) / "ledger.db"
        raise OptionError(f"no ledger at {file}; give --state-dir of the run, or run first")


@contextmanager
def existing_ledger(state_dir: str | None) -> Iterator[Ledger]:
    """The ledger of a state folder; asking about it does not make one."""
    settings = settings_from(state_dir=state_dir)
    require_ledger(settings)
    from pancrafter.ledger import open_ledger

    with open_ledger(settings) as ledger:
        yield ledger
