"""What it is worth to know how steeply MTF falls: simulated scenes at full resolution against their truth.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/steepness.py --scenes 6 --half 0.87 --shape 8

MS is made from the truth by an MTF of this half response (share of the MS Nyquist frequency) and shape, with noise
of 0.2 % of the range. ERGAS / SAM of the network told the Gaussian that serves it best, of the network told what is
measured, and of the best classical method of that scene told what is measured. The network was trained on other scenes
of the same simulator.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from simulated_scenes import simulated_scene

from pancrafter.classical import METHODS
from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import Method, classical_method, network_method
from pancrafter.metrics import Pixels, ergas, sam_deg
from pancrafter.model.names import DEFAULT_WEIGHTS
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import value_range
from pancrafter.resample import Mtf, degrade
from pancrafter.sharpness import combine, sharpness
from pancrafter.tiles import Tile

SIDE_PX = 512
BORDER_PX = 32
AS_SHARP_AS_PAN = 1.0

GAUSSIANS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""MTF at the MS Nyquist frequency of those that are tried."""


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--half", type=float, default=0.87)
    parser.add_argument("--shape", type=float, default=8.0)
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS)
    options = parser.parse_args()
    network = network_method("pan-crafter", NetworkSharpener(load_checkpoint(options.weights)))
    others = [classical_method(name) for name in METHODS if name != "exp"]
    print("| scene | measured half, shape | told the best Gaussian | told what is measured | best classical |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    rows = []
    torch.set_num_threads(2)
    for seed in range(options.scenes):
        scene = simulated_scene(seed, all_bands=True, side_px=SIDE_PX)
        tile = _seen(scene.pair.pan, scene.truth, scene.pair.ratio, Mtf.of_half(options.half, options.shape), seed)
        measured = combine([sharpness(tile.pan, tile.ms, tile.ratio, tile.phases_yx)])
        assert measured is not None
        gaussians = [_errors(network, tile, scene.truth, Mtf(gain)) for gain in GAUSSIANS]
        errors = [np.min(gaussians, axis=0), _errors(network, tile, scene.truth, measured)]
        errors.append(np.min([_errors(method, tile, scene.truth, measured) for method in others], axis=0))
        rows.append(errors)
        mtf = f"{measured.half:.2f}, {measured.shape:.1f}"
        print(f"| {scene.pair.name} | {mtf} | {_cells(np.array(errors))} |", flush=True)  # noqa: T201
    print(f"| mean | | {_cells(np.mean(rows, axis=0))} |")  # noqa: T201


def _cells(errors: np.ndarray) -> str:
    return " | ".join(f"{one:.3f} / {other:.3f}" for one, other in errors)


def _seen(pan: Pixels, truth: Pixels, ratio: int, mtf: Mtf, seed: int) -> Tile:
    """The scene with MS as a sensor of this MTF, without shifts, would have recorded it."""
    phase = ((ratio - 1) / 2,) * 2
    shape_yx = (pan.shape[0] // ratio, pan.shape[1] // ratio)
    ms = np.stack([degrade(band.astype(np.float64), shape_yx, ratio, phase, mtf) for band in truth])
    noise = np.random.default_rng(seed).normal(0, 0.002 * np.ptp(ms), ms.shape)
    ms, pan = np.rint(ms + noise).astype(np.float32), pan.astype(np.float32)
    return Tile(pan, ms, ratio, (phase,) * len(ms), value_range(pan), tuple(value_range(band) for band in ms))


def _errors(method: Method, tile: Tile, truth: Pixels, mtf: Mtf) -> tuple[float, float]:
    """ERGAS and SAM (degrees) of a method's result."""
    result = method.sharpen(tile, (mtf,) * len(tile.ms), AS_SHARP_AS_PAN)
    inner = (slice(None), slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    return ergas(truth[inner], result[inner], tile.ratio), sam_deg(truth[inner], result[inner])


if __name__ == "__main__":
    main()
