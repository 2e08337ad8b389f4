"""``pancrafter bench``: what sharpening costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import DeviceOption, ThreadsOption, note, print_json, require_writable, write_json
from pancrafter.heap import usable_cores
from pancrafter.options import OptionError, split_names


@app.command()
def bench(
    *,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME,...", help="Some measures; --list names all.")
    ] = None,
    sizes: Annotated[str, typer.Option("--sizes", metavar="PX,...", help="Sides of the made-up scenes.")] = "2048,4096",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Budget of the end-to-end runs.")] = "2GiB",
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs of the short measures; the best counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report as JSON.")] = None,
    list_measures: Annotated[bool, typer.Option("--list", help="Name the measures and end.")] = False,
) -> None:
    """Measure model, engine, reading and writing, and all of it: speed, CPU time and peak memory, side by side."""
    from pancrafter.benchmark import MEASURES, Measure, run
    from pancrafter.model.devices import resolve_device

    if list_measures:
        for name, entry in MEASURES.items():
            typer.echo(f"{name:20} {entry.what}")
        return
    names = tuple(split_names(only) or MEASURES)
    if unknown := [name for name in names if name not in MEASURES]:
        raise OptionError(f"--only: no measure {unknown[0]!r}; choose of {', '.join(MEASURES)}")
    edges = _edges(sizes)
    require_writable(out, "--out")

    def say(measure: Measure) -> None:
        note(
            f"{measure.name:20} {measure.mpx:8.2f} Mpx {measure.wall_s:9.2f} s {measure.mpx_per_s:9.3f} Mpx/s "
            f"{measure.cpu_s:9.2f} CPU s {measure.mpx_per_cpu_s:8.3f} Mpx/CPU s {measure.peak_mib:7.0f} MiB"
        )

    found = run(
        names, edges, device=resolve_device(device or "cpu"), threads=threads or usable_cores(), repeat=repeat,
        memory=memory, on_measure=say,
    )  # fmt: skip
    report = found.model_dump(mode="json")
    if out is not None:
        write_json(out, report, "--out")
    if as_json:
        print_json(report)
        return
    for name in found.not_installed:
        note(f"{name}: not measured, the program is not installed ({MEASURES[name].what})")
    for title, ratio in found.ratios.items():
        typer.echo(f"{title:55} {ratio:6.2f}")


def _edges(sizes: str) -> tuple[int, ...]:
    try:
        edges = tuple(int(text) for text in sizes.split(","))
    except ValueError as err:
        raise OptionError(f"--sizes: found {sizes!r}, expected numbers like 2048,4096") from err
    if any(edge < 256 or edge % 64 for edge in edges):
        raise OptionError(f"--sizes: found {sizes!r}, expected multiples of 64 from 256")
    return edges
