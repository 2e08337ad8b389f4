"""Publishers that race, on the storage servers of `make stack`, in legs of some minutes.

``PYTHONPATH=tests .venv/bin/python tests/benchmarks/bench_publishers.py --items 10000``

Starts servers of its own, publishes into S3 and the STAC API, then counts: nothing lost, nothing twice. With ``--stack
FILE`` (the ``stack.env`` of ``python -m infra.stack up --storage-only``) and ``--progress FILE`` the race goes on where
the last leg was stopped by ``--seconds``. The last line is JSON; exit status 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from racing_publishers import Race, Times, faults, run

PROJECT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def stack(file: Path | None) -> Iterator[dict[str, str]]:
    """Addresses of a running stack, or of one that ends with this."""
    if file is not None:
        yield dict(line.split("=", 1) for line in file.read_text().splitlines())
        return
    command = [sys.executable, "-m", "infra.stack", "up", "--storage-only"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = {}
    for line in process.stdout:
        if line.startswith("# ready"):
            break
        name, _, value = line.strip().partition("=")
        found[name] = value
    try:
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument("--per-day", type=int, default=100, help="items of one day of acquisition")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--stack", type=Path)
    parser.add_argument("--progress", type=Path)
    options = parser.parse_args()
    legs = json.loads(options.progress.read_text()) if options.progress and options.progress.exists() else []
    before = [Times(**one) for leg in legs for one in leg["times"]]
    with stack(options.stack) as found, tempfile.TemporaryDirectory() as folder:
        os.environ.update({name: value for name, value in found.items() if name.startswith("AWS_")})
        race = Race(
            items=options.items,
            publishers=options.publishers,
            per_day=options.per_day,
            sink="s3://pancrafter/race",
            api=found["PANCRAFTER_CATALOG_URL"],
            folder=folder,
            seconds=options.seconds,
            done=tuple(legs[-1]["done"]) if legs else (),
        )
        times, seconds = run(race)
        done = [one.numbers[-1] + 1 if one.numbers else race.start_of(k) for k, one in enumerate(times)]
        legs.append({"seconds": seconds, "done": done, "times": [one.__dict__ for one in times]})
        if options.progress:
            options.progress.write_text(json.dumps(legs))
        report = summary(legs, options.publishers)
        complete = report["items"] == options.items
        if complete or not options.progress:
            report["faults"] = faults(race, before + times, lambda text: sys.stdout.write(text + "\n"))
        sys.stdout.write(json.dumps(report) + "\n")
        return 1 if report.get("faults") else 0


def summary(legs: list[dict], publishers: int) -> dict:
    all_times = [Times(**one) for leg in legs for one in leg["times"]]
    publications = sum(len(one.numbers) for one in all_times)
    items = len({number for one in all_times for number in one.numbers})
    seconds = sum(leg["seconds"] for leg in legs)
    return {
        "items": items,
        "publishers": publishers,
        "publications": publications,
        "seconds": round(seconds, 1),
        "items_per_s": round(items / seconds, 2),
        "s_per_item_catalog": round(sum(t.sink_s for t in all_times) / publications, 3),
        "s_per_item_api": round(sum(t.api_s for t in all_times) / publications, 3),
        "first_publisher_s_per_item_by_tenth_of_leg": [
            [round(s, 3) for s in leg["times"][0]["by_tenth_s"]] for leg in legs
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
