"""``pancrafter changes``, ``snapshot``, ``withdraw`` and ``report``: what readers of an output catalog are told."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    BboxOption,
    SinkOption,
    note,
    parse_bbox,
    parse_moment,
    settings_from,
)

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
    from pancrafter.changes import ChangeFeed
    from pancrafter.publish import StaticSink

    catalog = StaticSink(settings.sink)
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
