"""``pancrafter run``, ``backfill`` and ``plan``: the whole pipeline, and what it would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    NOTHING_WORKED,
    SCENE_FAILED,
    JsonOption,
    Search,
    console_for_tables,
    line_reporter,
    note,
    print_json,
    require_writable,
    takes,
    write_json,
)
from pancrafter.options import on_device

if TYPE_CHECKING:
    from rich.console import Console

    from pancrafter.plan import Plan
    from pancrafter.settings import Settings
    from pancrafter.steps import Outcome


JsonFileOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the outcomes as JSON; - is stdout.")
]


@dataclass(frozen=True)
class Work:
    """Where and how scenes are worked on."""

    device: Annotated[str | None, typer.Option("--device", show_default="cpu", help="auto, cpu, cuda or cuda:N.")] = (
        None
    )
    workers: Annotated[
        int | None, typer.Option("--workers", show_default="2", help="Local Dask workers; 0: in this process.")
    ] = None
    threads: Annotated[int | None, typer.Option("--threads", min=1, show_default="1", help="Threads per worker.")] = (
        None
    )
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", metavar="tcp://HOST:PORT", help="Use a running Dask scheduler.")
    ] = None
    block_px: Annotated[
        int | None, typer.Option("--block-px", show_default="512", help="Edge of a block, PAN pixels.")
    ] = None
    keep_staged: Annotated[
        bool | None, typer.Option("--keep-staged", help="Keep a scene's Zarr store after it is published.")
    ] = None


@app.command()
@takes(Search, Work)
def run(search: Search, work: Work, *, json_file: JsonFileOption = None) -> None:
    """Find scenes, sharpen them, and publish them to an output catalog; what is done already is left alone."""
    settings = search.settings(**asdict(work))
    require_writable(json_file)
    from pancrafter import runs

    settings, report = on_device(settings), line_reporter()
    carry_out(settings, lambda: runs.run(settings, report), json_file)


@app.command()
@takes(Search, Work)
def backfill(
    search: Search,
    work: Work,
    *,
    window_days: Annotated[
        int,
        typer.Option("--window-days", min=1, help="Work through the period in pieces of so many days, newest first."),
    ] = 30,
    plan_only: Annotated[bool, typer.Option("--plan", help="Print the plan and stop.")] = False,
    max_scenes: Annotated[int | None, typer.Option("--max-scenes", min=0, help="Refuse to start above it.")] = None,
    max_read_gb: Annotated[
        float | None, typer.Option("--max-read-gb", min=0, help="Refuse to read more source files than that.")
    ] = None,
    max_hours: Annotated[float | None, typer.Option("--max-hours", min=0, help="Refuse more hours of work.")] = None,
    max_money: Annotated[
        float | None, typer.Option("--max-money", min=0, help="Refuse a higher price (PANCRAFTER_PRICE_PER_HOUR).")
    ] = None,
    requester_pays: Annotated[
        bool, typer.Option("--requester-pays", help="Also read where the archive charges the reader.")
    ] = False,
    json_file: JsonFileOption = None,
) -> None:
    """Sharpen a part of the archive within a budget; stop it at any time, and the same command goes on.

    The plan comes first: a figure above its limit, or a limited figure that is not known, refuses the whole run.
    """
    from pancrafter.backfill import backfill as work_through
    from pancrafter.plan import Budget, check_budget, make_plan

    settings = search.settings(**asdict(work))
    require_writable(json_file)
    made = make_plan(settings)
    _print_plan(made, stderr=not plan_only or json_file == Path("-"))
    if plan_only and json_file is not None:
        write_json(json_file, made.model_dump(mode="json"))
    budget = Budget(
        scenes=max_scenes, read_gb=max_read_gb, hours=max_hours, money=max_money, requester_pays=requester_pays
    )
    check_budget(made, budget)
    if plan_only:
        return
    from pancrafter import runs

    settings, report, started = on_device(settings), line_reporter(), datetime.now(UTC)

    def work_on(piece: Settings) -> list[Outcome]:
        return runs.run(piece, report, since=started)

    carry_out(settings, lambda: work_through(settings, window_days, work_on), json_file)


def carry_out(settings: Settings, work: Callable[[], list[Outcome]], json_file: Path | None = None) -> NoReturn:
    """Do it, show what became of every scene, and end with the exit code that says it."""
    from pancrafter.runs import RunStoppedError

    done = "nothing to do"
    try:
        outcomes = work()
    except RunStoppedError as error:
        outcomes, code, done = error.outcomes, NOTHING_WORKED, "stopped"
        note(f"error: {error}")
    else:
        code = SCENE_FAILED if any(outcome.failed for outcome in outcomes) else 0
    if json_file is not None:
        write_json(json_file, _run_report(settings, outcomes, code))
    _print_run(settings, outcomes, done, console_for_tables(stderr=json_file == Path("-")))
    raise typer.Exit(code)


def _print_run(settings: Settings, outcomes: Sequence[Outcome], done: str, console: Console) -> None:
    """A table of what was made, or what was done in its place and how far the archive is."""
    from pancrafter.ledger import open_ledger
    from pancrafter.states import State
    from pancrafter.summary import catalog_href, print_next, print_refusals, print_summary, state_line

    if any(not outcome.turned_away for outcome in outcomes):
        print_summary(console, outcomes, settings.sink)
    else:
        print_refusals(console, outcomes)
        with open_ledger(settings) as ledger:
            counts = ledger.counts(settings.sink)
        typer.echo(f"{done}: {state_line(counts)}", err=console.stderr)
        typer.echo(f"output catalog: {catalog_href(settings.sink)}", err=console.stderr)
        print_next(console, held=counts[State.HELD] > 0, failed=counts[State.DEAD] > 0)


def _run_report(settings: Settings, outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    from pancrafter.ledger import open_ledger
    from pancrafter.summary import catalog_href, outcomes_json

    with open_ledger(settings) as ledger:
        states = {state.value: count for state, count in ledger.counts(settings.sink).items() if count}
    return {
        "source": settings.source,
        "sink": settings.sink,
        "catalog": catalog_href(settings.sink),
        "exit_code": code,
        "ledger": states,
        "outcomes": outcomes_json(outcomes),
    }


@app.command()
@takes(Search)
def plan(search: Search, *, as_json: JsonOption = False) -> None:
    """Say what a run with the same options would do, without claiming or reading a single pixel."""
    from pancrafter.plan import make_plan

    made = make_plan(search.settings())
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        _print_plan(made)


def _print_plan(made: Plan, *, stderr: bool = False) -> None:
    from pancrafter.plan import plan_text
    from pancrafter.summary import plan_table

    if made.lines:
        console_for_tables(stderr=stderr).print(plan_table(made), soft_wrap=False)
    typer.echo(plan_text(made), err=stderr)
