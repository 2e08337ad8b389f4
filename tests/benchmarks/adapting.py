"""What adapting the network to a scene is worth at full resolution, where simulated scenes have a truth.

    PYTHONPATH=tests:tests/benchmarks .venv/bin/python tests/benchmarks/adapting.py --scenes 6

*ERGAS* and *SAM* are against the truth, *consistency* and *HQNR* what the quality gate measures without one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from planted_failures import stage_pair
from quality_gate import sharpness_of
from simulated_scenes import simulated_scene
from staged_scenes import everything, sharpen_all

from pancrafter.adapt import adapt_to_scene
from pancrafter.assess import assessment_windows, combine, window_sums
from pancrafter.engine import SharpenerSpec, build_sharpener, fit_scene_injection
from pancrafter.metrics import ergas, sam_deg
from pancrafter.model.names import DEFAULT_WEIGHTS, weights_sha256
from pancrafter.resample import Mtf, mean_mtf
from pancrafter.store import SceneStore

SIDE_PX = 1024
BORDER_PX = 16


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| scene | ERGAS plain → adapted | SAM | consistency | HQNR |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.scenes):
            pair, truth, _ = simulated_scene(seed, all_bands=True, side_px=SIDE_PX)
            place = Path(folder) / f"{seed}.zarr"
            store = stage_pair(place, pair.pan, pair.ms, pair.ratio, pair.contract, pair.bands)
            mtfs, told = sharpness_of(store, pair)
            injection = fit_scene_injection(store, mtfs)
            spec = SharpenerSpec(
                weights=options.weights,
                weights_sha256=weights_sha256(options.weights),
                relative_mtf=told,
                injection=injection,
            )
            adapted, done = adapt_to_scene(spec, store, mtfs, place.with_suffix(".safetensors"))
            if not done.kept:
                print(f"| {pair.name} | {done.reason} | | | |")  # noqa: T201
                continue
            before, after = (_figures(store, chosen, mtfs, truth) for chosen in (spec, adapted))
            ratios.append(np.array(after) / np.array(before))
            cells = [f"{a:.3f} → {b:.3f}" for a, b in zip(before, after, strict=True)]
            print(f"| {pair.name} | {' | '.join(cells)} |", flush=True)  # noqa: T201
    if ratios:
        means = [f"{mean - 1:+.1%}" for mean in np.mean(ratios, axis=0)]
        print(f"| mean change | {' | '.join(means)} |")  # noqa: T201


def _figures(store: SceneStore, spec: SharpenerSpec, mtfs: tuple[Mtf, ...], truth: np.ndarray) -> list[float]:
    """ERGAS and SAM (degrees) against the truth, consistency ERGAS and HQNR of what a specification makes."""
    assert spec.relative_mtf is not None
    blur = mean_mtf(spec.relative_mtf)
    store.begin_sharpening(spec.weights)
    sharpen_all(store, build_sharpener(spec))
    quality = combine(
        store.staged, "pan-crafter", [window_sums(store, w, mtfs, blur) for w in assessment_windows(store)], []
    )
    inner = (slice(None), slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    wanted, found = truth[inner], store.read_sharpened(everything(store))[inner]
    assert quality.consistency_ergas is not None
    assert quality.hqnr is not None
    return [
        ergas(wanted, found, store.staged.grid.ratio),
        sam_deg(wanted, found),
        quality.consistency_ergas,
        quality.hqnr,
    ]


if __name__ == "__main__":
    main()
