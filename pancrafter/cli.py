"""The ``pancrafter`` command: options in, records of the library out, as text, tables or JSON.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done or nothing to do, 1 something about the input
or a scene, 2 nothing could be done (options, source, sink, weights), 130 interrupted. Heavy libraries are imported
by the command that needs them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer
from typer.core import TyperGroup

from pancrafter.errors import ErrorKind, PancrafterError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from rich.console import Console

    from pancrafter.ledger import Ledger, LedgerRow
    from pancrafter.pair import Phase, Progress, SharpenedPair
    from pancrafter.plan import Plan
    from pancrafter.settings import Settings
    from pancrafter.steps import Outcome
    from pancrafter.types import Refusal, Scene

SCENE_FAILED = 1
NOTHING_WORKED = 2
INTERRUPTED = 130

_OPTION_NAMES = {"since": "--from", "until": "--to", "collections": "--collection"}
_LISTS_AS_JSON = "lists are written as JSON, like '[8, 44, 9, 45]'"
_DATE_ONLY = re.compile(r"\d{4}-?\d{2}-?\d{2}")


class OptionError(PancrafterError):
    """A value on the command line or in the environment does not fit."""

    kind: ClassVar[ErrorKind] = "system"


class _Commands(TyperGroup):
    """Turns deliberate errors into one line and an exit code; every other error is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # Any: typer's own signature
        try:
            return super().invoke(ctx)
        except PancrafterError as error:
            _note(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(NOTHING_WORKED if error.kind == "system" else SCENE_FAILED) from None
        except KeyboardInterrupt:
            _note("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns satellite archives into sharpened, trustworthy imagery.",
)
catalog_app = typer.Typer(no_args_is_help=True, help="Make static STAC catalogs from files.")
sensors_app = typer.Typer(no_args_is_help=True, help="Look at sensor contracts, and check items against them.")
ledger_app = typer.Typer(no_args_is_help=True, help="See what became of scenes, and give failed ones another try.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(sensors_app, name="sensors")
app.add_typer(ledger_app, name="ledger")

# Options that several commands share. None means not given: then PANCRAFTER_<NAME> or the default of Settings counts.
SourceOption = Annotated[
    str | None, typer.Option("--source", help="STAC API URL, static catalog URL, or folder of a catalog.")
]
SinkOption = Annotated[str | None, typer.Option("--sink", help="Folder or s3://bucket/prefix of the output catalog.")]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="DATE", help="Earliest acquisition: 2025-04-01 or 2025-04-01T10:00Z.")
]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="DATE", help="Latest acquisition; a date means its whole day.")
]
BboxOption = Annotated[str | None, typer.Option("--bbox", metavar="W,S,E,N", help="Area in degrees.")]
CollectionOption = Annotated[
    list[str] | None, typer.Option("--collection", help="Only this source collection; may be given again.")
]
StateDirOption = Annotated[str | None, typer.Option("--state-dir", help="Folder of the ledger and of unfinished work.")]
ContractsOption = Annotated[str | None, typer.Option("--contracts-dir", help="Folder with further sensor contracts.")]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="Shipped weights by name, or a checkpoint file.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[Literal["float32", "bfloat16"] | None, typer.Option("--precision")]
BlockOption = Annotated[int | None, typer.Option("--block-px", help="Edge of a block, PAN pixels.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Threads per worker.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most this many scenes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerSinkOption = Annotated[str | None, typer.Option("--sink", help="Only scenes for this output catalog.")]
SceneArgument = Annotated[str, typer.Argument(metavar="SCENE", help="ITEM or COLLECTION/ITEM.")]


# --- the pipeline ---------------------------------------------------------------------------------------------------


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
    settings = _settings(
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
    _require_writable(json_file)
    settings = _on_device(settings)
    from pancrafter import steps

    outcomes = steps.run(settings, _line_reporter())
    code = SCENE_FAILED if any(outcome.failed for outcome in outcomes) else 0
    if json_file is not None:
        _write_json(json_file, _run_report(settings, outcomes, code))
    _print_run(settings, outcomes, _console(stderr=json_file == Path("-")))
    raise typer.Exit(code)


def _print_run(settings: Settings, outcomes: Sequence[Outcome], console: Console) -> None:
    from pancrafter.summary import catalog_href, print_refusals, print_summary, state_line

    if any(outcome.verdict != "refused" for outcome in outcomes):
        print_summary(console, outcomes, settings.sink)
        return
    print_refusals(console, outcomes)
    with _ledger_of(settings) as ledger:
        counts = ledger.counts(settings.sink)
    typer.echo(f"nothing to do: {state_line(counts)}", err=console.stderr)
    if counts.get("dead"):  # type: ignore[call-overload]  # State is a string
        hint = "see `pancrafter ledger list --state dead`; after a fix, `pancrafter ledger redrive`"
        typer.echo(hint, err=console.stderr)
    typer.echo(f"output catalog: {catalog_href(settings.sink)}", err=console.stderr)


def _run_report(settings: Settings, outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    from pancrafter.summary import catalog_href, outcomes_json

    with _ledger_of(settings) as ledger:
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
    settings = _settings(
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
        _print_json(made.model_dump(mode="json"))
    else:
        _print_plan(made)


def _print_plan(made: Plan) -> None:
    from pancrafter.summary import plan_table

    console = _console()
    typer.echo(f"{made.found} items found in {made.source}")
    if made.lines:
        console.print(plan_table(made), soft_wrap=False)
    if made.refusals:
        typer.echo(f"refused because: {_counted(made.refusals)}")
    if not made.scenes:
        typer.echo("nothing to do")
        return
    typer.echo(f"to sharpen: {made.scenes} scenes ({_counted(made.sensors)}) into {made.sink}")
    typer.echo(f"PAN size:   {_known(f'{made.mpx:.2f} Mpx', made.mpx_known, made.scenes)}")
    typer.echo(f"to read:    {_known(f'{made.read_bytes / 1e6:.1f} MB', made.read_bytes_known, made.scenes)}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda entry: -entry[1]))


def _known(text: str, known: int, total: int) -> str:
    """A figure with how many scenes it covers: unknown ones are not guessed."""
    if known == total:
        return text
    return f"{text}, known for {known} of {total} scenes" if known else "unknown (remote files)"


# --- two files ------------------------------------------------------------------------------------------------------


@app.command()
def sharpen(
    pan: Annotated[Path, typer.Argument(metavar="PAN", help="One-band file.")],
    ms: Annotated[list[Path], typer.Argument(metavar="MS...", help="One multi-band file, or one file per band.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="COG to write.")],
    *,
    sensor: Annotated[
        str | None, typer.Option("--sensor", help="Sensor contract or platform; default: from the files, else generic.")
    ] = None,
    method: Annotated[
        Literal["pan-crafter", "mtf-glp-fs"] | None, typer.Option("--method", help="Default: what the sensor allows.")
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
    workers: Annotated[int, typer.Option("--workers", help="Local Dask workers; 0: in this process.")] = 0,
    contracts_dir: ContractsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sharpen one PAN and MS pair into a COG."""
    settings = _settings(
        weights=weights,
        device=device,
        precision=precision,
        block_px=block_px,
        workers=workers,
        threads=threads or (os.cpu_count() if workers == 0 else None),
        contracts_dir=contracts_dir,
    )
    if method != "mtf-glp-fs":
        settings = _on_device(settings)
    from pancrafter.ingest import parse_georeference
    from pancrafter.pair import sharpen_pair

    frame = parse_georeference(assume_origin) if assume_origin else None
    with _pair_progress() as progress:
        made = sharpen_pair(
            pan,
            ms,
            out,
            settings,
            sensor=sensor,
            method=method,
            bands=_names(bands),
            georeference=frame,
            overwrite=overwrite,
            on_progress=progress,
        )
    _warn_of_guesses(made, sensor)
    if as_json:
        _print_json({**made.model_dump(mode="json"), "mpx_per_s": made.mpx_per_s})
    else:
        _print_pair(made)


def _warn_of_guesses(made: SharpenedPair, sensor: str | None) -> None:
    from pancrafter.pair import UNKNOWN_SENSOR
    from pancrafter.sensors import GENERIC

    if made.sensor == UNKNOWN_SENSOR and sensor != GENERIC:
        guessed = "sensor unknown, so generic MTF gains and band names were used"
        _note(f"warning: {guessed}; name it with --sensor (see `pancrafter sensors list`)")


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


@contextmanager
def _pair_progress() -> Iterator[Progress]:
    """A bar with megapixels per second and ETA, on a terminal; elsewhere a line per phase."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    described, rated = TextColumn("{task.description:>10}"), TextColumn("{task.fields[rate]}")
    with Progress(
        described, BarColumn(), rated, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}
        started: dict[str, float] = {}

        def advance(phase: Phase, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase], started[phase] = bars.add_task(phase, rate=""), time.perf_counter()
                if not console.is_terminal:
                    _note(phase)
            mpx_per_s = done / 1e6 / max(time.perf_counter() - started[phase], 1e-6)
            rate = f"{done / 1e6:.2f}/{total / 1e6:.2f} Mpx, {mpx_per_s:.3g} Mpx/s" if total > 1 else ""
            # a part that reports nothing in between moves to and fro until it is over
            bars.update(tasks[phase], total=total if total > 1 or done else None, completed=done, rate=rate)

        yield advance


# --- archives -------------------------------------------------------------------------------------------------------


@app.command()
def simulate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same pixels.")] = 0,
) -> None:
    """Write a small STAC archive of simulated scenes, with the truth beside it for evaluation."""
    from pancrafter.simulate.archive import sample_scenes, simulate_archive

    catalog = simulate_archive(directory, seed, on_scene=_counting_reporter(len(sample_scenes())))
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
    item_id: Annotated[str | None, typer.Option("--id", help="Id of the item; default: name of the PAN file.")] = None,
    acquired: Annotated[
        str | None, typer.Option("--datetime", metavar="TIME", help="Acquisition time; default: from the header.")
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
        _add_pairs(catalog, pairs, names, given={"PAN and MS": pan, "--sensor": sensor, "--id": item_id})
        return
    if pan is None or not ms or sensor is None:
        raise OptionError("expected --sensor NAME PAN MS..., or --pairs DIR; see `pancrafter catalog add --help`")
    if names:
        raise OptionError("--name: chooses among --pairs DIR, which was not given")
    from pancrafter.ingest import add_pair, parse_georeference

    frame = parse_georeference(assume_origin) if assume_origin else None
    added = add_pair(
        catalog,
        sensor,
        pan,
        ms,
        item_id=item_id,
        acquired=parse_moment("--datetime", acquired),
        bands=_names(bands),
        copy=copy,
        georeference=frame,
        contracts=_contracts(None),
    )
    _print_added(added)


def _add_pairs(catalog: Path, pairs: Path, names: list[str] | None, given: Mapping[str, object]) -> None:
    unfit = [option for option, value in given.items() if value is not None]
    if unfit:
        raise OptionError(f"{', '.join(unfit)}: not together with --pairs, whose descriptions say it")
    from pancrafter.ingest import add_pairs_directory

    result = add_pairs_directory(catalog, pairs, names, contracts=_contracts(None))
    for added in result.added:
        _print_added(added)
    for name, reason in result.skipped:
        _note(f"skipped {name}: {reason}")
    typer.echo(f"{len(result.added)} items in {catalog / 'catalog.json'}, {len(result.skipped)} skipped")
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
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8182,
) -> None:
    """Offer a static STAC catalog as a searchable STAC API until interrupted."""
    _require_free(host, port)
    from pancrafter.serve import serve_forever

    _note(f"STAC API over {directory} at http://{host}:{port} (Ctrl-C ends it)")
    serve_forever(directory, host, port)


def _require_free(host: str, port: int) -> None:
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as err:
        raise OptionError(f"{host}:{port} cannot be listened on ({err}); choose another --host or --port") from err


# --- sensors --------------------------------------------------------------------------------------------------------


@sensors_app.command("list")
def sensors_list(*, as_json: JsonOption = False, contracts_dir: ContractsOption = None) -> None:
    """List the sensors that are known."""
    from pancrafter.summary import sensor_table

    contracts = _contracts(contracts_dir)
    if as_json:
        _print_json([contract.model_dump(mode="json") for contract in contracts.values()])
    else:
        _console().print(sensor_table(contracts), soft_wrap=False)


@sensors_app.command("show")
def sensors_show(
    name: Annotated[str, typer.Argument(help="Name of a contract, or of a platform.")],
    *,
    as_json: JsonOption = False,
    contracts_dir: ContractsOption = None,
) -> None:
    """Print a sensor contract as YAML: also the pattern for a contract of your own."""
    from pancrafter.sensors import get_contract

    extra = _settings(contracts_dir=contracts_dir).contracts_dir
    content = get_contract(name, Path(extra) if extra else None).model_dump(mode="json")
    if as_json:
        _print_json(content)
        return
    import yaml

    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118), nl=False)


@sensors_app.command("check")
def sensors_check(
    item: Annotated[Path, typer.Argument(metavar="ITEM.json", help="A STAC item.")],
    *,
    as_json: JsonOption = False,
    contracts_dir: ContractsOption = None,
) -> None:
    """Say what discovery would make of a STAC item, from its metadata alone."""
    from pancrafter.catalog import judge_document

    verdict = judge_document(_read_object(item), str(item.absolute()), _contracts(contracts_dir))
    found = verdict_json(verdict)
    if as_json:
        _print_json(found)
        return
    typer.echo(f"{found['verdict']}: {found['reason']}")
    for name in ("sensor", "acquired", "pan", "ms"):
        if found.get(name):
            typer.echo(f"  {name}: {_inline(found[name])}")


def verdict_json(verdict: Scene | Refusal) -> dict[str, Any]:
    """The verdict on an item as the JSON that ``sensors check`` promises.

    ``pair``: one part of a scene spread over several items; ``defect``: no valid item at all.
    """
    from pancrafter.types import Refusal

    common = {"sensor": verdict.sensor, "collection": verdict.collection, "item": verdict.item_id}
    if isinstance(verdict, Refusal):
        kind = {"part_of_scene": "pair", "malformed": "defect"}.get(verdict.code, "refused")
        return {"verdict": kind, "reason": verdict.reason, "code": verdict.code, **common, "bands": [], "pan": None}
    reason = f"recognised as {verdict.sensor} with PAN and {len(verdict.bands)} MS bands; the file headers decide"
    return {
        "verdict": "eligible",
        "reason": reason,
        "code": None,
        **common,
        "bands": list(verdict.bands),
        "pan": verdict.pan.model_dump(mode="json"),
        "ms": [asset.model_dump(mode="json") for asset in verdict.ms],
        "acquired": verdict.acquired,
    }


def _inline(value: Any) -> str:  # Any: a value of the JSON above
    if isinstance(value, list):
        return ", ".join(_inline(entry) for entry in value)
    return f"{value['key']}[{value['band']}]" if isinstance(value, dict) else str(value)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise PancrafterError(f"{path}: not readable as JSON ({err}); expected a STAC item") from err
    if not isinstance(body, dict):
        raise PancrafterError(f"{path}: found a JSON {type(body).__name__}, expected a STAC item")
    return body


# --- ledger ---------------------------------------------------------------------------------------------------------


@ledger_app.command("list")
def ledger_list(
    *,
    states: Annotated[list[str] | None, typer.Option("--state", help="Only this state; may be given again.")] = None,
    sink: LedgerSinkOption = None,
    sensor: Annotated[str | None, typer.Option("--sensor", help="Only this sensor.")] = None,
    collection: Annotated[str | None, typer.Option("--collection", help="Only this source collection.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many scenes.")] = 200,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List scenes and where they stand."""
    from pancrafter.summary import ledger_table, row_json, state_line

    with _existing_ledger(state_dir) as ledger:
        rows = ledger.rows(
            sink=sink, states=_states(states), sensor=sensor, collection=collection, order="newest", limit=limit
        )
        counts = ledger.counts(sink)
    if as_json:
        _print_json([row_json(row) for row in rows])
        return
    if rows:
        _console().print(ledger_table(rows), soft_wrap=False)
    typer.echo(f"{len(rows)} listed; {state_line(counts)}")


@ledger_app.command("show")
def ledger_show(
    scene: SceneArgument,
    *,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print everything the ledger knows about one scene."""
    from pancrafter.summary import row_json, row_table

    with _existing_ledger(state_dir) as ledger:
        row = _one_row(ledger, scene, sink)
    if as_json:
        _print_json(row_json(row))
    else:
        _console().print(row_table(row), soft_wrap=False)


@ledger_app.command("why")
def ledger_why(
    scene: SceneArgument,
    *,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the history of one scene: how it came to its present state."""
    from pancrafter.summary import events_table

    with _existing_ledger(state_dir) as ledger:
        row = _one_row(ledger, scene, sink)
        events = ledger.why(row.key)
    if as_json:
        _print_json([event.model_dump(mode="json") for event in events])
        return
    typer.echo(f"{row.key} is {row.state.value}" + (f": {row.reason}" if row.reason else ""))
    _console().print(events_table(events), soft_wrap=False)


@ledger_app.command("redrive")
def ledger_redrive(
    scenes: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENE]...", help="ITEM or COLLECTION/ITEM; default: all that match.")
    ] = None,
    states: Annotated[
        list[str] | None, typer.Option("--state", help="States to take: dead and held unless given.")
    ] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only this refusal code or error class.")] = None,
    contains: Annotated[str | None, typer.Option("--contains", help="Only where the reason has this text.")] = None,
    sink: LedgerSinkOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Give scenes another try after their cause is mended; the next run takes them."""
    if scenes and (states or code or contains):
        raise OptionError("--state, --code and --contains choose among all scenes; name scenes or give these, not both")
    with _existing_ledger(state_dir) as ledger:
        if scenes:
            result = ledger.redrive([_one_row(ledger, scene, sink).key for scene in scenes])
        else:
            wanted = _states(states) or ["dead", "held"]
            result = ledger.redrive(sink=sink, states=wanted, code=code, reason_contains=contains)
    for key in result.redriven:
        typer.echo(f"eligible again: {key}")
    for key, reason in result.left:
        _note(f"left as it is: {key}: {reason}")
    typer.echo(f"{len(result.redriven)} redriven, {len(result.left)} left")
    if scenes and result.left:
        raise typer.Exit(SCENE_FAILED)


def _one_row(ledger: Ledger, scene: str, sink: str | None) -> LedgerRow:
    """The scene a person means by ``ITEM`` or ``COLLECTION/ITEM``."""
    collection, _, item_id = scene.rpartition("/")
    rows = ledger.find(scene, sink=sink)
    if not rows and collection:
        rows = [row for row in ledger.find(item_id, sink=sink) if row.key.collection == collection]
    if not rows:
        raise PancrafterError(f"no scene {scene!r} in ledger {ledger.url}; see `pancrafter ledger list`")
    if len(rows) > 1:
        found = "; ".join(f"{row.key} --sink {row.key.sink}" for row in rows)
        raise PancrafterError(f"{scene!r} means {len(rows)} scenes: {found}; name one of them in full")
    return rows[0]


def _states(names: Sequence[str] | None) -> list[str] | None:
    from pancrafter.ledger import State

    known = [state.value for state in State]
    for name in names or ():
        if name not in known:
            raise OptionError(f"--state: found {name!r}, expected one of {', '.join(known)}")
    return list(names) if names else None


@contextmanager
def _existing_ledger(state_dir: str | None) -> Iterator[Ledger]:
    """The ledger of a state folder; asking about it does not make one."""
    settings = _settings(state_dir=state_dir)
    file = Path(settings.state_dir).absolute() / "ledger.db"
    if settings.ledger_url is None and not file.is_file():
        raise OptionError(f"no ledger at {file}; give --state-dir of the run, or run first")
    with _ledger_of(settings) as ledger:
        yield ledger


def _ledger_of(settings: Settings) -> Ledger:
    from pancrafter.steps import open_ledger

    return open_ledger(settings)


# --- the rest -------------------------------------------------------------------------------------------------------


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


# --- options --------------------------------------------------------------------------------------------------------


def _settings(**given: Any) -> Settings:  # Any: values of all fields
    """Settings from options and environment; a value that does not fit is named as the user wrote it."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from pancrafter.settings import settings_from_environment

    try:
        return settings_from_environment(**given)
    except ValidationError as err:
        raise OptionError("; ".join(_fault(fault, given) for fault in err.errors())) from err
    except SettingsError as err:
        raise OptionError(f"environment: {err}; {_LISTS_AS_JSON}") from err


def _fault(fault: ErrorDetails, given: Mapping[str, Any]) -> str:
    field = str(fault["loc"][0]) if fault["loc"] else "settings"
    from_environment = given.get(field) is None
    place = f"PANCRAFTER_{field.upper()}" if from_environment else _option_name(field)
    hint = f" ({_LISTS_AS_JSON})" if from_environment and fault["type"] == "tuple_type" else ""
    return f"{place}: found {fault['input']!r}; {fault['msg'][:1].lower()}{fault['msg'][1:]}{hint}"


def _option_name(field: str) -> str:
    return _OPTION_NAMES.get(field, f"--{field.replace('_', '-')}")


def parse_moment(option: str, text: str | None, *, end_of_day: bool = False) -> datetime | None:
    """A time as ISO 8601 has it; with ``end_of_day``, a mere date means its last moment."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise OptionError(f"{option}: found {text!r}, expected a date like 2025-04-01 or 2025-04-01T10:00Z") from err
    if end_of_day and _DATE_ONLY.fullmatch(text):
        return moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return moment


def parse_bbox(text: str | None) -> tuple[float, ...] | None:
    """West, south, east, north as a person types them."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.replace(",", " ").split())
    except ValueError as err:
        raise OptionError(f"--bbox: found {text!r}, expected west,south,east,north in degrees") from err
    return (west, south, east, north)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def _contracts(contracts_dir: str | None) -> dict[str, Any]:
    from pancrafter.steps import contracts_of

    return dict(contracts_of(_settings(contracts_dir=contracts_dir)))


def _on_device(settings: Settings) -> Settings:
    """Settings with a device that exists here; what a Dask cluster elsewhere has is not known here."""
    if settings.device == "cpu":
        return settings
    if settings.dask_scheduler is not None:
        if settings.device == "auto":
            raise OptionError("--device auto: not with --dask-scheduler; name the device of its workers, cpu or cuda")
        return settings
    from pancrafter.model.devices import resolve_device

    return settings.model_copy(update={"device": resolve_device(settings.device)})


# --- output ---------------------------------------------------------------------------------------------------------


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _console(*, stderr: bool = False) -> Console:
    """A console that leaves room for tables where it is no terminal."""
    from rich.console import Console

    from pancrafter.summary import WIDTH

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def _line_reporter() -> Callable[[str], None]:
    """Prints what goes on, with the seconds since the start."""
    started = time.monotonic()

    def report(line: str) -> None:
        _note(f"[{time.monotonic() - started:6.1f} s] {line}")

    return report


def _counting_reporter(total: int) -> Callable[[str], None]:
    """Prints which of how many scenes is being made, and how long the rest will take."""
    started, count = time.monotonic(), 0

    def report(name: str) -> None:
        nonlocal count
        eta = (time.monotonic() - started) / count * (total - count) if count else None
        count += 1
        _note(f"{count}/{total} {name}" + (f", ETA {eta:.0f} s" if eta is not None else ""))

    return report


def _print_json(value: Any) -> None:  # Any: plain JSON
    typer.echo(json.dumps(value, indent=2))


def _require_writable(path: Path | None) -> None:
    """Find out before hours of work that their report cannot be written."""
    if path is None or path == Path("-"):
        return
    try:
        path.open("a").close()
    except OSError as err:
        raise OptionError(f"--json {path}: cannot be written ({err}); choose another file") from err


def _write_json(path: Path, value: Any) -> None:  # Any: plain JSON
    text = json.dumps(value, indent=2)
    if path == Path("-"):
        typer.echo(text)
    else:
        path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    app()
