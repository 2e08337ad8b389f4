"""``pancrafter simulate``, ``catalog add`` and ``serve``: archives to work on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import SCENE_FAILED, ContractsOption, counting_reporter, note
from pancrafter.options import OptionError, contracts_from, parse_moment, split_names
from pancrafter.words import counted

catalog_app = typer.Typer(no_args_is_help=True, help="Make static STAC catalogs from files.")
app.add_typer(catalog_app, name="catalog")


@app.command()
def simulate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same pixels.")] = 0,
    *,
    sound: Annotated[
        bool, typer.Option("--sound", help="Damage no file; without it one is cut off on purpose.")
    ] = False,
) -> None:
    """Write a small STAC archive of simulated scenes, with the truth beside it for evaluation."""
    from pancrafter.simulate.archive import sample_scenes, simulate_archive, sound_scenes

    scenes = sound_scenes() if sound else sample_scenes()
    catalog = simulate_archive(directory, seed, scenes=scenes, on_scene=counting_reporter(len(scenes)))
    typer.echo(catalog)


@catalog_app.command("add")
def catalog_add(
    pan: Annotated[Path | None, typer.Argument(metavar="PAN", help="One-band file.")] = None,
    ms: Annotated[
        list[Path] | None, typer.Argument(metavar="MS...", help="One multi-band file, or one file per band.")
    ] = None,
    *,
    catalog: Annotated[Path, typer.Option("--catalog", help="Folder of the catalog; made when missing.")],
    sensor: Annotated[str | None, typer.Option("--sensor", help="Sensor contract or platform.")] = None,
    contracts_dir: ContractsOption = None,
    item_id: Annotated[
        str | None,
        typer.Option("--id", help="Id of the item; default: name of the PAN file, of its folder where that is 'pan'."),
    ] = None,
    acquired: Annotated[
        str | None,
        typer.Option("--datetime", metavar="TIME", help="Acquisition time; default: from the header, else the file's."),
    ] = None,
    bands: Annotated[str | None, typer.Option("--bands", metavar="A,B,...", help="MS bands in file order.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files into the catalog folder.")] = False,
    assume_origin: Annotated[
        str | None,
        typer.Option("--assume-origin", metavar="'EPSG:N X Y GSD'", help="Frame for files without georeference."),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="DIR", help="Add a folder of NAME.npz with NAME.json instead.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Only this pair of --pairs; may be given again.")
    ] = None,
) -> None:
    """Describe vendor files as items of a static STAC catalog; adding them again changes nothing."""
    if pairs is not None:
        unfit = {
            "PAN and MS": pan,
            "--sensor": sensor,
            "--id": item_id,
            "--datetime": acquired,
            "--bands": bands,
            "--assume-origin": assume_origin,
        }
        _add_pairs(catalog, pairs, names, contracts_from(contracts_dir), given=unfit)
        return
    if pan is None or not ms or sensor is None:
        raise OptionError("expected --sensor NAME PAN MS..., or --pairs DIR; see `pancrafter catalog add --help`")
    if names:
        raise OptionError("--name: chooses among --pairs DIR, which was not given")
    from pancrafter.ingest import add_pair
    from pancrafter.vendor_files import parse_georeference

    frame = parse_georeference(assume_origin) if assume_origin else None
    added = add_pair(
        catalog,
        sensor,
        pan,
        ms,
        item_id=item_id,
        acquired=parse_moment("--datetime", acquired),
        bands=split_names(bands),
        copy=copy,
        georeference=frame,
        contracts=contracts_from(contracts_dir),
    )
    _print_added(added)


def _add_pairs(
    catalog: Path, pairs: Path, names: list[str] | None, contracts: dict[str, Any], *, given: Mapping[str, object]
) -> None:
    unfit = [option for option, value in given.items() if value is not None]
    if unfit:
        raise OptionError(f"{', '.join(unfit)}: not together with --pairs, whose descriptions say it")
    from pancrafter.ingest_arrays import add_pairs_directory

    result = add_pairs_directory(catalog, pairs, names, contracts=contracts)
    for added in result.added:
        _print_added(added)
    for name, reason in result.skipped:
        note(f"skipped {name}: {reason}")
    typer.echo(f"{counted(len(result.added), 'item')} in {catalog / 'catalog.json'}, {len(result.skipped)} skipped")
    if result.skipped:
        raise typer.Exit(SCENE_FAILED)


def _print_added(added: Any) -> None:  # Any: AddedScene, whose module is imported late
    place = ", georeference assumed" if added.synthetic_georeference else ""
    typer.echo(
        f"{added.change:9} {added.collection}/{added.item_id}: {', '.join(added.bands)} ({added.bands_from}); "
        f"acquired {added.acquired} ({added.datetime_from}){place}"
    )


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a static STAC catalog.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 8182,
) -> None:
    """Offer a static STAC catalog as a searchable STAC API until interrupted."""
    port = _free_port(host, port)
    from pancrafter.catalog_index import load_index
    from pancrafter.serve import serve_forever

    index = load_index(directory)
    note(f"STAC API over {directory} at http://{host}:{port} (Ctrl-C ends it)")
    serve_forever(index, host, port)


def _free_port(host: str, port: int) -> int:
    """The port to listen on: of 0, one that is free."""
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as err:
        raise OptionError(f"{host}:{port} cannot be listened on ({err}); choose another --host or --port") from err
