"""How exactly staging's estimator finds the shifts of simulated scenes, and what its errors cost the result.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/placement.py --scenes 12

*Error* is the largest of any band, PAN pixels, against the shift that the scene was taken with. ERGAS and SAM are
against the truth, of the network with the bands where they were measured to lie, and with the bands where they do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from simulated_scenes import SimulatedScene, simulated_scene

from pancrafter.alignment import estimate_band_shifts
from pancrafter.engine import NetworkSharpener, Tile
from pancrafter.evaluate import network_method
from pancrafter.metrics import ergas, sam_deg
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import value_range
from pancrafter.sharpness import band_gains, combine, sharpness

SIDE_PX = 1024
BORDER_PX = 32


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = NetworkSharpener(load_checkpoint())
    print("| scene | error | ERGAS as measured | as it is | SAM as measured | as it is |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    rows = []
    for seed in range(options.scenes):
        scene = simulated_scene(seed, all_bands=True, side_px=SIDE_PX)
        pair, model = scene.pair, scene.model
        found = estimate_band_shifts(pair.pan, pair.ms, pair.ratio, model.phase)
        everywhere = np.arange(0.0, SIDE_PX, 16)
        drift = [np.mean(part) for part in model.field.at(everywhere, everywhere, pair.pan.shape)]
        true = np.array(model.shift_yx) + drift
        measured = np.array([shift.applied_yx for shift in found])
        error = float(np.hypot(*(measured - true).T).max())
        (ergas_measured, sam_measured), (ergas_true, sam_true) = (
            _errors(scene, network, shifts) for shifts in (measured, true)
        )
        rows.append((error, ergas_measured, ergas_true, sam_measured, sam_true))
        print(f"| {pair.name} | {_cells(rows[-1])} |", flush=True)  # noqa: T201
    print(f"| mean | {_cells(np.mean(rows, axis=0))} |")  # noqa: T201


def _cells(row: Sequence[float] | NDArray[np.float64]) -> str:
    return " | ".join([f"{row[0]:.2f}", *(f"{value:.3f}" for value in row[1:])])


def _errors(scene: SimulatedScene, network: NetworkSharpener, shifts: NDArray[np.float64]) -> tuple[float, float]:
    """ERGAS and SAM of the network's result, bands displaced by ``shifts`` (band, 2)."""
    pair, model = scene.pair, scene.model
    pan, ms = pair.pan.astype(np.float32), pair.ms.astype(np.float32)
    phases = tuple((model.phase[0] + float(dy), model.phase[1] + float(dx)) for dy, dx in shifts)
    nominal, pan_gain = [band.mtf for band in pair.contract.subset(pair.bands)], pair.contract.pan_mtf
    gains = band_gains(nominal, combine([sharpness(pan, ms, pair.ratio, phases)]), pan_gain, pair.ratio)
    tile = Tile(pan, ms, pair.ratio, phases, value_range(pan), tuple(value_range(band) for band in ms))
    result = network_method("pan-crafter", network).sharpen(tile, gains, pan_gain)
    inner = (slice(None), slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    return ergas(scene.truth[inner], result[inner], pair.ratio), sam_deg(scene.truth[inner], result[inner])


if __name__ == "__main__":
    main()
