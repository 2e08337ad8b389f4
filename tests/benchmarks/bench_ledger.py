"""What the ledger costs as it grows: entering, the anti-join of 10,000 found items, and a claim.

    python tests/benchmarks/bench_ledger.py [LARGEST] [--postgres | --url URL] >> ledger.jsonl
    python tests/benchmarks/bench_ledger.py --plot docs/images/ledger.svg < ledger.jsonl

One JSON line per size from 10^3 to LARGEST. ``--postgres`` starts a private PostgreSQL with its default settings: every
claim waits for the disk, as with SQLite.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pwd
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pancrafter.ledger import Ledger
from pancrafter.ports import free_port
from pancrafter.states import Work
from pancrafter.types import AssetRef, Scene

SINK = "/data/sharpened"
FOUND = 10_000
CLAIMS = 200
SIZES = (10**3, 10**4, 10**5, 10**6)
LIMITS = {"anti_join_s": 5.0, "claim_ms": 20.0}
"""What the ledger promises at its largest."""


def works(numbers: Sequence[int]) -> Iterator[Work]:
    for number in numbers:
        scene = Scene(
            collection=f"collection-{number % 7}",
            item_id=f"scene-{number:08d}",
            sensor="geoeye-1",
            acquired=f"20{number % 25:02d}-05-{1 + number % 28:02d}T10:00:00Z",
            pan=AssetRef(key="pan", href=f"s3://archive/{number}/pan.tif"),
            ms=tuple(AssetRef(key="ms", href=f"s3://archive/{number}/ms.tif", band=band) for band in (1, 2, 3, 4)),
            bands=("blue", "green", "red", "nir"),
            fingerprint=f"{number:064x}",
            source_href=f"https://stac.example.org/items/{number}",
            geometry={"type": "Point", "coordinates": [0, 0]},
        )
        yield Work(scene=scene, recipe="r", output_item_id=f"out-{number}")


def measure(url: str, largest: int) -> None:
    """Grow one ledger and print what each size costs."""
    size = 0
    with Ledger(url) as ledger:
        for target in (target for target in SIZES if target <= largest):
            started = time.perf_counter()
            ledger.record_found(SINK, works(range(size, target)))
            entering = (time.perf_counter() - started) / (target - size)
            size = target
            join, found = _anti_join(ledger, size)
            claims = _claims(ledger)
            report = {
                "database": sa.make_url(url).get_backend_name(),
                "scenes": size,
                "enter_ms": round(entering * 1e3, 3),
                "anti_join_items": found,
                "anti_join_s": round(join, 2),
                "claim_ms": round(sorted(claims)[len(claims) // 2] * 1e3, 2),
                "slowest_claim_ms": round(max(claims) * 1e3, 2),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()


def _anti_join(ledger: Ledger, size: int) -> tuple[float, int]:
    """Seconds from a search's result to the scenes that may be claimed, as a discovery does it; and how many items."""
    looked = list(works(range(0, size, max(1, size // FOUND))[:FOUND]))
    started = time.perf_counter()
    counts = ledger.record_found(SINK, looked)
    keys = [(work.scene.collection, work.scene.item_id) for work in looked]
    free = [row for row in ledger.standing(SINK, keys) if row.claimable]
    seconds = time.perf_counter() - started
    assert counts.known == len(free) == len(looked)
    return seconds, len(looked)


def _claims(ledger: Ledger) -> list[float]:
    seconds = []
    for row in ledger.rows(sink=SINK, states=["eligible"], limit=CLAIMS):
        started = time.perf_counter()
        lease = ledger.claim(row.key, "bench", 900, recipe=row.recipe or "")
        seconds.append(time.perf_counter() - started)
        assert lease is not None
        ledger.release(lease, "measured")
    return seconds


@contextlib.contextmanager
def private_postgres() -> Iterator[str]:
    """SQLAlchemy URL of a server that lives in a temporary folder."""
    from infra.stack import postgres_programs

    programs = postgres_programs()
    assert programs is not None, "no PostgreSQL here: `make services`"
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ledger-") as scratch:
        if user is not None:
            owner = pwd.getpwnam(user)
            os.chown(scratch, owner.pw_uid, owner.pw_gid)
        how: dict[str, Any] = {"user": user, "group": user, "cwd": "/", "stdout": subprocess.DEVNULL}
        subprocess.run([programs / "initdb", "-D", scratch, "-U", "postgres"], check=True, **how)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", ""]
        server = subprocess.Popen([programs / "postgres", "-D", scratch, *options], stderr=subprocess.DEVNULL, **how)
        try:
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False).returncode:
                assert server.poll() is None, "PostgreSQL does not start"
                time.sleep(0.1)
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(60)


def plot(reports: Sequence[dict[str, Any]]) -> str:
    """Anti-join and claim against the size of the ledger, both axes logarithmic, as SVG."""
    colours = {"sqlite": "#0072b2", "postgresql": "#d55e00"}
    panels = [("anti_join_s", "anti-join of 10,000 items, s"), ("claim_ms", "claim, ms")]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 300" font-family="sans-serif" font-size="12">']
    parts += ['<rect width="760" height="300" fill="white"/>']
    for panel, (key, title) in enumerate(panels):
        left, limit = 60 + panel * 370, LIMITS[key]
        low, high = math.log10(limit) - 2.5, math.log10(limit) + 0.3

        def place(scenes: float, value: float, left: int = left, low: float = low, high: float = high) -> str:
            x = left + (math.log10(scenes) - 3) / 3 * 290
            return f"{x:.1f},{250 - (math.log10(value) - low) / (high - low) * 210:.1f}"

        edge = [place(SIZES[0], limit), place(SIZES[-1], limit)]
        parts += [f'<text x="{left}" y="24" font-weight="bold">{title}</text>']
        parts += [f'<polyline points="{" ".join(edge)}" stroke="#999" stroke-dasharray="4" fill="none"/>']
        parts += [f'<text x="{left}" y="{float(edge[0].split(",")[1]) - 4:.0f}" fill="#666">limit {limit:g}</text>']
        for power in (3, 4, 5, 6):
            x = place(10**power, limit).split(",")[0]
            parts += [f'<text x="{x}" y="272" text-anchor="middle">10{"⁰¹²³⁴⁵⁶"[power]}</text>']
        for exponent in range(math.ceil(low), math.floor(high) + 1):
            y = place(SIZES[0], 10**exponent).split(",")[1]
            parts += [f'<text x="{left - 8}" y="{y}" text-anchor="end">{10**exponent:g}</text>']
            parts += [f'<line x1="{left}" x2="{left + 290}" y1="{y}" y2="{y}" stroke="#eee"/>']
        for database, colour in colours.items():
            points = [(r["scenes"], r[key]) for r in reports if r["database"] == database and r[key]]
            line = " ".join(place(*point) for point in points)
            parts += [f'<polyline points="{line}" stroke="{colour}" stroke-width="2" fill="none"/>']
            for x, y in (place(*point).split(",") for point in points):
                parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>']
    for number, (database, colour) in enumerate(colours.items()):
        parts += [f'<text x="{300 + number * 90}" y="294" fill="{colour}">{database}</text>']
    parts += ['<text x="60" y="294">scenes in the ledger</text>', "</svg>"]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("largest", type=int, nargs="?", default=SIZES[-1])
    parser.add_argument("--url", help="an empty ledger's database")
    parser.add_argument("--postgres", action="store_true", help="start a private PostgreSQL")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the lines that come in, and measure nothing")
    options = parser.parse_args()
    if options.plot:
        options.plot.write_text(plot([json.loads(line) for line in sys.stdin]))
    elif options.postgres:
        with private_postgres() as url:
            measure(url, options.largest)
    else:
        with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
            measure(options.url or f"sqlite:///{folder}/ledger.db", options.largest)


if __name__ == "__main__":
    main()
