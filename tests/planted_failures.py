"""Failures planted into finished or staged scenes: what the quality gate must catch, drawn anew for every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from staged_scenes import make_staged, overlap

from pancrafter.assess import assessment_windows, combine, reduced_sample, sample_windows, window_sums
from pancrafter.bands import measure_bands
from pancrafter.engine import Sharpener
from pancrafter.model.network import PanCrafter
from pancrafter.model.weights import Checkpoint
from pancrafter.resample import Mtf, mean_mtf
from pancrafter.sensors import SensorContract
from pancrafter.store import SceneStore
from pancrafter.types import Quality

Image = NDArray[Any]


def measure(store: SceneStore, sharpener: Sharpener, mtfs: tuple[Mtf | float, ...]) -> Quality:
    """What the assess step does, in this process."""
    blur = mean_mtf(mtfs)
    windows = [window_sums(store, window, mtfs, blur) for window in assessment_windows(store)]
    samples = [reduced_sample(store, window, sharpener, mtfs, blur) for window in sample_windows(store)]
    return combine(store.staged, sharpener.method, windows, samples)


def stage_pair(
    uri: Path, pan: Image, ms: Image, ratio: int, contract: SensorContract, bands: Sequence[str]
) -> SceneStore:
    """Stage arrays the way ``cube.stage_scene`` stages files: shifts are measured, value ranges are percentiles."""
    grid = overlap((pan.shape[0], pan.shape[1]), ratio)
    store = SceneStore.create(str(uri), grid, bands=tuple(bands), staging="d", crs_wkt="", block_px=256)
    for y, x in store.pan_windows():
        store.write_pan((y, x), pan[y, x], np.ones(pan[y, x].shape, np.uint8))
    for y, x in store.ms_windows():
        store.write_ms((y, x), ms[:, y, x], np.ones(ms[0, y, x].shape, np.uint8))
    gains = [band.mtf for band in contract.subset(bands)]
    measured = measure_bands(store, grid, gain=float(np.mean(gains)))
    store.finish_staging(
        make_staged(
            store,
            grid,
            pan,
            ms,
            dn_max=contract.dn_max,
            **measured.described(),
        )
    )
    store.begin_sharpening("r")
    return store


def swapped(image: Image, rng: np.random.Generator) -> Image:
    one, other = rng.choice(len(image), 2, replace=False)
    order = np.arange(len(image))
    order[[one, other]] = order[[other, one]]
    return image[order]


def shifted(image: Image, rng: np.random.Generator) -> Image:
    dy, dx = ((2, 0), (-2, 0), (0, 2), (0, -2))[rng.integers(4)]
    return np.roll(image, (dy, dx), axis=(1, 2))


def rescaled(image: Image, rng: np.random.Generator) -> Image:
    return image * rng.choice((0.8, 1.2))


def corrupted(image: Image, rng: np.random.Generator) -> Image:
    """One to three blocks of 64 px hold zeros, noise, one value, or the pixels of another place."""
    damaged = image.copy()
    side = 64
    for _ in range(rng.integers(1, 4)):
        y, x, v, u = (int(rng.integers(0, n - side)) for n in (*image.shape[1:], *image.shape[1:]))
        block = damaged[:, y : y + side, x : x + side]
        kind = rng.integers(3)
        if kind == 0:
            block[:] = 0
        elif kind == 1:
            block[:] = rng.uniform(0, image.max(), block.shape)
        else:
            block[:] = np.rot90(image[:, v : v + side, u : u + side], 2, axes=(1, 2)) * (
                1 if abs(v - y) + abs(u - x) > side else 0
            )
    return damaged


ON_RESULT: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "swapped bands": swapped,
    "shift of 2 px": shifted,
    "DN scale 20 % off": rescaled,
    "corrupted blocks": corrupted,
}


def perturbed(checkpoint: Checkpoint, rng: np.random.Generator) -> Checkpoint:
    """Weights gone wrong: freshly drawn ones, or the shipped ones with noise as large as themselves."""
    torch.manual_seed(int(rng.integers(2**31)))
    network = PanCrafter(checkpoint.network.config)
    if rng.random() < 0.5:
        state = checkpoint.network.state_dict()
        network.load_state_dict(
            {
                k: v + torch.randn_like(v) * v.std() if v.is_floating_point() and v.numel() > 1 else v
                for k, v in state.items()
            }
        )
    network.eval().requires_grad_(requires_grad=False)
    return replace(checkpoint, name="wrong", sha256="0" * 64, network=network.to(memory_format=torch.channels_last))
