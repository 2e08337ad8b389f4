"""How well a plan foretells a run, and what a second Dask worker brings.

    python tests/benchmarks/bench_orchestration.py plan [ARCHIVE]
    python tests/benchmarks/bench_orchestration.py scaling

``plan``: the sample archive once, so that rates are known, then planned and run again into another output catalog.
``scaling``: the same scene with one and with two local workers of one thread each, in turn. One JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from pancrafter import runs
from pancrafter.ledger import open_ledger
from pancrafter.plan import make_plan
from pancrafter.settings import Settings
from pancrafter.states import LedgerRow

REPEATS = 3


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def rows_after(settings: Settings) -> list[LedgerRow]:
    """Run, and return the scenes that were finished in the output catalog of the settings."""
    runs.run(settings, lambda _: None)
    with open_ledger(settings) as ledger:
        return [row for row in ledger.rows(sink=settings.sink) if row.state == "confirmed"]


def plan(archive: Path | None, folder: Path) -> None:
    if archive is None:
        from pancrafter.simulate.archive import simulate_archive

        archive = folder / "archive"
        simulate_archive(archive)
    settings = Settings(source=str(archive), sink=str(folder / "first"), state_dir=str(folder / "state"), workers=0)
    known = rows_after(settings)
    again = settings.model_copy(update={"sink": str(folder / "second")})
    ahead = make_plan(again.model_copy(update={"ids": tuple(row.key.item_id for row in known)}))
    measured = rows_after(again)
    for what, foretold, found in (
        ("bytes of pixels", ahead.pixel_bytes, sum(row.measures["bytes_read"] for row in measured)),
        ("seconds of work", ahead.seconds, sum(row.measures["seconds"] for row in measured)),
        ("seconds of sharpening", ahead.sharpen_seconds, sum(row.measures["sharpen_seconds"] for row in measured)),
    ):
        assert foretold is not None
        say({"what": what, "planned": round(foretold, 2), "measured": round(found, 2), "error": foretold / found - 1})


def scaling(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from small_archive import add_scene

    add_scene(folder / "source", "scene", side_px=1536)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(REPEATS):
        for workers, taken in seconds.items():
            place = folder / f"{workers}-{repeat}"
            settings = Settings(
                source=str(folder / "source"),
                sink=str(place / "sink"),
                state_dir=str(place / "state"),
                workers=workers,
                block_px=256,
            )
            (row,) = rows_after(settings)
            taken.append(row.measures["sharpen_seconds"])
    one, two = (statistics.median(taken) for taken in seconds.values())
    say({"what": "sharpening", "one worker, s": one, "two workers, s": two, "speed-up": one / two, "all": seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "scaling"])
    parser.add_argument("archive", type=Path, nargs="?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if options.what == "plan":
            plan(options.archive, Path(folder))
        else:
            scaling(Path(folder))


if __name__ == "__main__":
    main()
