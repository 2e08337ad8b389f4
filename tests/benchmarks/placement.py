"""Simulated scenes at full resolution against their truth: what errors of measured shifts cost, and classical methods.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/placement.py --scenes 12

*Shift* is the largest error of any band's, PAN pixels. ERGAS / SAM are against the truth, of the network with the bands
where they were measured to lie, of the same with the bands where they do, and of the best classical method of that
scene, told the measured shifts. The network was trained on other scenes of the same simulator.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from simulated_scenes import SimulatedScene, simulated_scene

from pancrafter.alignment import estimate_band_shifts
from pancrafter.classical import METHODS
from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import Method, classical_method, network_method
from pancrafter.metrics import ergas, sam_deg
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import value_range
from pancrafter.sharpness import band_mtfs, combine, sharpness
from pancrafter.tiles import Tile

SIDE_PX = 1024
BORDER_PX = 32


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = NetworkSharpener(load_checkpoint())
    print("| scene | shift | network | bands where they lie | best classical |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    rows = []
    for seed in range(options.scenes):
        scene = simulated_scene(seed, all_bands=True, side_px=SIDE_PX)
        pair, model = scene.pair, scene.model
        found = estimate_band_shifts(pair.pan, pair.ms, pair.ratio, model.phase)
        everywhere = np.arange(0.0, SIDE_PX, 16)
        drift = [np.mean(part) for part in model.field.at(everywhere, everywhere, pair.pan.shape)]
        true = np.array(model.shift_yx) + drift
        measured = np.array([shift.applied_yx for shift in found])
        ours = network_method("pan-crafter", network)
        others = [classical_method(name) for name in METHODS if name != "exp"]
        best = np.min([_errors(scene, method, measured) for method in others], axis=0)
        row = [
            np.hypot(*(measured - true).T).max(),
            *_errors(scene, ours, measured),
            *_errors(scene, ours, true),
            *best,
        ]
        rows.append(row)
        print(f"| {pair.name} | {_cells(row)} |", flush=True)  # noqa: T201
    print(f"| mean | {_cells(np.mean(rows, axis=0))} |")  # noqa: T201
    gains = 1 - np.array(rows)[:, 1:3] / np.array(rows)[:, 5:7]
    print(  # noqa: T201
        f"\nLess than the best classical method: ERGAS {gains[:, 0].mean():.1%} (of {gains[:, 0].min():.1%} to "
        f"{gains[:, 0].max():.1%}), SAM {gains[:, 1].mean():.1%} ({gains[:, 1].min():.1%} to {gains[:, 1].max():.1%})"
    )


def _cells(row: Sequence[float] | NDArray[np.float64]) -> str:
    shift, *errors = row
    return " | ".join([f"{shift:.2f}", *(f"{errors[i]:.3f} / {errors[i + 1]:.3f}" for i in (0, 2, 4))])


def _errors(scene: SimulatedScene, method: Method, shifts: NDArray[np.float64]) -> tuple[float, float]:
    """ERGAS and SAM (degrees) of a method's result, bands displaced by ``shifts`` (band, 2)."""
    pair, model = scene.pair, scene.model
    pan, ms = pair.pan.astype(np.float32), pair.ms.astype(np.float32)
    phases = tuple((model.phase[0] + float(dy), model.phase[1] + float(dx)) for dy, dx in shifts)
    nominal, pan_gain = [band.mtf for band in pair.contract.subset(pair.bands)], pair.contract.pan_mtf
    mtfs = band_mtfs(nominal, combine([sharpness(pan, ms, pair.ratio, phases)]), pan_gain, pair.ratio)
    tile = Tile(pan, ms, pair.ratio, phases, value_range(pan), tuple(value_range(band) for band in ms))
    result = method.sharpen(tile, mtfs, pan_gain)
    inner = (slice(None), slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    return ergas(scene.truth[inner], result[inner], pair.ratio), sam_deg(scene.truth[inner], result[inner])


if __name__ == "__main__":
    main()
