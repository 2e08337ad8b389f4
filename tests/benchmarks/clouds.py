"""What clouds cost the ground beside them: they take most of a scene's range, and fits see them too.

    .venv/bin/python tests/benchmarks/clouds.py ../shared/data/pairs

Opaque clouds with soft borders are painted over a twentieth of each real pair, aligned in PAN and MS, so bright that
the ground keeps a fifth of the range (or as bright as DN go). Everything is then done as without them, one scale down,
where MS is the truth, and compared where no cloud is near. Gains are against the best classical method of the pair,
which sees the same clouds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from pancrafter import classical
from pancrafter.assess import BORDER_REDUCED_PX, reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import AS_SHARP_AS_MS, NETWORK, UPSAMPLING, classical_method, network_method, tile_of
from pancrafter.metrics import ergas
from pancrafter.model.names import DEFAULT_WEIGHTS
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import Pair, cropped, find_pair_files, read_pair, value_range
from pancrafter.sensors import load_contracts

Floats = NDArray[np.float32]

CLOUDY_SHARE = 0.05
BRIGHTNESS = 5
"""Range up to the clouds over that of the ground."""
AWAY_PX = 24
"""Distance from clouds of what is compared, pixels of the reduced PAN: more than any method reaches."""
LEAST_PX = 96
"""Least side of a reduced pair: smaller ones have no place away from clouds."""


def painted(pair: Pair, seed: int) -> tuple[Pair, Floats]:
    """The pair with clouds, and how opaque they are at each MS pixel (y, x), 0 to 1."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=pair.pan.shape), min(pair.pan.shape) / 20)
    border = np.quantile(field, 1 - CLOUDY_SHARE)
    soft = (np.quantile(field, 1 - CLOUDY_SHARE / 2) - border) / 2
    on_pan = np.clip((field - border) / soft + 0.5, 0, 1).astype(np.float32)
    rows, cols = (
        np.clip(np.rint(pair.ratio * np.arange(n) + (pair.ratio - 1) / 2).astype(int), 0, size - 1)
        for n, size in zip(pair.ms.shape[1:], pair.pan.shape, strict=True)
    )
    on_ms = gaussian_filter(on_pan, pair.ratio / 2)[np.ix_(rows, cols)]

    def clouded(image: NDArray[np.generic], opaque: Floats) -> NDArray[np.generic]:
        limits = value_range(image)
        bright = min(limits.low + BRIGHTNESS * (limits.high - limits.low), pair.dn_max)
        return np.rint((1 - opaque) * image + opaque * bright).astype(image.dtype)

    ms = np.stack([clouded(band, on_ms) for band in pair.ms])
    return replace(pair, pan=clouded(pair.pan, on_pan), ms=ms), on_ms


def errors(pair: Pair, network: NetworkSharpener, ground: NDArray[np.bool_]) -> dict[str, float] | None:
    """ERGAS of every method on the MS pixels that count, (y, x); None where the pair is too small."""
    reduced = reduce_tile(tile_of(pair), pair.mtfs, pair.pan_blur)
    if reduced is None or min(reduced.tile.pan.shape) < LEAST_PX:
        return None
    methods = [network_method(NETWORK, network), *map(classical_method, classical.METHODS)]
    counted = ground[tuple(slice(0, n) for n in reduced.tile.pan.shape)].copy()
    counted[:BORDER_REDUCED_PX] = counted[-BORDER_REDUCED_PX:] = False
    counted[:, :BORDER_REDUCED_PX] = counted[:, -BORDER_REDUCED_PX:] = False
    truth = reduced.truth[:, counted][..., None]
    made = {m.name: m.sharpen(reduced.tile, pair.mtfs, AS_SHARP_AS_MS)[:, counted][..., None] for m in methods}
    return {name: ergas(truth, image.clip(0, pair.dn_max), reduced.tile.ratio) for name, image in made.items()}


def main() -> None:
    """Print one line per pair and the means as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, contracts = load_checkpoint(options.weights), load_contracts()
    trained = {*checkpoint.training["images"]}
    print("| pair | range | clear: ERGAS | gain | clouds: ERGAS | gain | rise, ours | rise, best classical |")  # noqa: T201
    print("|---" * 8 + "|")  # noqa: T201
    rows = []
    for file in find_pair_files(options.pairs):
        if file.stem in trained:
            continue
        pair = cropped(read_pair(file, contracts, with_truth=False), 1024)
        cloudy, opaque = painted(pair, seed=0)
        ground = ~binary_dilation(opaque > 0, iterations=AWAY_PX)
        found = [errors(one, NetworkSharpener(checkpoint), ground) for one in (pair, cloudy)]
        if found[0] is None or found[1] is None:
            continue
        ours = [scores[NETWORK] for scores in found]
        best = [min(e for m, e in scores.items() if m not in (NETWORK, UPSAMPLING)) for scores in found]
        widths = [limits.high - limits.low for limits in map(value_range, (pair.pan, cloudy.pan))]
        gains = [1 - a / b for a, b in zip(ours, best, strict=True)]
        rows.append([*gains, ours[1] / ours[0] - 1, best[1] / best[0] - 1])
        print(  # noqa: T201
            f"| {pair.name} | {widths[1] / widths[0]:.1f} | {ours[0]:.3f} | {gains[0]:+.1%} | {ours[1]:.3f} | "
            f"{gains[1]:+.1%} | {rows[-1][2]:+.1%} | {rows[-1][3]:+.1%} |",
            flush=True,
        )
    mean = np.mean(rows, axis=0)
    print(f"| mean of {len(rows)} | | | {mean[0]:+.1%} | | {mean[1]:+.1%} | {mean[2]:+.1%} | {mean[3]:+.1%} |")  # noqa: T201


if __name__ == "__main__":
    main()
