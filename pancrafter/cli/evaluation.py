"""``pancrafter evaluate`` and ``misalignment``: tables of quality over pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    SCENE_FAILED,
    ContractsOption,
    DeviceOption,
    ThreadsOption,
    console_for_tables,
    note,
    require_writable,
    write_json,
)
from pancrafter.options import OptionError, contracts_from
from pancrafter.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from pancrafter.engine import NetworkSharpener
    from pancrafter.evaluate import Evaluation, Method, PairReport
    from pancrafter.pairs import Pair, Unreadable


@app.command()
def evaluate(
    pairs: Annotated[
        list[Path],
        typer.Argument(metavar="PAIRS...", help="Pairs, folders of them, folders of STAC catalogs, PanCollection."),
    ],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="pan-crafter, a classical method, or all (default); may be given again."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="Shipped weights by name, or a checkpoint file; may be given again."),
    ] = None,
    names: Annotated[
        str,
        typer.Option("--name", metavar="PATTERN", help="Only such pairs of a folder or catalog, like 'WV2_*'."),
    ] = "*",
    ratio: Annotated[
        int | None, typer.Option("--ratio", min=2, max=4, help="Degrade MS by this at reduced resolution.")
    ] = None,
    truth: Annotated[
        Literal["given", "wald"],
        typer.Option("--truth", help="given: where a pair brings its truth, use it; wald: degrade every pair."),
    ] = "given",
    max_side_px: Annotated[
        int, typer.Option("--max-side-px", min=64, help="Only the middle of larger pairs counts.")
    ] = 1024,
    full: Annotated[bool, typer.Option("--full/--no-full", help="Score at full resolution too.")] = True,
    adapt: Annotated[bool, typer.Option("--adapt", help="Also score each network adapted to the scene.")] = False,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help="Draw PAN, MS, the best classical method and networks, 1:1."),
    ] = None,
    sensor: Annotated[
        str | None, typer.Option("--sensor", help="wv3, wv2, qb or gf2: for PanCollection files; default: their name.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write every figure to this file; - is stdout.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    contracts_dir: ContractsOption = None,
) -> None:
    """Score our networks, cubic up-sampling and the classical methods on pairs, at reduced and full resolution."""
    require_writable(json_path)
    from pancrafter.evaluate import evaluate_all, summarise
    from pancrafter.model.devices import resolve_device
    from pancrafter.pairs import Unreadable

    contestants, networks, hashes = _methods(
        method or ["all"], weights, resolve_device(device or "auto"), threads, adapt=adapt
    )
    contracts = contracts_from(contracts_dir)
    if not networks and (adapt or weights):
        option = "--adapt" if adapt else "--weights"
        raise OptionError(
            f"{option}: is about the network, which --method does not name; add pan-crafter or leave it out"
        )
    reports: list[PairReport] = []
    failed: list[Unreadable] = []
    source = _pairs_of(pairs, names, sensor, contracts, with_truth=truth == "given")
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OptionError(f"--pictures {pictures}: cannot be made ({err}); choose another folder") from err
    options = {"max_side_px": max_side_px, "reduced_ratio": ratio, "full": full, "pictures": pictures}
    for report in evaluate_all(source, contestants, **options):
        if isinstance(report, Unreadable):
            failed.append(report)
            note(f"skipped {report.name}: {report.reason}")
        else:
            reports.append(report)
            note(f"{len(reports)} {report.name}")
    result = summarise(reports, failed, list(networks), hashes)
    if json_path != Path("-"):
        _print(result, list(networks))
    if json_path is not None:
        write_json(json_path, result.model_dump(mode="json"))
    if failed:
        raise typer.Exit(SCENE_FAILED)


@app.command()
def misalignment(
    pairs: Annotated[list[Path], typer.Argument(metavar="PAIRS...", help="npz pairs, or folders of them.")],
    *,
    weights: Annotated[str | None, typer.Option("--weights", help="Shipped weights by name, or a checkpoint.")] = None,
    names: Annotated[str, typer.Option("--name", metavar="PATTERN", help="Only such pairs of a folder.")] = "*",
    ratio: Annotated[int | None, typer.Option("--ratio", min=2, max=4, help="Degrade MS by this.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="OUT.png", help="Draw the curves.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the curves; - is stdout.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Inject shifts of 0 to 2 MS pixels between PAN and MS, and print what they cost every method."""
    require_writable(json_path)
    require_writable(plot, "--plot")
    from pancrafter.evaluate import NETWORK, network_method
    from pancrafter.misalignment import SERIES, markdown_table, measure, without_attention
    from pancrafter.misalignment import plot as draw
    from pancrafter.model.devices import resolve_device
    from pancrafter.pairs import Unreadable

    methods, networks, _ = _methods(["all"], [weights] if weights else None, resolve_device(device or "auto"), threads)
    sharpener = networks[NETWORK]
    if sharpener.checkpoint.network.config.attention != "none":
        methods.insert(1, network_method(f"{NETWORK}, CM3A off", without_attention(sharpener)))
    failed: list[str] = []

    def report(pair: Pair | Unreadable) -> None:
        if isinstance(pair, Unreadable):
            failed.append(pair.name)
            note(f"skipped {pair.name}: {pair.reason}")
        else:
            note(pair.name)

    source = _pairs_of(pairs, names, None, contracts_from(None), with_truth=False)
    curves = measure(source, methods, ratio=ratio, report=report)
    if json_path != Path("-"):
        for series in SERIES:
            typer.echo(f"{series}\n\n{markdown_table(curves, series)}\n")
    if json_path is not None:
        write_json(json_path, [curve.model_dump(mode="json") for curve in curves])
    if plot is not None:
        draw(curves, plot)
    if failed:
        raise typer.Exit(SCENE_FAILED)


