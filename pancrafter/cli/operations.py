"""``pancrafter metrics``, ``backup`` and ``restore``: what whoever runs it needs beside the work itself."""

from __future__ import annotations

from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import SinkOption, StateDirOption, note, settings_from


@app.command()
def metrics(
    *,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Answer scrapes on this port until Ctrl-C; default: print once.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """State of ledger and change feed in Prometheus' text format."""
    from pancrafter import metrics_endpoint

    settings = settings_from(sink=sink, state_dir=state_dir)
    if port is None:
        typer.echo(metrics_endpoint.text(settings), nl=False)
    else:
        note(f"metrics on http://{host}:{port}/metrics until Ctrl-C")
        metrics_endpoint.serve(settings, host, port)


@app.command()
def backup(
    place: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix of the backup; later ones only add.")],
    *,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Copy the ledger (if it is a file) and the output catalog; may run beside everything else."""
    from pancrafter.backup import back_up

    report = back_up(settings_from(sink=sink, state_dir=state_dir), place)
    typer.echo(str(report))


@app.command()
def restore(
    place: Annotated[str, typer.Argument(help="Where `pancrafter backup` wrote.")],
    *,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Put a backup back; what is there and the same is kept. A STAC API is filled from the catalog."""
    from pancrafter.backup import bring_back

    report = bring_back(settings_from(sink=sink, state_dir=state_dir), place)
    typer.echo(str(report))
