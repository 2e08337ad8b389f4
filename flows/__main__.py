"""``python -m flows``: one nightly run with Prefect's own local server, as ``make run`` calls it.

Without a source it makes the sample archive and works on that. Exit status 0: done or nothing to do; 1: scenes
failed; 2: nothing could be done. The scene that the sample archive damages on purpose does not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from flows.local_server import prefect_server
from pancrafter import discovery
from pancrafter.discovery import Discovery
from pancrafter.errors import PancrafterError
from pancrafter.heap import leave_cores_soon
from pancrafter.ledger import open_ledger
from pancrafter.options import parse_bbox, parse_moment, print_all_characters, settings_from
from pancrafter.runs import Run, given_up_outcome
from pancrafter.settings import Settings
from pancrafter.states import State
from pancrafter.steps import Outcome
from pancrafter.summary import print_next, print_summary, state_line, with_room

SAMPLE_ARCHIVE = "archive"


def main(arguments: list[str]) -> int:
    """Run, show the summary, and say how it ended."""
    leave_cores_soon()
    print_all_characters()
    options = _parse(arguments)
    console = with_room(Console(soft_wrap=True))
    try:
        settings = settings_from(
            source=options.source,
            sink=options.sink,
            state_dir=options.state_dir,
            since=parse_moment("--from", options.since),
            until=parse_moment("--to", options.until, end_of_day=True),
            bbox=parse_bbox(options.bbox),
        )
        if options.source is None and settings.source == SAMPLE_ARCHIVE:
            _make_sample(console)
        started = datetime.now(UTC)
        with open_ledger(settings) as ledger:
            found = discovery.discover(settings, ledger)
        outcomes = [given_up_outcome(row) for row in found.given_up]
        outcomes += _run_nightly(settings) if found.eligible else []
        if found.has_news:  # which the page of the nightly run, begun after this look, leaves out
            with open_ledger(settings) as ledger:
                Run(settings, ledger, partial(console.print, highlight=False), since=started).leave_report()
        if not found.eligible and not found.given_up:
            _say_nothing_to_do(console, settings, found)
            return 0
    except PancrafterError as error:
        console.print(f"[red]stopped[/]: {error}", highlight=False)
        return 2
    return _conclude(console, settings, outcomes)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument("--source", help="STAC API URL, static catalog URL, or catalog folder")
    parser.add_argument("--sink", help="folder or s3://bucket/prefix of the output catalog")
    parser.add_argument("--state-dir", help="folder of the ledger and of unfinished work")
    parser.add_argument("--from", dest="since", help="earliest acquisition time")
    parser.add_argument("--to", dest="until", help="latest acquisition time; a date means its end")
    parser.add_argument("--bbox", help="west,south,east,north in degrees")
    return parser.parse_args(arguments)


def _make_sample(console: Console) -> None:
    from pancrafter.simulate.archive import simulate_archive

    announce: Callable[[str], None] = lambda item: console.print(f"simulating {item}", highlight=False)  # noqa: E731
    simulate_archive(Path(SAMPLE_ARCHIVE), on_scene=announce)


def _run_nightly(settings: Settings) -> list[Outcome]:
    with prefect_server(Path(settings.state_dir) / "prefect") as own_server:
        from prefect.logging.handlers import APILogHandler

        from flows.area import ScenesFailedError, nightly
        from flows.tasks import create_gpu_limit

        if own_server:  # elsewhere the operator has set it
            create_gpu_limit()
        try:
            outcomes = nightly(settings.model_copy(update={"ledger_url": None}))  # which Prefect would show
        except ScenesFailedError as error:
            return error.outcomes
        finally:
            APILogHandler().flush()  # while there is still a server to take the last lines
    assert isinstance(outcomes, list)
    return outcomes


def _say_nothing_to_do(console: Console, settings: Settings, found: Discovery) -> None:
    with open_ledger(settings) as ledger:
        counts = ledger.counts(settings.sink)
    console.print(f"nothing to do: {state_line(counts)}", highlight=False)
    if found.refused:
        console.print(f"{len(found.refused)} refused in this search; see pancrafter ledger list --state refused")
    console.print(f"output catalog: {settings.sink}", highlight=False)
    print_next(console, held=counts[State.HELD] > 0, failed=counts[State.DEAD] > 0)


def _conclude(console: Console, settings: Settings, outcomes: list[Outcome]) -> int:
    from pancrafter.simulate.archive import damaged_scenes

    print_summary(console, outcomes, settings.sink)
    failed = {outcome.key for outcome in outcomes if outcome.failed}
    if settings.source == SAMPLE_ARCHIVE and failed and failed <= damaged_scenes():
        console.print("the sample archive damages one file on purpose; everything else is done", highlight=False)
        return 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