def _methods(
    wanted: Sequence[str], weights: Sequence[str] | None, device: str, threads: int | None, *, adapt: bool = False
) -> tuple[list[Method], dict[str, NetworkSharpener], dict[str, str]]:
    """Contestants in table order, the sharpeners of those that are networks, and the hashes of their weights."""
    from pancrafter.classical import METHODS
    from pancrafter.engine import NetworkSharpener
    from pancrafter.evaluate import NETWORK, classical_method, network_method
    from pancrafter.model.devices import use_threads
    from pancrafter.model.names import DEFAULT_WEIGHTS
    from pancrafter.model.weights import load_checkpoint

    asked = [name.strip() for entry in wanted for name in entry.split(",")]
    use_threads(threads)
    chosen = dict.fromkeys(n for name in asked for n in ((NETWORK, *METHODS) if name == "all" else (name,)))
    methods: list[Method] = []
    networks: dict[str, NetworkSharpener] = {}
    hashes: dict[str, str] = {}
    for name in chosen:
        if name != NETWORK:
            methods.append(classical_method(name))
            continue
        for one in weights or [DEFAULT_WEIGHTS]:
            checkpoint = load_checkpoint(one)
            label = NETWORK if len(weights or [one]) == 1 else f"{NETWORK}/{checkpoint.name}"
            if label in networks:
                raise OptionError(f"--weights: two files are called {checkpoint.name}; rename one")
            sharpener = NetworkSharpener(checkpoint, device)
            methods.append(network_method(label, sharpener))
            networks[label] = sharpener
            hashes[label] = checkpoint.sha256
            if adapt:
                from pancrafter.adapt import adapted_method

                methods.append(adapted_method(f"{label}+adapt", sharpener))
                networks[f"{label}+adapt"] = sharpener
    return methods, networks, hashes


