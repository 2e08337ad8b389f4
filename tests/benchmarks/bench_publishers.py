"""Publishers that race, on the servers of `make stack`.

``PYTHONPATH=tests .venv/bin/python tests/benchmarks/bench_publishers.py --items 10000``

Starts a stack of its own, publishes into its S3 bucket and its STAC API, then counts: nothing lost, nothing twice.
Exit status 1 if anything is missing. The last line is JSON for reports.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from racing_publishers import Race, faults, run
from small_archive import add_scene


def start_stack(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A stack and the addresses that it prints."""
    add_scene(folder / "archive", "day-1", side_px=128)
    command = [sys.executable, "-m", "infra.stack", "up", "--archive", str(folder / "archive")]
    project = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = {}
    for line in process.stdout:
        if line.startswith("# ready"):
            return process, found
        name, _, value = line.strip().partition("=")
        found[name] = value
    raise SystemExit("the stack did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument("--per-day", type=int, default=100, help="items of one day of acquisition")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, found = start_stack(Path(folder))
        try:
            os.environ.update({name: value for name, value in found.items() if name.startswith("AWS_")})
            race = Race(
                items=options.items,
                publishers=options.publishers,
                per_day=options.per_day,
                sink="s3://pancrafter/race",
                api=found["PANCRAFTER_CATALOG_URL"],
                folder=folder,
            )
            times, seconds = run(race)
            counted = time.perf_counter()
            bad = faults(race, lambda text: sys.stdout.write(text + "\n"))
            report = {
                "items": race.items,
                "publishers": race.publishers,
                "publications": sum(one.count for one in times),
                "seconds": round(seconds, 1),
                "items_per_s": round(race.items / seconds, 2),
                "s_per_item_catalog": round(sum(t.sink_s for t in times) / sum(t.count for t in times), 3),
                "s_per_item_api": round(sum(t.api_s for t in times) / sum(t.count for t in times), 3),
                "s_per_item_catalog_by_tenth": [round(s, 3) for s in times[0].by_tenth_s],
                "count_s": round(time.perf_counter() - counted, 1),
                "faults": bad,
            }
            sys.stdout.write(json.dumps(report) + "\n")
            return 1 if bad else 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


if __name__ == "__main__":
    sys.exit(main())
