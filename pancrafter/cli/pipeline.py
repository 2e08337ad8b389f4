"""``pancrafter run`` and ``plan``: the whole pipeline, and what it would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    NOTHING_WORKED,
    SCENE_FAILED,
    BboxOption,
    BlockOption,
    CollectionOption,
    ContractsOption,
    DeviceOption,
    FromOption,
    JsonOption,
    LimitOption,
    PrecisionOption,
    SinkOption,
    SourceOption,
    StateDirOption,
    ThreadsOption,
    ToOption,
    WeightsOption,
    console_for_tables,
    ledger_of,
    line_reporter,
    note,
    on_device,
    parse_bbox,
    parse_moment,
    print_json,
    require_writable,
    settings_from,
    write_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pancrafter.plan import Plan
    from pancrafter.settings import Settings
    from pancrafter.steps import Outcome


@app.command()
def run(
    *,
    source: SourceOption = None,
    sink: SinkOption = None,
    since: FromOption = None,
    until: ToOption = None,
    bbox: BboxOption = None,
    collections: CollectionOption = None,
    state_dir: StateDirOption = None,
    contracts_dir: ContractsOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Local Dask workers; 0: in this process.")] = None,
    threads: ThreadsOption = None,
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", metavar="tcp://HOST:PORT", help="Use a running Dask scheduler.")
    ] = None,
    block_px: BlockOption = None,
    limit: LimitOption = None,
    keep_staged: Annotated[
        bool | None, typer.Option("--keep-staged", help="Keep a scene's Zarr store after it is published.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the outcomes as JSON; - is stdout.")
    ] = None,
) -> None:
    """Find scenes, sharpen them, and publish them to an output catalog; what is done already is left alone."""
    settings = settings_from(
        source=source,
        sink=sink,
        since=parse_moment("--from", since),
        until=parse_moment("--to", until, end_of_day=True),
        bbox=parse_bbox(bbox),
        collections=tuple(collections) if collections else None,
        state_dir=state_dir,
        contracts_dir=contracts_dir,
        weights=weights,
        device=device,
        precision=precision,
        workers=workers,
        threads=threads,
        dask_scheduler=dask_scheduler,
        block_px=block_px,
        limit=limit,
        keep_staged=keep_staged,
    )
    require_writable(json_file)
    settings = on_device(settings)
    from pancrafter import steps

    try:
        outcomes = steps.run(settings, line_reporter())
    except steps.RunStoppedError as error:
        outcomes, code = error.outcomes, NOTHING_WORKED
        note(f"error: {error}")
    else:
        code = SCENE_FAILED if any(outcome.failed for outcome in outcomes) else 0
    if json_file is not None:
        write_json(json_file, _run_report(settings, outcomes, code))
    _print_run(settings, outcomes, console_for_tables(stderr=json_file == Path("-")))
    raise typer.Exit(code)


def _print_run(settings: Settings, outcomes: Sequence[Outcome], console: Console) -> None:
    from pancrafter.summary import catalog_href, print_refusals, print_summary, state_line

    if any(not outcome.turned_away for outcome in outcomes):
        print_summary(console, outcomes, settings.sink)
        return
    print_refusals(console, outcomes)
    with ledger_of(settings) as ledger:
        counts = ledger.counts(settings.sink)
    typer.echo(f"nothing to do: {state_line(counts)}", err=console.stderr)
    if counts.get("dead"):  # type: ignore[call-overload]  # State is a string
        hint = "see `pancrafter ledger list --state dead`; after a fix, `pancrafter ledger redrive`"
        typer.echo(hint, err=console.stderr)
    typer.echo(f"output catalog: {catalog_href(settings.sink)}", err=console.stderr)


def _run_report(settings: Settings, outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    from pancrafter.summary import catalog_href, outcomes_json

    with ledger_of(settings) as ledger:
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
def plan(
    *,
    source: SourceOption = None,
    sink: SinkOption = None,
    since: FromOption = None,
    until: ToOption = None,
    bbox: BboxOption = None,
    collections: CollectionOption = None,
    state_dir: StateDirOption = None,
    contracts_dir: ContractsOption = None,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run with the same options would do, without claiming or reading a single pixel."""
    settings = settings_from(
        source=source,
        sink=sink,
        since=parse_moment("--from", since),
        until=parse_moment("--to", until, end_of_day=True),
        bbox=parse_bbox(bbox),
        collections=tuple(collections) if collections else None,
        state_dir=state_dir,
        contracts_dir=contracts_dir,
        weights=weights,
        precision=precision,
        limit=limit,
    )
    from pancrafter.plan import make_plan

    made = make_plan(settings)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        _print_plan(made)


def _print_plan(made: Plan) -> None:
    from pancrafter.plan import plan_text
    from pancrafter.summary import plan_table

    if made.lines:
        console_for_tables().print(plan_table(made), soft_wrap=False)
    typer.echo(plan_text(made))
