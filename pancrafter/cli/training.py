"""``pancrafter train`` and ``reproduce``: weights of one's own, and the published tables; and ``version``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import DeviceOption, note, print_version
from pancrafter.options import OptionError


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as training/open-compact.yaml.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Of the run; an interrupted one goes on. Default: runs/CONFIG."),
    ] = None,
    device: DeviceOption = "auto",
    loaders: Annotated[
        int | None,
        typer.Option("--loaders", min=0, help="Processes that prepare batches; default: 0, for a GPU up to 4."),
    ] = None,
) -> None:
    """Train the network; run it again on the same folder to continue."""
    if not config.is_file():
        raise OptionError(f"{config}: no such file; expected a training configuration in YAML")
    from pancrafter.model.devices import resolve_device
    from pancrafter.training.loop import train as train_network

    folder = folder or Path("runs") / config.stem
    typer.echo(train_network(config, folder, device=resolve_device(device or "auto"), loaders=loaders))


@app.command()
def reproduce(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with PanCollection files, at any depth.")],
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for runs and scores; unfinished ones go on.")],
    *,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="wv3, qb, gf2 or wv2 (with weights of wv3); default: all found.")
    ] = None,
    configs: Annotated[Path, typer.Option("--configs", help="Folder with paper-q8.yaml and paper-q4.yaml.")] = Path(
        "training"
    ),
    device: DeviceOption = "auto",
) -> None:
    """Train the published network on PanCollection and print its tables beside the paper's."""
    if not data.is_dir():
        raise OptionError(f"DATA: {data} is no folder; expected one with PanCollection files")
    from pancrafter.evaluate import NETWORK, UPSAMPLING
    from pancrafter.model.devices import resolve_device
    from pancrafter.reproduce import ANCHORS, PUBLISHED, deviations
    from pancrafter.reproduce import reproduce as reproduce_tables

    if unknown := set(sets or ()) - PUBLISHED.keys():
        raise OptionError(f"--set: found {', '.join(sorted(unknown))}, expected {', '.join(PUBLISHED)}")
    results = reproduce_tables(data, runs, configs, sensors=sets, device=resolve_device(device or "auto"), report=note)
    for sensor, result in results.items():
        typer.echo(
            f"{sensor}: score, ours (mean, deviation), paper, " + ", ".join(m for m in result.means if m != NETWORK)
        )
        for score, published in PUBLISHED[sensor].items():
            others = "".join(f"  {_figure(m[score])}" for name, m in result.means.items() if name != NETWORK)
            ours = _figure(result.means[NETWORK][score], deviations(result, score))
            typer.echo(f"  {score:10} {ours}  {published:.3f}{others}")
        if anchors := ANCHORS.get(sensor):
            typer.echo(
                f"{sensor}: the evaluator's anchors, {UPSAMPLING}: score, found (mean, deviation), expected, source"
            )
        for anchor in anchors or ():
            found = _figure(result.means[UPSAMPLING][anchor.score], deviations(result, anchor.score, UPSAMPLING))
            typer.echo(f"  {anchor.score:10} {found}  {_figure(anchor.mean, anchor.deviation)}  {anchor.source}")


def _figure(mean: float | None, deviation: float | None = None) -> str:
    spread = "" if deviation is None else f" ± {deviation:.4f}"
    return "-" if mean is None else f"{mean:.4f}{spread}"


@app.command()
def version() -> None:
    """Print which version this is, and of which commit where that is known."""
    print_version()
