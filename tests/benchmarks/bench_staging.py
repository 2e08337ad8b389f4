"""Staging against the least it could cost: plain windowed reading plus Zarr writing of the same bytes.

    python tests/benchmarks/bench_staging.py [EDGE_PX ...]

Every figure is taken in a process of its own, in turn. ``plain`` is one thread that reads and writes, each
on its own clock: what it costs alone. ``moved`` leaves out what staging does beyond moving (co-registration, valid
share), ``staged`` is the whole step with two Dask threads. ``*_of_plain_cpu`` is the plain sum over the step's CPU
seconds, ``*_of_plain_wall`` the same of elapsed time, in which threads and overlap count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1024
RATIO = 4
ROUNDS = 3


def make_pair(folder: Path, edge: int) -> None:
    """PAN ``edge`` px square and four MS bands that show the same texture, tiled and deflated as vendors deliver."""
    import rasterio
    from scipy import ndimage

    rng = np.random.default_rng(1)
    tile = 1000 + 250 * ndimage.gaussian_filter(rng.normal(size=(2048, 2048)), 1.5, mode="wrap") / 0.19
    tile = tile.clip(100, 3500)
    coarse = ndimage.gaussian_filter(tile, 2.0, mode="wrap").reshape(512, 4, 512, 4).mean((1, 3))
    for name, count, size, gsd, source in (("pan", 1, edge, 0.5, tile), ("ms", 4, edge // RATIO, 2.0, coarse)):
        profile = {"driver": "GTiff", "count": count, "height": size, "width": size, "dtype": "uint16", "tiled": True}
        profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2, "crs": "EPSG:32633"}
        profile["transform"] = rasterio.transform.from_origin(5e5, 4e6, gsd, gsd)
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
            for _, window in target.block_windows(1):
                rows = np.arange(window.row_off, window.row_off + window.height) % len(source)
                cols = np.arange(window.col_off, window.col_off + window.width) % len(source)
                values = np.rint(source[np.ix_(rows, cols)]).astype(np.uint16)
                target.write(np.stack([values + 20 * band for band in range(count)]), window=window)


def plain(folder: Path, out: Path, edge: int) -> dict[str, float]:
    """Read windows of whole shards, write them and their masks to Zarr as the store has it; each on its own clock."""
    import rasterio
    import zarr

    from pancrafter.store import _CODECS

    group = zarr.open_group(str(out), mode="w")
    options: dict[str, Any] = {"compressors": _CODECS, "config": {"write_empty_chunks": True}}
    spent = dict.fromkeys(("read_cpu_s", "read_wall_s", "write_cpu_s", "write_wall_s"), 0.0)

    @contextmanager
    def clock(what: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent[f"{what}_wall_s"] += time.perf_counter() - wall
        spent[f"{what}_cpu_s"] += time.process_time() - cpu

    with rasterio.Env(GDAL_NUM_THREADS=1, GDAL_CACHEMAX=64 * 2**20):
        for name, count, size, shard in (("pan", 1, edge, BLOCK), ("ms", 4, edge // RATIO, BLOCK // RATIO)):
            with clock("write"):
                pixels = group.create_array(
                    name, shape=(count, size, size), dtype="uint16", shards=(count, shard, shard),
                    chunks=(1, shard // 2, shard // 2), **options,
                )  # fmt: skip
                valid = group.create_array(
                    f"{name}_valid", shape=(size, size), dtype="uint8", shards=(shard, shard),
                    chunks=(shard // 2, shard // 2), **options,
                )  # fmt: skip
            with rasterio.open(folder / f"{name}.tif", sharing=False) as source:
                for y, x in itertools.product(range(0, size, shard), repeat=2):
                    window = rasterio.windows.Window(x, y, min(shard, size - x), min(shard, size - y))
                    with clock("read"):
                        values = source.read(window=window)
                    rows, cols = slice(y, y + values.shape[1]), slice(x, x + values.shape[2])
                    with clock("write"):
                        pixels[:, rows, cols] = values
                        valid[rows, cols] = np.ones(values.shape[1:], np.uint8)
    return spent


def staged(folder: Path, out: Path, edge: int, *, measure: bool) -> None:
    """The pipeline's own step under Dask threads; without ``measure`` only its moving of pixels."""
    import dask

    from pancrafter import cube
    from pancrafter.alignment import NO_SHIFT
    from pancrafter.bands import MeasuredBands
    from pancrafter.sensors import get_contract
    from pancrafter.types import AssetRef, Scene

    if not measure:
        nothing = MeasuredBands(shifts=(NO_SHIFT,) * 4, mtf=None)
        cube.measure_bands = lambda *_a, **_k: nothing
        cube._valid_share = lambda *_a: 1.0
    bands = ("blue", "green", "red", "nir")
    scene = Scene(
        collection="bench", item_id=str(edge), sensor="spot-6", acquired="2026-01-01T00:00:00Z", bands=bands,
        pan=AssetRef(key="pan", href=str(folder / "pan.tif")), fingerprint="x", source_href="x.json",
        ms=tuple(AssetRef(key="ms", href=str(folder / "ms.tif"), band=n) for n in (1, 2, 3, 4)),
        geometry={"type": "Point", "coordinates": [0, 0]},
    )  # fmt: skip
    with dask.config.set(scheduler="threads", num_workers=2):
        cube.stage_scene(scene, get_contract("spot-6"), str(out), block_px=BLOCK, reach_px=192)


def _measure(kind: str, folder: Path, edge: int) -> dict[str, float]:
    """One run in this process, with imports and one tiny run of the same code done before the clock starts."""
    runs: dict[str, Callable[[Path, Path, int], dict[str, float] | None]] = {
        "plain": plain,
        "moved": lambda *given: staged(*given, measure=False),
        "staged": lambda *given: staged(*given, measure=True),
    }
    out = folder / f"{kind}.zarr"
    with tempfile.TemporaryDirectory() as small:
        make_pair(Path(small), BLOCK)
        runs[kind](Path(small), Path(small) / "warm.zarr", BLOCK)
    wall, cpu = time.perf_counter(), time.process_time()
    parts = runs[kind](folder, out, edge) or {}
    taken = parts | {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    taken["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shutil.rmtree(out)
    return taken


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(edges: list[int]) -> None:
    """Print one line per size: the best of a few rounds of each, and their ratios."""
    for edge in edges:
        with tempfile.TemporaryDirectory(prefix="bench-staging-") as scratch:
            folder = Path(scratch)
            make_pair(folder, edge)
            best: dict[str, dict[str, float]] = {}
            for _ in range(ROUNDS):
                for kind in ("plain", "moved", "staged"):
                    command = [sys.executable, __file__, "--one", kind, scratch, str(edge)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    if kind not in best or found["cpu_s"] < best[kind]["cpu_s"]:
                        best[kind] = found
            mib = (edge**2 + 4 * (edge // RATIO) ** 2) * 2 / 2**20
            line = {"edge_px": edge, "mib": round(mib)}
            line |= {f"{kind}_{name}": round(value, 2) for kind, each in best.items() for name, value in each.items()}
            for clock in ("cpu", "wall"):
                least = sum(best["plain"][f"{part}_{clock}_s"] for part in ("read", "write"))
                line |= {
                    f"{kind}_of_plain_{clock}": round(least / best[kind][f"{clock}_s"], 3)
                    for kind in ("moved", "staged")
                }
            _say(line)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _say(_measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("edges", metavar="EDGE_PX", type=int, nargs="*", default=[4096, 8192, 16384])
        main(**vars(parser.parse_args()))
