"""What the ledger costs as it grows: entering, the anti-join of 10,000 found items, and a claim.

``python tests/benchmarks/bench_ledger.py [LARGEST] [--url URL]`` prints one JSON line per size.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pancrafter.ledger import Ledger, Work
from pancrafter.types import AssetRef, Scene

SINK = "/data/sharpened"
FOUND = 10_000
CLAIMS = 200


def works(start: int, stop: int) -> Iterator[Work]:
    for number in range(start, stop):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("largest", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--url")
    options = parser.parse_args()
    url = options.url or f"sqlite:///{Path(tempfile.mkdtemp(prefix='ledger-')) / 'ledger.db'}"
    size = 0
    with Ledger(url) as ledger:
        for target in (10**3, 10**4, 10**5, 10**6):
            if target > options.largest:
                break
            started = time.perf_counter()
            ledger.record_found(SINK, works(size, target))
            entering = (time.perf_counter() - started) / (target - size)
            size = target
            step = max(1, size // FOUND)
            looked = [work for number in range(0, size, step) for work in works(number, number + 1)][:FOUND]
            started = time.perf_counter()
            counts = ledger.record_found(SINK, looked)
            free = [
                s for s in ledger.standing(SINK, [(w.scene.collection, w.scene.item_id) for w in looked]) if s.claimable
            ]
            join = time.perf_counter() - started
            assert counts.known == len(looked)
            rows = ledger.eligible(limit=CLAIMS, sink=SINK)
            started = time.perf_counter()
            leases = [ledger.claim(row.key, "bench", 900) for row in rows]
            claim = (time.perf_counter() - started) / len(leases)
            for lease in leases:
                assert lease is not None
                ledger.release(lease, "measured")
            report = {
                "scenes": size,
                "enter_ms": round(entering * 1e3, 3),
                "anti_join_items": len(looked),
                "anti_join_s": round(join, 2),
                "claim_ms": round(claim * 1e3, 2),
                "claimable": len(free),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
