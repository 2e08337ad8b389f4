"""How much of each band's fine detail can be believed: simulated scenes with truth, band by band.

    PYTHONPATH=tests:tests/benchmarks .venv/bin/python tests/benchmarks/band_reliability.py --scenes 18

*detail* is what an image has beyond its cubically up-sampled MS. Its correlation with the truth's detail says how much
of the added structure is real; the errors are relative to the band's mean, per pixel and over 2 x 2 MS pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from planted_failures import stage_pair
from quality_gate import sharpness_of
from simulated_scenes import simulated_scene
from staged_scenes import everything, sharpen_all

from pancrafter.engine import NetworkSharpener, fit_scene_injection
from pancrafter.model.weights import load_checkpoint
from pancrafter.resample import upsample
from pancrafter.tiles import band_phases


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=18)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint()
    figures: dict[tuple[str, str, bool], list[tuple[float, float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.scenes):
            pair, truth, _ = simulated_scene(seed, all_bands=True)
            store = stage_pair(Path(folder) / f"{seed}.zarr", pair.pan, pair.ms, pair.ratio, pair.contract, pair.bands)
            bands = pair.contract.subset(pair.bands)
            mtfs, told = sharpness_of(store, pair)
            injection = fit_scene_injection(store, mtfs)
            sharpen_all(store, NetworkSharpener(checkpoint, injection=injection, relative_mtf=told))
            result = store.read_sharpened(everything(store)).astype(np.float64)
            inner, block = (slice(16, -16),) * 2, 2 * pair.ratio
            for index, (band, phase) in enumerate(zip(bands, band_phases(store.staged), strict=True)):
                raised = upsample(pair.ms[index].astype(np.float32), pair.pan.shape, pair.ratio, phase)[inner]
                wanted, found = truth[index][inner].astype(np.float64), result[index][inner]
                mean = wanted.mean()
                coarse = [_averaged(image, block) for image in (found, wanted)]
                figures[pair.contract.name, band.name, band.in_pan].append(
                    (
                        float(np.corrcoef((found - raised).ravel(), (wanted - raised).ravel())[0, 1]),
                        float(np.sqrt(((found - wanted) ** 2).mean()) / mean),
                        float(np.sqrt(((raised - wanted) ** 2).mean()) / mean),
                        float(np.sqrt(((coarse[0] - coarse[1]) ** 2).mean()) / mean),
                    )
                )
    print("| sensor | band | covered by PAN | detail correlation | error per pixel | of up-sampled MS | averaged |")  # noqa: T201
    print("|---|---|---|---|---|---|---|")  # noqa: T201
    for (sensor, name, in_pan), values in figures.items():
        correlation, error, raised_error, coarse_error = np.mean(values, axis=0)
        errors = f"{error:.1%} | {raised_error:.1%} | {coarse_error:.1%}"
        print(f"| {sensor} | {name} | {'yes' if in_pan else 'no'} | {correlation:.2f} | {errors} |")  # noqa: T201


def _averaged(image: np.ndarray, block: int) -> np.ndarray:
    rows, cols = (n // block * block for n in image.shape)
    return image[:rows, :cols].reshape(rows // block, block, cols // block, block).mean(axis=(1, 3))


if __name__ == "__main__":
    main()
