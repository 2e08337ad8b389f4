"""``pancrafter train``: weights of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    DeviceOption,
    OptionError,
)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as training/open-compact.yaml.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the run; an interrupted one goes on.")],
    device: DeviceOption = "auto",
) -> None:
    """Train the network; run it again on the same folder to continue."""
    if not config.is_file():
        raise OptionError(f"{config}: no such file; expected a training configuration in YAML")
    from pancrafter.model.devices import resolve_device
    from pancrafter.train import train as train_network

    typer.echo(train_network(config, folder, device=resolve_device(device or "auto")))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as package_version

    typer.echo(f"pancrafter {package_version('pancrafter')}")
