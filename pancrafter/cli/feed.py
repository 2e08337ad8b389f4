"""``pancrafter changes``, ``snapshot``, ``withdraw`` and ``report``: what readers of an output catalog are told."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.ledger import existing_ledger, rows_meant, the_one
from pancrafter.cli.shared import (
    BboxOption,
    SceneArgument,
    SinkOption,
    StateDirOption,
    note,
    require_catalog,
)
from pancrafter.errors import PancrafterError, SinkError
from pancrafter.options import parse_bbox, parse_moment, settings_from
from pancrafter.words import counted

PlaceArgument = Annotated[
    str | None, typer.Argument(metavar="[SINK]", help="Folder or s3://bucket/prefix; default: as --sink of a run.")
]


@app.command()
def changes(
    place: PlaceArgument = None,
    *,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Announced then or later: 2026-05-01 or 2026-05-01T06:00Z."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Announced then or earlier.")] = None,
    bbox: BboxOption = None,
    collections: Annotated[
        list[str] | None, typer.Option("--collection", help="Only this output collection; may be given again.")
    ] = None,
    sink: SinkOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="First announce items of the catalog that the feed does not know.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List what became new, was superseded or withdrawn in an output catalog."""
    settings = settings_from(sink=place or sink, bbox=parse_bbox(bbox))
    from pancrafter.changes import FOLDER, ChangeFeed
    from pancrafter.publish import StaticSink

    catalog = StaticSink(settings.sink)
    if catalog.store.read("catalog.json") is None and not catalog.store.list_names(FOLDER):
        raise SinkError(
            f"{catalog.catalog_href}: no output catalog, expected one; give the SINK that runs publish into"
        )
    feed = ChangeFeed(catalog.store)
    if repair:
        note(f"{len(feed.repair(catalog))} events were missing and are announced now")
    count = 0
    for change in feed.events(
        parse_moment("--since", since),
        parse_moment("--until", until, end_of_day=True),
        bbox=settings.bbox,
        collections=collections or (),
    ):
        count += 1
        if as_json:
            typer.echo(change.model_dump_json(exclude_none=True))
        else:
            more = f"  -> {change.successor}" if change.successor else f"  ({change.reason})" if change.reason else ""
            typer.echo(
                f"{change.time:%Y-%m-%dT%H:%M:%SZ}  {change.type:10}  {change.collection}/{change.item_id}{more}"
            )
    if not as_json:
        note(f"{count} changes in {settings.sink}")


@app.command()
def report(
    place: PlaceArgument = None,
    *,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Announced then or later; default: from the beginning."),
    ] = None,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write report.html beside an output catalog: what was published, held, failed, with map, pictures and costs."""
    settings = settings_from(sink=place or sink, state_dir=state_dir)
    from pancrafter.ledger import open_ledger
    from pancrafter.publish import StaticSink
    from pancrafter.report import write_report

    with open_ledger(settings) if settings.has_ledger else nullcontext() as ledger:
        if ledger is None or not any(ledger.counts(settings.sink).values()):
            require_catalog(settings)
        typer.echo(write_report(StaticSink(settings.sink), ledger=ledger, since=parse_moment("--since", since)))


@app.command()
def snapshot(
    place: PlaceArgument = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Instead of items.parquet beside the catalog.")
    ] = None,
    sink: SinkOption = None,
) -> None:
    """Write an output catalog as one STAC GeoParquet file, for search without a server."""
    settings = settings_from(sink=place or sink)
    from pancrafter.publish import StaticSink
    from pancrafter.snapshot import write_snapshot

    where, count = write_snapshot(StaticSink(settings.sink), out)
    typer.echo(f"{where}: {counted(count, 'item')}")


@app.command()
def withdraw(
    scene: SceneArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; goes into the change feed and the ledger.")],
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Take the published item of a source scene out of the catalog; the scene is not made again by itself."""
    settings = settings_from(sink=sink, state_dir=state_dir)
    from pancrafter import withdrawal
    from pancrafter.publish import StaticSink

    with existing_ledger(state_dir) as ledger:
        known = [row.key for row in rows_meant(ledger, scene, settings.sink)]
        keys = known or withdrawal.published_scenes(scene, StaticSink(settings.sink))
        if not keys:
            raise PancrafterError(
                f"no scene {scene!r} in ledger {ledger.url}, and no product of one in {settings.sink}; "
                "see `pancrafter ledger list`"
            )
        key = the_one(scene, keys)
        item_ids = withdrawal.withdraw(key, reason, settings, ledger)
    for item_id in item_ids:
        typer.echo(f"{item_id}: withdrawn")
    if not item_ids:
        typer.echo(f"{key}: was withdrawn before, nothing is left of it")
