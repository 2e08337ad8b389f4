"""``pancrafter sharpen``: two files in, one COG out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    BlockOption,
    ContractsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    WeightsOption,
    console_for_tables,
    heed_interrupt,
    note,
    print_json,
)
from pancrafter.heap import usable_cores
from pancrafter.model.names import SharpeningMethod
from pancrafter.options import OptionError, on_device, parse_size, settings_from, split_names

if TYPE_CHECKING:
    from pancrafter.pair import Phase, Progress, SharpenedPair


@app.command()
def sharpen(
    pan: Annotated[str, typer.Argument(metavar="PAN", help="One-band file: a path, /vsi... or s3://... .")],
    ms: Annotated[list[str], typer.Argument(metavar="MS...", help="One multi-band file, or one file per band.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="COG to write, a local file.")],
    *,
    sensor: Annotated[
        str | None, typer.Option("--sensor", help="Sensor contract or platform; default: from the files, else generic.")
    ] = None,
    method: Annotated[
        SharpeningMethod | None,
        typer.Option("--method", help="Default: what the sensor allows."),
    ] = None,
    bands: Annotated[str | None, typer.Option("--bands", metavar="A,B,...", help="MS bands in file order.")] = None,
    assume_origin: Annotated[
        str | None,
        typer.Option("--assume-origin", metavar="'EPSG:N X Y GSD'", help="Frame for files without georeference."),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    block_px: BlockOption = None,
    threads: ThreadsOption = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="What the program may take.")] = "2GiB",
    contracts_dir: ContractsOption = None,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="First adapt the network to the scene, at most a minute; for sensors unlike its training's, "
            "others get worse.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sharpen one PAN and MS pair into a COG."""
    if adapt and method not in (None, "pan-crafter"):
        raise OptionError(f"--adapt: {method} has nothing to adapt; leave one of them out")
    local_out = _local_file(out)
    settings = settings_from(
        weights=weights,
        device=device,
        precision=precision,
        block_px=block_px,
        threads=threads or usable_cores(),
        contracts_dir=contracts_dir,
    )
    memory_bytes = parse_size("--memory", memory)
    if method in (None, "pan-crafter"):
        settings = on_device(settings)
    from pancrafter.pair import sharpen_pair
    from pancrafter.vendor_files import parse_georeference

    frame = parse_georeference(assume_origin) if assume_origin else None
    with _pair_progress() as progress:
        made = sharpen_pair(
            pan,
            ms,
            local_out,
            settings,
            sensor=sensor,
            method=method,
            bands=split_names(bands),
            georeference=frame,
            overwrite=overwrite,
            memory_bytes=memory_bytes,
            window_px=block_px,
            adapt=adapt,
            on_progress=progress,
        )
    _warn_of_guesses(made, sensor)
    if as_json:
        print_json({**made.model_dump(mode="json"), "mpx_per_s": made.mpx_per_s})
    else:
        _print_pair(made)


def _local_file(out: str) -> Path:
    if out == "-" or "://" in out or out.startswith("/vsi"):
        raise OptionError(f"OUT: found {out!r}, expected a local file; write there and copy it to where it belongs")
    if Path(out).suffix.lower() not in ("", ".tif", ".tiff"):
        note(f"warning: OUT {out} will be a GeoTIFF (COG), whatever its name says; names of such files end in .tif")
    return Path(out)


def _warn_of_guesses(made: SharpenedPair, sensor: str | None) -> None:
    from pancrafter.pair import UNKNOWN_SENSOR
    from pancrafter.sensors import GENERIC

    if made.sensor == UNKNOWN_SENSOR and sensor != GENERIC:
        guessed = "sensor unknown, so generic MTF gains were used"
        note(f"warning: {guessed}; name it with --sensor (see `pancrafter sensors list`)")
    if made.assumed_order is not None:
        taken = f"nothing names the bands of MS, so the usual order of {made.sensor} was taken"
        note(f"warning: {taken} ({', '.join(made.assumed_order)}); if they have another, name them with --bands")
    if made.ms_alpha:
        taken = "the header of MS calls a band alpha, so it was taken for a mask and not sharpened"
        note(f"warning: {taken}; if it is image (near infrared?), name all bands with --bands")


def _print_pair(made: SharpenedPair) -> None:
    rows, cols = made.shape_yx
    typer.echo(made.path)
    typer.echo(
        f"  {rows} x {cols} px, {len(made.bands)} bands ({', '.join(made.bands)}), {made.dtype}, {made.crs}, "
        f"{made.size_bytes / 1e6:.1f} MB, {made.valid_share:.1%} valid"
    )
    typer.echo(
        f"  {made.method}, sensor {made.sensor}, ratio {made.ratio}, PAN-MS shift corrected up to "
        f"{made.largest_shift_px:.2f} PAN px; {made.mpx:.2f} Mpx in {made.seconds:.1f} s "
        f"({made.mpx_per_s:.3g} Mpx/s sharpening)"
    )
    if made.adapted is not None:
        typer.echo(f"  {made.adapted}")


@contextmanager
def _pair_progress() -> Iterator[Progress]:
    """A bar with megapixels per second and ETA, on a terminal; elsewhere a line per phase."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = console_for_tables(stderr=True)
    described, rated = TextColumn("{task.description:>10}"), TextColumn("{task.fields[rate]}")
    with Progress(
        described, BarColumn(), rated, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}
        started: dict[str, float] = {}

        def advance(phase: Phase, done: int, total: int) -> None:
            heed_interrupt()
            if phase not in tasks:
                tasks[phase], started[phase] = bars.add_task(phase, rate=""), time.perf_counter()
                if not console.is_terminal:
                    note(phase)
            mpx_per_s = done / 1e6 / max(time.perf_counter() - started[phase], 1e-6)
            rate = f"{done / 1e6:.2f}/{total / 1e6:.2f} Mpx, {mpx_per_s:.3g} Mpx/s" if total > 1 else ""
            # a part that reports nothing in between moves to and fro until it is over
            bars.update(tasks[phase], total=total if total > 1 or done else None, completed=done, rate=rate)

        yield advance
