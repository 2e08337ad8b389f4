"""``pancrafter metrics``, ``backup``, ``restore`` and ``size``: what whoever runs it needs beside the work itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.ledger import existing_ledger
from pancrafter.cli.shared import JsonOption, SinkOption, StateDirOption, note, print_json
from pancrafter.options import OptionError, settings_from, validated

if TYPE_CHECKING:
    from pancrafter.sizing import Rates


@app.command()
def metrics(
    *,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Answer scrapes on this port until Ctrl-C; default: print once."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """State of ledger and change feed in Prometheus' text format."""
    from pancrafter import metrics_endpoint

    settings = settings_from(sink=sink, state_dir=state_dir)
    if port is None:
        typer.echo(metrics_endpoint.text(settings), nl=False)
    else:
        said = f"metrics on http://{host}:{port}/metrics until Ctrl-C"
        try:
            metrics_endpoint.serve(settings, host, port, on_start=lambda: note(said))
        except OSError as err:
            raise OptionError(f"{host}:{port} cannot be listened on ({err}); choose another --host or --port") from err


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


@app.command()
def size(
    *,
    scenes: Annotated[int, typer.Option("--scenes", help="How many scenes the archive has.")],
    mpx: Annotated[float, typer.Option("--mpx", help="Mean PAN megapixels of a scene.")],
    gpus: Annotated[int, typer.Option("--gpus", help="Devices that sharpen.")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", help="Slots that stage, assess and publish.")] = 2,
    runners: Annotated[int, typer.Option("--runners", help="Scenes in work at the same time.")] = 1,
    bands: Annotated[int, typer.Option("--bands", min=1, help="MS bands of a scene.")] = 4,
    source_mb_per_s: Annotated[
        float, typer.Option("--source-mb-per-s", show_default="unlimited", help="Bandwidth of the source.")
    ] = math.inf,
    interruptions: Annotated[float, typer.Option("--interruptions", help="Of a spot GPU, per hour.")] = 0.0,
    gpu_price: Annotated[float, typer.Option("--gpu-price", min=0, help="Per GPU and hour.")] = 0.0,
    cpu_price: Annotated[float, typer.Option("--cpu-price", min=0, help="Per CPU slot and hour.")] = 0.0,
    rates: Annotated[Path | None, typer.Option("--rates", help="JSON file of rates; default: from the ledger.")] = None,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """How long an archive takes, what it costs, what it asks of ledger and STAC API, and what is the bottleneck."""
    from pancrafter import sizing

    archive = validated(sizing.Archive, {"scenes": scenes, "mpx": mpx, "bands": bands})
    fleet = validated(
        sizing.Fleet,
        {
            "gpus": gpus,
            "cpus": cpus,
            "runners": runners,
            "source_mb_per_s": source_mb_per_s,
            "interruptions_per_gpu_hour": interruptions,
            "gpu_hour_price": gpu_price,
            "cpu_hour_price": cpu_price,
        },
    )
    if rates is not None:
        known = _rates_in(rates)
    else:
        from pancrafter.states import State

        settings = settings_from(sink=sink)
        with existing_ledger(state_dir) as ledger:
            rows = ledger.rows(sink=settings.sink, states=[State.CONFIRMED], limit=1000)
        known = sizing.rates_from(row.measures for row in rows)
    found = sizing.forecast(archive, fleet, known)
    if as_json:
        print_json({"rates": known.model_dump(), "forecast": found.model_dump()})
        return
    money = "" if found.money is None else f", money {found.money:.0f}"
    typer.echo(
        f"{found.hours:.1f} hours, {found.gpu_hours:.1f} GPU hours ({found.gpu_hours_lost:.1f} lost to interruptions)"
        f"{money}\nread {found.read_tb:.2f} TB, written {found.written_tb:.2f} TB, {found.objects} "
        f"objects\nledger {found.ledger_writes_per_s:.2f} writes/s, STAC API {found.api_requests_per_s:.2f} requests/s"
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.utilisation.items())
    typer.echo(f"busy: {shares}\nbottleneck: {found.bottleneck}")


def _rates_in(path: Path) -> Rates:
    from pydantic import ValidationError

    from pancrafter.sizing import Rates

    try:
        return Rates.model_validate_json(path.read_bytes())
    except OSError as err:
        raise OptionError(f"--rates {path}: {err}; expected a JSON file of rates") from err
    except ValidationError as err:
        fault = err.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise OptionError(f"--rates {path}: {place}: {fault['msg']}; expected them as `size --json` prints") from err
