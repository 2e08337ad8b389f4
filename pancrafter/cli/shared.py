"""What the commands share: options, exit codes, and how results and errors are printed."""

from __future__ import annotations

import functools
import inspect
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pancrafter.errors import PancrafterError
from pancrafter.options import OptionError, parse_bbox, parse_moment, require_apart, settings_from, validated

if TYPE_CHECKING:
    from rich.console import Console

    from pancrafter.settings import Settings

SCENE_FAILED = 1
NOTHING_WORKED = 2
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what stops containers and services, and a terminal that is closed."""
INTERRUPTED = frozenset(128 + number for number in _ENDING_SIGNALS)
"""Exit codes of a program that was asked to end, as shells have them."""


class Commands(TyperGroup):
    """Turns deliberate errors into one line and an exit code; every other error is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # Any: typer's own signature
        """Run the command that was asked for."""
        try:
            with _noticed_interrupts():
                return super().invoke(ctx)
        except PancrafterError as error:
            note(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(NOTHING_WORKED if error.kind in ("setup", "system") else SCENE_FAILED) from None
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(128 + (_signals_seen[-1] if _signals_seen else signal.SIGINT)) from None


_signals_seen: list[int] = []


@contextmanager
def _noticed_interrupts() -> Iterator[None]:
    """What asks the program to end raises KeyboardInterrupt inside, so that all is left as after Ctrl-C.

    It is remembered too: libraries swallow it in callbacks and in imports. Signals that somebody else handles, or that
    are ignored as by ``nohup``, stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _signals_seen.append(number)
        signal.default_int_handler(number, frame)

    _signals_seen.clear()
    usual = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    ours = [number for number, handler in usual.items() if handler in (signal.default_int_handler, signal.SIG_DFL)]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def heed_interrupt() -> None:
    """Raise an interrupt that was swallowed once more; for what is called while work goes on.

    Raises:
        KeyboardInterrupt: There was one.
    """
    if _signals_seen:
        raise KeyboardInterrupt


def sink_name(sink: str | None) -> str | None:
    """A sink as settings, and so the ledger, spell it."""
    return None if sink is None else settings_from(sink=sink).sink


# Options that several commands share. None means not given: then PANCRAFTER_<NAME> or the default of Settings counts,
# which the help repeats: importing it would make the help slow.
SourceOption = Annotated[
    str | None,
    typer.Option("--source", show_default="archive", help="STAC API URL, static catalog URL, or folder of a catalog."),
]
SinkOption = Annotated[
    str | None,
    typer.Option("--sink", show_default="output", help="Folder or s3://bucket/prefix of the output catalog."),
]
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
AoiOption = Annotated[
    str | None, typer.Option("--aoi", metavar="FILE", help="GeoJSON file; only scenes that touch its geometries.")
]
IdsOption = Annotated[str | None, typer.Option("--ids", metavar="FILE", help="Text file with one item id per line.")]
MadeWithOption = Annotated[
    str | None, typer.Option("--made-with", metavar="MODEL", help="Only what these weights made: name or sha256.")
]
StateDirOption = Annotated[
    str | None,
    typer.Option("--state-dir", show_default="state", help="Folder of the ledger and of unfinished work."),
]
ContractsOption = Annotated[str | None, typer.Option("--contracts-dir", help="Folder with further sensor contracts.")]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", show_default="open-compact", help="Shipped weights by name, or a checkpoint file."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option("--precision", show_default="float32", help="Numbers the network computes with."),
]
BlockOption = Annotated[int | None, typer.Option("--block-px", help="Edge of a block, PAN pixels.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads per worker.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most this many scenes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerSinkOption = Annotated[
    str | None, typer.Option("--sink", help="Only scenes for this output catalog.", callback=sink_name)
]
SceneArgument = Annotated[str, typer.Argument(metavar="SCENE", help="ITEM or COLLECTION/ITEM.")]


# --- options --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What a command is about: the places, the part of the archive, and how scenes would be sharpened."""

    source: SourceOption = None
    sink: SinkOption = None
    since: FromOption = None
    until: ToOption = None
    bbox: BboxOption = None
    aoi: AoiOption = None
    collections: CollectionOption = None
    ids: IdsOption = None
    made_with: MadeWithOption = None
    state_dir: StateDirOption = None
    contracts_dir: ContractsOption = None
    weights: WeightsOption = None
    precision: PrecisionOption = None
    limit: LimitOption = None

    def settings(self, **more: Any) -> Settings:  # Any: values of further fields
        """The settings that the options ask for.

        Raises:
            OptionError: A value does not fit, or source and sink are the same place.
            SelectionError: A file of the selection is of no use, or nothing was made with the weights.
        """
        from pancrafter.selection import Selection

        settings = settings_from(
            source=self.source,
            sink=self.sink,
            since=parse_moment("--from", self.since),
            until=parse_moment("--to", self.until, end_of_day=True),
            bbox=parse_bbox(self.bbox),
            aoi=self.aoi,
            collections=tuple(self.collections) if self.collections else None,
            state_dir=self.state_dir,
            contracts_dir=self.contracts_dir,
            weights=self.weights,
            precision=self.precision,
            limit=self.limit,
            **more,
        )
        require_apart(settings)
        chosen = {"since": settings.since, "until": settings.until, "ids_file": self.ids, "made_with": self.made_with}
        return validated(Selection, chosen).applied_to(settings)


def takes(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some dataclasses; it gets their instances as its first arguments."""
    fields = {group: inspect.signature(group, eval_str=True).parameters for group in groups}

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        options = [*(field for group in groups for field in fields[group].values()), *own]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:  # Any: values of all options
            filled = [group(**{name: given.pop(name) for name in fields[group]}) for group in groups]
            command(*filled, **given)

        keywords = [option.replace(kind=option.KEYWORD_ONLY) for option in options]
        wrapped.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # what typer reads
        wrapped.__annotations__ = {option.name: option.annotation for option in keywords}
        return wrapped

    return wrap


# --- output ---------------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Say something that is no result: progress, warnings, errors."""
    typer.echo(text, err=True)


def console_for_tables(*, stderr: bool = False) -> Console:
    """A console that leaves room for tables where it is no terminal."""
    from rich.console import Console

    from pancrafter.summary import with_room

    return with_room(Console(stderr=stderr, highlight=False))


def line_reporter() -> Callable[[str], None]:
    """Prints what goes on, with the seconds since the start."""
    started = time.monotonic()

    def report(line: str) -> None:
        note(f"[{time.monotonic() - started:6.1f} s] {line}")

    return report


def counting_reporter(total: int) -> Callable[[str], None]:
    """Prints which of how many scenes is being made, and how long the rest will take."""
    started, count = time.monotonic(), 0

    def report(name: str) -> None:
        nonlocal count
        eta = (time.monotonic() - started) / count * (total - count) if count else None
        count += 1
        note(f"{count}/{total} {name}" + (f", ETA {eta:.0f} s" if eta is not None else ""))

    return report


def print_version() -> None:
    """Print version, and commit where that is known."""
    from pancrafter.version import code_commit, code_version

    commit = code_commit()
    typer.echo(f"pancrafter {code_version()}" + (f", commit {commit}" if commit else ""))


def print_json(value: Any) -> None:  # Any: plain JSON
    """Print a result for programs."""
    typer.echo(json.dumps(value, indent=2))


def require_writable(path: Path | None, option: str = "--json") -> None:
    """Find out before hours of work that their report cannot be written; no empty file is left if they fail."""
    if path is None or path == Path("-"):
        return
    new = not path.exists()
    try:
        path.open("a").close()
        if new:
            path.resolve().unlink()  # not a link to it
    except OSError as err:
        raise _unwritable(option, path, err) from err


def _unwritable(option: str, path: Path, err: OSError) -> OptionError:
    return OptionError(f"{option} {path}: cannot be written ({err}); choose another file")


def write_json(path: Path, value: Any, option: str = "--json") -> None:  # Any: plain JSON
    """Write a result for programs to a file, or to stdout for ``-``."""
    text = json.dumps(value, indent=2)
    if path == Path("-"):
        typer.echo(text)
        return
    try:
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as err:
        raise _unwritable(option, path, err) from err


def require_catalog(settings: Settings) -> None:
    """Tell a place without an output catalog from a catalog that holds nothing of what was asked for.

    Raises:
        OptionError: There is no catalog at the sink.
    """
    if missing := missing_catalog(settings):
        raise OptionError(missing)


def missing_catalog(settings: Settings) -> str | None:
    """What there is to say of a sink without a catalog."""
    from pancrafter.publish import StaticSink

    sink = StaticSink(settings.sink)
    there = sink.store.read("catalog.json") is not None
    return None if there else f"no catalog at {sink.catalog_href}; give --sink of the run, or run first"
