"""Discovery against ground truth: a static catalog of 5,000 items over HTTP, and 10,000 items behind a STAC API.

    python tests/benchmarks/bench_discovery.py [STATIC_ITEMS] [API_ITEMS]

A hundredth of the static items is broken, a hundredth of all is linked twice; after the first look some arrive late.
Nothing may be missed and nothing found twice. Each look runs in a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PER_CHILD = 100
START = datetime(2025, 1, 1, tzinfo=UTC)
LATE = datetime(2026, 1, 1, tzinfo=UTC)


def item(number: int, updated: datetime) -> dict[str, Any]:
    """A WorldView-2 item with PAN and eight MS bands, as open data programmes publish them."""
    west, south = -170 + number % 340, -60 + number // 340 % 120
    ring = [[west, south], [west + 0.5, south], [west + 0.5, south + 0.5], [west, south + 0.5], [west, south]]
    names = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir08", "nir09")
    base = f"https://example.com/{number:06}"
    moment = START + timedelta(minutes=number)
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": f"scene-{number:06}", "collection": "bench", "links": [],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west, south, west + 0.5, south + 0.5],
        "properties": {"datetime": moment.isoformat(), "platform": "WV02", "updated": updated.isoformat()},
        "assets": {
            "pan_analytic": {"href": f"{base}-pan.tif", "eo:bands": [{"name": "P", "common_name": "pan"}]},
            "ms_analytic": {"href": f"{base}-ms.tif", "eo:bands": [{"name": n, "common_name": n} for n in names]},
        },
    }  # fmt: skip


def write_catalog(folder: Path, numbers: range, *, updated: datetime, broken: bool) -> int:
    """Children of a hundred items each, added to what is there; how many items were written broken."""
    root_path, damaged = folder / "catalog.json", 0
    root = json.loads(root_path.read_text()) if root_path.exists() else {"type": "Catalog", "id": "bench", "links": []}
    root |= {"stac_version": "1.0.0", "description": "benchmark"}
    for start in range(numbers.start, numbers.stop, PER_CHILD):
        child = folder / f"child-{start:06}"
        child.mkdir()
        links = []
        for number in range(start, min(start + PER_CHILD, numbers.stop)):
            spoil = broken and number % 100 == 7
            damaged += spoil
            body = "{ broken" if spoil else json.dumps(item(number, updated))
            (child / f"{number}.json").write_text(body)
            links += [{"rel": "item", "href": f"./{number}.json"}] * (2 if number % 100 == 3 else 1)
        body = {"type": "Catalog", "id": child.name, "stac_version": "1.0.0", "description": "x", "links": links}
        (child / "catalog.json").write_text(json.dumps(body))
        root["links"].append({"rel": "child", "href": f"./{child.name}/catalog.json"})
    root_path.write_text(json.dumps(root))
    return damaged


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """The folder over HTTP."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/catalog.json"
        finally:
            server.shutdown()


def look(source: str, changed_since: str | None) -> None:
    """Discover everything, in this process, and print what was found, how long it took and what it cost."""
    from pancrafter.catalog import discover
    from pancrafter.sensors import load_contracts
    from pancrafter.types import Scene

    contracts = load_contracts()
    began = time.perf_counter()
    since = datetime.fromisoformat(changed_since) if changed_since else None
    found = list(discover(source, contracts=contracts, changed_since=since))
    scenes = [verdict.item_id for verdict in found if isinstance(verdict, Scene)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = time.perf_counter() - began
    _say({"scenes": scenes, "refused": len(found) - len(scenes), "seconds": took, "peak_mib": peak})


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _ask(source: str, truth: set[str], what: str, changed_since: datetime | None = None) -> None:
    since = [changed_since.isoformat()] if changed_since else []
    command = [sys.executable, __file__, "--look", source, *since]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    scenes = answer.pop("scenes")
    counts = {"found": len(scenes), "missed": len(truth - set(scenes)), "twice": len(scenes) - len(set(scenes))}
    _say({"look": what, "expected": len(truth)} | counts | {"not_expected": len(set(scenes) - truth)} | answer)


def _names(numbers: range, *, broken: bool) -> set[str]:
    return {f"scene-{number:06}" for number in numbers if not (broken and number % 100 == 7)}


def main(static: int, api: int) -> None:
    """First look, late arrivals, second look; for a static catalog and for an API."""
    for kind, count in (("static catalog", static), ("STAC API", api)):
        with tempfile.TemporaryDirectory(prefix="bench-discovery-") as scratch:
            folder, broken = Path(scratch), kind == "static catalog"
            write_catalog(folder, range(count), updated=START, broken=broken)
            for change in ("first look", "late arrivals"):
                everything = range(count)
                if change == "late arrivals":
                    write_catalog(folder, range(count, count + PER_CHILD), updated=LATE, broken=False)
                    everything = range(count + PER_CHILD)
                truth = _names(range(count), broken=broken) | _names(range(count, everything.stop), broken=False)
                new = _names(range(count, everything.stop), broken=False)
                with _opened(folder, kind) as url:
                    _ask(url, truth, f"{kind}, {change}")
                    if new:
                        _ask(url, new, f"{kind}, only what is new", LATE - timedelta(days=1))


@contextmanager
def _opened(folder: Path, kind: str) -> Iterator[str]:
    from pancrafter.serve import serving

    with serving_files(folder) if kind == "static catalog" else serving(folder) as url:
        yield url


if __name__ == "__main__":
    if sys.argv[1:2] == ["--look"]:
        look(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("static", metavar="STATIC_ITEMS", type=int, nargs="?", default=5000)
        parser.add_argument("api", metavar="API_ITEMS", type=int, nargs="?", default=10_000)
        main(**vars(parser.parse_args()))