def _pairs_of(
    paths: Sequence[Path], names: str, sensor: str | None, contracts: Mapping[str, Any], *, with_truth: bool
) -> Iterator[Pair | Unreadable]:
    from pancrafter.errors import PancrafterError
    from pancrafter.pair_files import pair_name
    from pancrafter.pairs import Unreadable, catalog_pairs, find_pair_files, is_catalog, read_pair
    from pancrafter.pancollection import is_pancollection, read_test_pairs

    for path in paths:
        try:
            if is_catalog(path):
                yield from catalog_pairs(path, contracts, names)
                continue
            if is_pancollection(path):
                yield from read_test_pairs(path, sensor)
                continue
            files = find_pair_files(path, names)
        except PancrafterError as err:
            yield Unreadable(str(path), str(err))
            continue
        for file in files:
            try:
                yield read_pair(file, contracts, with_truth=with_truth)
            except PancrafterError as err:
                yield Unreadable(pair_name(file), str(err))


_COLUMNS = {
    "ergas": ("ERGAS", ".3f"),
    "sam_deg": ("SAM", ".3f"),
    "q2n": ("Q2n", ".4f"),
    "scc": ("SCC", ".4f"),
    "psnr_db": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "d_lambda": ("D_λ", ".4f"),
    "d_s": ("D_s", ".4f"),
    "hqnr": ("HQNR", ".4f"),
    "aligned_hqnr": ("HQNR al.", ".4f"),
    "consistency_ergas": ("cons.", ".3f"),
}


def _print(result: Evaluation, networks: Sequence[str]) -> None:
    console = console_for_tables()
    if networks:
        console.print(_scene_table(result.pairs, networks))
    console.print(_mean_table(result))
    for group, standings in {"all": result.summary, **result.summary_by_grade}.items():
        for network, standing in standings.items():
            console.print(
                f"{network}, {group} ({standing.pairs}): mean ERGAS {standing.gain_of_mean_ergas:+.1%} better than the "
                f"best classical of each pair; won by ERGAS {standing.won_ergas:.0%}, by SAM {standing.won_sam:.0%}, "
                f"both {standing.won_both:.0%}",
                soft_wrap=True,
                markup=False,
            )


def _scene_table(reports: Sequence[PairReport], networks: Sequence[str]) -> Table:
    """Per pair, reduced resolution: each network against the best classical method of that pair."""
    from rich import box
    from rich.table import Table

    table = Table(title="reduced resolution, by pair", box=box.SIMPLE_HEAD)
    for header in ("pair", "ratio", "shift px", "MTF half, shape"):
        table.add_column(header)
    for network in networks:
        table.add_column(f"{network}\nERGAS / SAM", justify="right")
    table.add_column("best classical\nERGAS / SAM", justify="right")
    table.add_column("gain", justify="right")
    for report in reports:
        shift = max(max(abs(y), abs(x)) for y, x in report.band_shift_yx)
        mtf = "-" if report.mtf is None else f"{report.mtf.half:.2f}, {report.mtf.shape:.1f}"
        table.add_row(report.name, str(report.reduced_ratio), f"{shift:.2f}", mtf, *_scene_cells(report, networks))
    return table


def _scene_cells(report: PairReport, networks: Sequence[str]) -> list[str]:
    best = report.best_classical()
    if report.reduced is None:
        return [*("-" for _ in networks), "too small" if report.truth == "none" else "-", "-"]
    ours = [report.reduced[name] for name in networks]
    cells = [f"{score.ergas:.3f} / {score.sam_deg:.3f}" for score in ours]
    if best is None:
        return [*cells, "-", "-"]
    theirs, gain = report.reduced[best], report.gain(networks[0])
    return [*cells, f"{theirs.ergas:.3f} / {theirs.sam_deg:.3f} ({best})", "-" if gain is None else f"{gain:+.1%}"]


def _mean_table(result: Evaluation) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=f"means over {counted(len(result.pairs), 'pair')}", box=box.SIMPLE_HEAD)
    table.add_column("method")
    for header, _ in _COLUMNS.values():
        table.add_column(header, justify="right")
    for method, scores in result.means.items():
        values = ((scores[field], form) for field, (_, form) in _COLUMNS.items())
        table.add_row(method, *("-" if value is None else format(value, form) for value, form in values))
    return table
