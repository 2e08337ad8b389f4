"""Blocks come out as the whole scene would, nodata stays where it is, and DN stay within the sensor's range."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import random_checkpoint, random_network
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage, signal
from staged_scenes import Array, everything, landscape, make_staged, observed, overlap, stage_arrays

from pancrafter import classical, metrics, resample
from pancrafter.cube import REACH_PX, stage_scene
from pancrafter.engine import (
    GlpSharpener,
    NetworkSharpener,
    Sharpener,
    SharpenerSpec,
    build_sharpener,
    fit_scene_injection,
    fit_sharpener,
    scene_injection_sums,
    sharpen_block,
)
from pancrafter.errors import BandCountError, WeightsError
from pancrafter.model import reprojection
from pancrafter.model.conditions import build_conditions
from pancrafter.model.devices import DeviceError
from pancrafter.model.names import weights_sha256
from pancrafter.model.weights import Checkpoint, load_checkpoint, save_checkpoint
from pancrafter.product_files import EDGE_REACH_PX
from pancrafter.resample import Mtf
from pancrafter.sensors import BandSpec, SensorContract
from pancrafter.store import SceneStore
from pancrafter.tiles import Tile, band_phases, dn_limits, measured_window, plan_tile, quantise, read_tile, valid_window
from pancrafter.training.config import read_config
from pancrafter.types import AssetRef, Scene, StagedScene

EXACT = 1e-5
"""Largest difference between tiles and the whole scene, as a share of a band's value range (float32 arithmetic)."""


RECIPES = Path(__file__).parents[1] / "training"

INJECTION = classical.InjectionConstants(weights=(0.4, 0.5), offset=30.0, gains=(0.8, 1.3), explained=0.8)


def contract_of(bands: Sequence[str]) -> SensorContract:
    """A sensor of the tests."""
    return SensorContract(
        name="test-sensor", title="Test", platforms=("test",), ratio=4, dn_max=2047, nodata=None,
        pan_asset_keys=("pan",), pan_mtf=0.15, weights="default", source="made up",
        bands=tuple(BandSpec(name=name, mtf=0.3, in_pan=True) for name in bands),
    )  # fmt: skip


def whole_tile(store: SceneStore, margin: int = 132) -> Tile:
    """The whole scene mirrored at its border far beyond any reach, assembled here and not by the engine."""
    staged, ratio = store.staged, store.staged.grid.ratio
    pan = store.read_pan(everything(store)).astype(np.float32)
    ms = store.read_ms((slice(0, store.ms_shape_yx[0]), slice(0, store.ms_shape_yx[1]))).astype(np.float32)
    totals = [-(-(n + 2 * margin) // 12) * 12 for n in pan.shape]
    pan_pads = [(margin, total - margin - n) for total, n in zip(totals, pan.shape, strict=True)]
    ms_pads = [(margin // ratio, (t - margin) // ratio - n) for t, n in zip(totals, ms.shape[1:], strict=True)]
    return Tile(
        pan=np.pad(pan, pan_pads, mode="symmetric"),
        ms=np.pad(ms, [(0, 0), *ms_pads], mode="symmetric"),
        ratio=ratio,
        phases_yx=band_phases(staged),
        pan_range=staged.pan_range,
        ms_ranges=staged.ms_ranges,
    )


def inner(store: SceneStore, image: Array, margin: int = 132) -> Array:
    rows, cols = store.pan_shape_yx
    return image[:, margin : margin + rows, margin : margin + cols]


def injected(tile: Tile, constants: classical.InjectionConstants) -> Array:
    """PAN minus the bands' mix, times each band's gain, scaled like the band; computed in float64 here."""
    raised = [
        resample.upsample(m.astype(np.float64), tile.pan.shape, tile.ratio, p)
        for m, p in zip(tile.ms, tile.phases_yx, strict=True)
    ]
    detail = tile.pan - np.tensordot(constants.weights, np.stack(raised), axes=1) - constants.offset
    return np.stack([2 * g * detail / (r.high - r.low) for g, r in zip(constants.gains, tile.ms_ranges, strict=True)])


def agreeing(tile: Tile, image: Array, shares: Array, mtfs: tuple[Mtf, ...]) -> Array:
    """What is missing of MS in an image (band, y, x) on the tile's PAN grid put back, in float64 and here.

    ``shares`` (band, 0 to 2, y, x): of what the sensor would still miss then, so much is added, and of what four steps
    more would add.
    """
    result = []
    for band, share, ms, phase, mtf in zip(
        image, shares, tile.ms.astype(np.float64), tile.phases_yx, mtfs, strict=True
    ):
        rows, cols = (
            seen_by_sensor(mtf, n, m, tile.ratio, p) for n, m, p in zip(ms.shape, band.shape, phase, strict=True)
        )
        missing = ms - rows @ band @ cols.T
        seen = seen_of_upsampled(mtf, tile.ratio)
        left = missing - ndimage.convolve(missing, np.outer(seen, seen), mode="nearest")
        more = left, ndimage.convolve(missing, four_steps_more(np.outer(seen, seen)), mode="nearest")
        shape_yx = (band.shape[0], band.shape[1])
        made = band + resample.upsample(missing, shape_yx, tile.ratio, phase)
        for part, image in zip(share, more, strict=False):
            made += np.clip(part, -1, 2) * resample.upsample(image, shape_yx, tile.ratio, phase)
        result.append(made)
    return np.stack(result)


def four_steps_more(seen: Array) -> Array:
    """(9, 9) weights: what the third to sixth step add up to, each what the one before it left unseen."""
    unseen = -seen
    unseen[2, 2] += 1
    step = signal.convolve2d(unseen, unseen)
    total = np.zeros((9, 9))
    for _ in range(4):
        cut = len(step) // 2 - 4
        total += step[cut : cut + 9, cut : cut + 9]
        step = signal.convolve2d(step, unseen)
    total[4, 4] -= total.sum()
    return total


def line_spread(mtf: Mtf, place: float) -> float:
    """The Fourier transform of an MTF at a place in MS pixels; one that is no Gaussian's is led to zero at three."""
    cycles = np.linspace(0, 12, 24001)
    response = mtf.gain ** ((2 * cycles) ** mtf.shape)
    taper = 1.0 if mtf.shape == 2 else math.cos(math.pi / 2 * min(max(abs(place) / 3 - 0.6, 0) / 0.4, 1)) ** 2
    return taper * float(np.trapezoid(response * np.cos(2 * np.pi * cycles * place), cycles))


def seen_by_sensor(mtf: Mtf, n_ms: int, n_pan: int, ratio: int, phase: float) -> Array:
    """(n_ms, n_pan) weights with which a sensor sees PAN pixels; beyond the border pixels repeat."""
    weights, below = np.zeros((n_ms, n_pan)), math.floor(phase)
    around = np.arange(below - 3 * ratio + 1, below + 3 * ratio + 1)
    line = np.array([line_spread(mtf, (k - phase) / ratio) for k in around])
    for i in range(n_ms):
        np.add.at(weights[i], np.clip(around + ratio * i, 0, n_pan - 1), line / line.sum())
    return weights


def seen_of_upsampled(mtf: Mtf, ratio: int) -> Array:
    """Five weights: how a sensor sees one MS pixel that cubic convolution (Keys) spread over the PAN grid."""

    def keys(x: float) -> float:
        x, a = abs(x), resample.CUBIC_A
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    places = [p for p in np.arange(-20, 20.5, 0.5) if (p + (ratio - 1) / 2) % 1 == 0]
    places = [p for p in places if abs(p) <= 3 * ratio]
    line = [line_spread(mtf, p / ratio) for p in places]
    weights = [sum(w * keys(k - p / ratio) for w, p in zip(line, places, strict=True)) for k in range(-2, 3)]
    return np.array(weights) / sum(weights)


def whole_scene(
    store: SceneStore,
    checkpoint: Checkpoint,
    constants: classical.InjectionConstants | None = None,
    mtfs: tuple[Mtf, ...] | None = None,
) -> Array:
    """One forward pass per band group over the whole scene, with its own scaling: (band, y, x) DN."""
    tile, group = whole_tile(store), checkpoint.network.config.bands
    details = None if constants is None else torch.from_numpy(injected(tile, constants).astype(np.float32))
    pan = 2 * (tile.pan - tile.pan_range.low) / (tile.pan_range.high - tile.pan_range.low) - 1
    results, shares = [], []
    for first in range(0, len(tile.ms), group):
        bands = range(first, first + group)
        scaled = [2 * (tile.ms[b] - r.low) / (r.high - r.low) - 1 for b in bands for r in [tile.ms_ranges[b]]]
        phases = torch.tensor([[tile.phases_yx[b] for b in bands]], dtype=torch.float64)
        ms = torch.from_numpy(np.stack(scaled).astype(np.float32))[None]
        detail = None if details is None else details[None, first : first + group]
        matched = mtfs is not None and checkpoint.network.config.matched_lowpass
        blur = [resample.mean_mtf(mtfs)] if matched else [resample.GENERIC_MTF_GAIN]
        conditions = build_conditions(
            torch.from_numpy(pan.astype(np.float32))[None, None], ms, tile.ratio, phases, detail, blur
        )
        with torch.no_grad():
            output = checkpoint.network(conditions, torch.zeros(1, dtype=torch.long))[0].double().numpy()
        results += [
            (o + 1) / 2 * (r.high - r.low) + r.low
            for o, b in zip(output[:group], bands, strict=True)
            for r in [tile.ms_ranges[b]]
        ]
        shares += list(output.reshape(len(output) // group, group, *tile.pan.shape)[1:].swapaxes(0, 1))
    whole = np.stack(results)
    if mtfs is not None and constants is not None:
        missing = tile.pan - np.tensordot(constants.weights, whole, 1)
        blurred = ndimage.gaussian_filter(missing, 0.4 * tile.ratio, mode="nearest", truncate=3)
        whole += 0.75 * constants.explained * np.array(constants.gains)[:, None, None] * (missing - blurred)
    return inner(store, whole if mtfs is None else agreeing(tile, whole, np.stack(shares), mtfs))


def in_blocks(store: SceneStore, sharpener: Sharpener, order: list[int] | None = None) -> Array:
    """Every block's float result put in its place, in a given order."""
    rows, cols = store.pan_shape_yx
    result = np.full((store.band_count, rows, cols), np.nan)
    blocks = [(row, col) for row in range(store.blocks_yx[0]) for col in range(store.blocks_yx[1])]
    for index in range(len(blocks)) if order is None else order:
        plan = plan_tile(store, blocks[index], sharpener.halo_px(store.staged))
        result[(slice(None), *plan.window)] = sharpener(read_tile(store, plan))[(slice(None), *plan.core)]
    return result


def ranges(staged: StagedScene) -> Array:
    return np.array([r.high - r.low for r in staged.ms_ranges])[:, None, None]


@dataclass(frozen=True)
class ShortSighted:
    """A sharpener that asks for less halo than it needs."""

    inside: NetworkSharpener
    missing_px: int

    @property
    def method(self) -> str:
        return self.inside.method

    @property
    def rows_at_once(self) -> int:
        return self.inside.rows_at_once

    def halo_px(self, staged: StagedScene) -> int:
        return self.inside.halo_px(staged) - self.missing_px

    def __call__(self, tile: Tile, core: tuple[slice, slice] | None = None) -> NDArray[np.float32]:
        return self.inside(tile, core)

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        return self.inside.working_bytes(tile_px, core_px, bands)


# --- tiles against the whole scene ----------------------------------------------------------------------------------

HALF = st.integers(0, 7).map(lambda n: n / 2)
# To a millionth of a pixel: less is lost where the reference below adds a shift to a far position, and a kernel that
# begins a pixel later is another one.
SHIFT = st.tuples(*(st.floats(-4, 4).map(lambda px: round(px, 6)),) * 2)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ratio=st.sampled_from([2, 3, 4]),
    pan_yx=st.tuples(st.integers(45, 190), st.integers(45, 190)),
    offset_px=st.tuples(HALF, HALF),
    block_px=st.sampled_from([64, 96, 98, 128]),
    shifts=st.tuples(SHIFT, SHIFT),
    config=st.sampled_from(
        [
            {},
            {"bands": 2},
            {"attention": "none", "depth": (1, 2, 1)},
            {"split_pan": False},
            {"injected_detail": True},
            {"injected_detail": True, "bands": 2},
            {"injected_detail": True, "matched_lowpass": True},
            {"bands": 2, "weighs_ms": 1},
            {"injected_detail": True, "told_uncertainty": True, "weighs_ms": 2},
        ]
    ),
    mtfs=st.sampled_from([None, (Mtf(0.2), Mtf(0.34)), (Mtf(0.06), Mtf(0.04)), (Mtf(0.1, 6.0), Mtf(0.2, 3.0))]),
    seed=st.integers(0, 99),
)
def test_blocks_equal_the_whole_scene(
    tmp_path_factory: pytest.TempPathFactory,
    ratio: int,
    pan_yx: tuple[int, int],
    offset_px: tuple[float, float],
    block_px: int,
    shifts: tuple[tuple[float, float], tuple[float, float]],
    config: dict[str, Any],
    mtfs: tuple[Mtf, Mtf] | None,
    seed: int,
) -> None:
    """Any ratio, phase, band shift, size and block size, in any order of blocks, with random weights in every layer."""
    grid = overlap(pan_yx, ratio, offset_px)
    rng = np.random.default_rng(seed)
    pan, ms = (rng.integers(1, 2000, shape).astype(np.uint16) for shape in (grid.pan.shape_yx, (2, *grid.ms_shape_yx)))
    folder = tmp_path_factory.mktemp("scene")
    store = stage_arrays(folder / "s.zarr", grid, pan, ms, block_px=block_px, band_shift_yx=shifts)
    mtfs = (Mtf(0.5), Mtf(0.6)) if config.get("matched_lowpass") and mtfs is None else mtfs
    checkpoint = random_checkpoint(seed, **config)
    order = rng.permutation(store.block_count).tolist()
    constants = INJECTION if checkpoint.network.config.injected_detail else None
    found = in_blocks(store, NetworkSharpener(checkpoint, injection=constants, relative_mtf=mtfs), order)
    expected = whole_scene(store, checkpoint, constants, mtfs)
    assert (np.abs(found - expected) / ranges(store.staged)).max() < EXACT


@pytest.mark.parametrize(
    ("ratio", "pan_yx", "offset_px", "phase"),
    [(2, (139, 161), (0.5, 0.5), 0.0), (3, (160, 101), (1, 1), 0.0), (4, (150, 203), (1.5, 1.5), 0.0)]
    + [(ratio, (131, 149), (0, 0), (ratio - 1) / 2) for ratio in (2, 3, 4)],
)
def test_written_blocks_are_the_whole_scene_rounded(
    tmp_path: Path, ratio: int, pan_yx: tuple[int, int], offset_px: tuple[float, float], phase: float
) -> None:
    """Centre-aligned (2N - 1) and edge-aligned grids of odd sizes, with holes, through the store: at most 1 DN off."""
    grid = overlap(pan_yx, ratio, offset_px)
    assert grid.phase_yx == (phase, phase)
    pan, ms = observed(grid, 2, seed=ratio, shifts=((0.0, 0.0), (1.3, -0.8)))
    pan_valid, ms_valid = np.ones(pan.shape, bool), np.ones(ms.shape[1:], bool)
    pan_valid[:70, :20], ms_valid[20:25, 11:19] = False, False
    store = stage_arrays(
        tmp_path / "s.zarr", grid, pan, ms, block_px=64, pan_valid=pan_valid, ms_valid=ms_valid, nodata=0.0,
        band_shift_yx=((0.0, 0.0), (1.3, -0.8)),
    )  # fmt: skip
    checkpoint = random_checkpoint(3, bands=2)
    for block in store.pending_blocks()[::-1]:
        sharpen_block(store, block, NetworkSharpener(checkpoint))
    assert store.done_count == store.block_count
    found, valid = store.read_sharpened(everything(store)).astype(int), valid_window(store, everything(store))
    expected = np.clip(np.rint(whole_scene(store, checkpoint)), 1, 2047)
    assert np.abs(found - expected)[:, valid].max() <= 1
    assert (found == expected)[:, valid].mean() > 0.999
    assert (found[:, ~valid] == 0).all()
    assert (found[:, valid] > 0).all()
    assert 0.01 < 1 - valid.mean() < 0.3


def test_injection_is_fitted_on_the_valid_pixels_of_all_blocks(tmp_path: Path) -> None:
    """PAN made of the bands: the weights come back whatever lies deep under nodata; other band counts are refused."""
    grid = overlap((256, 192), 4, (0.0, 0.0))
    truth = np.stack([landscape(grid.pan.shape_yx, seed) for seed in (1, 2)])
    pan_valid = np.ones(grid.pan.shape_yx, np.bool_)
    pan_valid[:100] = False
    pan = 0.3 * truth[0] + 0.6 * truth[1] + 20
    pan[:100] = pan[100]  # as staging fills it
    pan[:60] = 9.0
    ms = np.stack([resample.degrade(band, grid.ms_shape_yx, 4, (1.5, 1.5), 0.3) for band in truth])
    store = stage_arrays(
        tmp_path / "s.zarr",
        grid,
        np.rint(pan).astype(np.uint16),
        np.rint(ms).astype(np.uint16),
        block_px=64,
        pan_valid=pan_valid,
    )
    found = fit_scene_injection(store, (0.3, 0.3))
    assert found.weights == pytest.approx((0.3, 0.6), abs=0.01)
    assert found.offset == pytest.approx(20, abs=5)
    assert fit_scene_injection(store, (0.3, 0.3), threads=3) == found
    three = found.model_copy(update={"gains": (1.0, 1.0, 1.0)})
    blind = NetworkSharpener(random_checkpoint(1, injected_detail=True), injection=three)
    with pytest.raises(WeightsError, match="injection constants for 2 bands"):
        in_blocks(store, blind)


@pytest.mark.parametrize("speck", [False, True], ids=["island", "island and speck"])
def test_injection_of_a_small_valid_area_is_fitted_on_all_of_it(tmp_path: Path, *, speck: bool) -> None:
    """It lies in one block of 100, none of those looked at first; one of these may hold a speck of anything."""
    grid = overlap((640, 640), 2, (0.0, 0.0))
    truth = np.stack([landscape(grid.pan.shape_yx, seed) for seed in (1, 2)])
    pan = 0.3 * truth[0] + 0.6 * truth[1] + 20
    ms = np.stack([resample.degrade(band, grid.ms_shape_yx, 2, (0.5, 0.5), 0.3) for band in truth])
    valid = np.zeros(grid.pan.shape_yx, np.bool_)
    valid[64:128, 128:192] = True  # block 12; blocks 0, 7, 13, ... come first
    if speck:
        valid[64:68, 192:196] = True
        ms[:, 32:34, 96:98] = np.random.default_rng(3).integers(60, 2000, (2, 2, 2))
    pixels = [np.rint(array).astype(np.uint16) for array in (pan, ms)]
    store = stage_arrays(tmp_path / "s", grid, *pixels, block_px=64, pan_valid=valid, ms_valid=valid[::2, ::2])
    found = fit_scene_injection(store, (0.3, 0.3))
    assert found.weights == pytest.approx((0.3, 0.6), abs=0.03)
    assert fit_scene_injection(store, (0.3, 0.3), threads=3) == found


def test_without_holes_only_blocks_spread_evenly_are_looked_at(tmp_path: Path) -> None:
    """However few their pixels are: 16 of 36 blocks of 4 MS pixels."""
    grid = overlap((48, 48), 4, (0.0, 0.0))
    store = stage_arrays(tmp_path / "s", grid, *observed(grid, 2, seed=3), block_px=8)
    assert scene_injection_sums(store, (0.3, 0.3)).pixels == 16 * 4


def test_pixels_at_the_ceiling_do_not_count_in_the_scenes_fit(tmp_path: Path) -> None:
    """Clouds end at the ceiling in some channels before others: what bands make of PAN there holds nowhere else."""
    grid = overlap((256, 192), 4, (0.0, 0.0))
    truth = np.stack([landscape(grid.pan.shape_yx, seed) for seed in (1, 2)]) / 2
    truth[1, 40:110, 30:120] *= 8
    pan = 0.3 * truth[0] + 0.6 * truth[1] + 20
    ms = np.stack([resample.degrade(band, grid.ms_shape_yx, 4, (1.5, 1.5), 0.3) for band in truth])
    gains, arrays = (0.3, 0.3), [np.rint(np.minimum(a, 2047)).astype(np.uint16) for a in (pan, ms)]
    store = stage_arrays(tmp_path / "s.zarr", grid, *arrays)
    found = fit_scene_injection(store, gains)
    assert found.weights == pytest.approx((0.3, 0.6), abs=0.02)
    assert found.offset == pytest.approx(20, abs=10)
    misleading = stage_arrays(tmp_path / "m.zarr", grid, *arrays, dn_max=4095)
    assert fit_scene_injection(misleading, gains).weights != pytest.approx((0.3, 0.6), abs=0.1)
    nothing_else = stage_arrays(tmp_path / "n.zarr", grid, *(np.full_like(array, 2047) for array in arrays))
    assert fit_scene_injection(nothing_else, gains).gains == (0.0, 0.0)
    of_ground, misled, flat = (GlpSharpener.fit(s, gains).constants.gains for s in (store, misleading, nothing_else))
    truth[1, 40:110, 30:120] /= 8
    clear = [0.3 * truth[0] + 0.6 * truth[1] + 20]
    clear.append(np.stack([resample.degrade(band, grid.ms_shape_yx, 4, (1.5, 1.5), 0.3) for band in truth]))
    without = stage_arrays(tmp_path / "c.zarr", grid, *(np.rint(array).astype(np.uint16) for array in clear))
    expected = GlpSharpener.fit(without, gains).constants.gains
    assert of_ground == pytest.approx(expected, abs=0.01)
    assert misled != pytest.approx(expected, abs=0.2)
    assert flat == (0.0, 0.0)


def test_gains_of_another_band_set_are_refused(tmp_path: Path) -> None:
    pan, ms = observed(overlap((96, 96), 4), 2, seed=3)
    store = stage_arrays(tmp_path / "s.zarr", overlap((96, 96), 4), pan, ms)
    with pytest.raises(WeightsError, match="3 MTFs for 2 bands"):
        in_blocks(store, NetworkSharpener(random_checkpoint(1), relative_mtf=(Mtf(0.3),) * 3))


def test_networks_that_need_the_mtf_say_so(tmp_path: Path) -> None:
    pan, ms = observed(overlap((96, 96), 4), 2, seed=3)
    store = stage_arrays(tmp_path / "s.zarr", overlap((96, 96), 4), pan, ms)
    with pytest.raises(WeightsError, match="need the MTF of the scene's bands"):
        in_blocks(store, NetworkSharpener(random_checkpoint(1, matched_lowpass=True)))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_a_result_agrees_with_ms_once_the_mtf_is_known(tmp_path: Path, ratio: int) -> None:
    """Of a random network's disagreement with MS most goes; the detail beyond the MS resolution stays."""
    grid, mtfs = overlap((48 * ratio, 40 * ratio), ratio), (Mtf(0.25), Mtf(0.32))
    pan, ms = observed(grid, 2, seed=ratio, shifts=((0.0, 0.0), (0.7, -0.4)))
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, band_shift_yx=((0.0, 0.0), (0.7, -0.4)))
    bare, told = (
        in_blocks(store, NetworkSharpener(random_checkpoint(ratio), relative_mtf=given)) for given in (None, mtfs)
    )
    phases = band_phases(store.staged)
    before, after = (metrics.consistency(image, ms, ratio, phases, mtfs)[0] for image in (bare, told))
    assert after < 0.5 * before
    rough = [np.diff(image, axis=2).std() for image in (bare, told)]
    assert rough[1] > 0.8 * rough[0]


def test_too_small_a_halo_would_be_noticed(tmp_path: Path) -> None:
    """The comparisons above can fail: a halo of half the size does, although its pixels weigh next to nothing.

    Float32 hides the outermost pixels; that none beyond the halo counts at all is shown by gradients in test_model.
    """
    grid = overlap((100, 110), 4)
    rng = np.random.default_rng(1)
    pan, ms = (rng.integers(1, 2000, shape).astype(np.uint16) for shape in (grid.pan.shape_yx, (1, *grid.ms_shape_yx)))
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    checkpoint = random_checkpoint(2)
    full = NetworkSharpener(checkpoint)
    assert full.halo_px(store.staged) == 66
    expected = whole_scene(store, checkpoint)
    differences = [
        (np.abs(in_blocks(store, sharpener) - expected) / ranges(store.staged)).max()
        for sharpener in (full, ShortSighted(full, 36), ShortSighted(full, 48))
    ]
    assert differences[0] < EXACT < 10 * EXACT < differences[1] < differences[2]


def test_band_shifts_move_the_result(tmp_path: Path) -> None:
    """With no network detail the result is each band, cubic, at nominal phase plus its own shift."""
    grid = overlap((120, 132), 4)
    pan, ms = observed(grid, 2, seed=5)
    shifts = ((0.0, 0.0), (1.6, -2.3))
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, band_shift_yx=shifts)
    network = random_network(1)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()  # type: ignore[union-attr]  # present
    checkpoint = Checkpoint(name="cubic", sha256="0" * 64, network=network, training={})
    found = in_blocks(store, NetworkSharpener(checkpoint))
    wide = [
        np.pad(image, [(0, 0)] * (image.ndim - 2) + [(px, px)] * 2, "symmetric") for image, px in ((pan, 24), (ms, 6))
    ]
    pair = classical.PairInput(wide[0], wide[1], 4, ((1.5, 1.5), (3.1, -0.8)), (0.3, 0.3))
    assert np.abs(found - classical.sharpen("exp", pair)[:, 24:-24, 24:-24]).max() < 0.01
    assert NetworkSharpener(checkpoint).halo_px(store.staged) == network.config.reach_px(4) + 3


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_masks_margin_beside_missing_data_covers_the_halo_of_every_build(recipe: Path) -> None:
    network = read_config(recipe).network
    for ratio in (2, 3, 4):
        halo_px = network.reach_px(ratio) + reprojection.reach_px(ratio, [((ratio - 1) / 2,) * 2])
        assert halo_px <= EDGE_REACH_PX < REACH_PX


# --- tiles ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ratio=st.sampled_from([2, 3, 4]),
    block_px=st.sampled_from([32, 50, 64, 98]),
    halo_px=st.integers(0, 130),
    size=st.integers(33, 140),
)
def test_all_tiles_of_a_scene_have_one_shape_and_hold_block_and_halo(
    tmp_path_factory: pytest.TempPathFactory, ratio: int, block_px: int, halo_px: int, size: int
) -> None:
    grid = overlap((size, 70), ratio)
    store = SceneStore.create(
        str(tmp_path_factory.mktemp("p") / "s.zarr"), grid, bands=("b1",), staging="", crs_wkt="", block_px=block_px
    )
    pan, ms = np.zeros(grid.pan.shape_yx), np.zeros((1, *grid.ms_shape_yx))
    for window in store.pan_windows():
        store.write_pan(window, pan[window].astype(np.uint16), pan[window].astype(np.uint8))
    for y, x in store.ms_windows():
        store.write_ms((y, x), ms[:, y, x].astype(np.uint16), ms[0, y, x].astype(np.uint8))
    store.finish_staging(make_staged(store, grid, np.arange(9), np.arange(9)[None]))
    step = int(np.lcm(4, ratio))
    plans = [
        plan_tile(store, (row, col), halo_px) for row in range(store.blocks_yx[0]) for col in range(store.blocks_yx[1])
    ]
    assert len({plan.shape_yx for plan in plans}) == 1
    for plan in plans:
        for part, core, start, shape in zip(plan.window, plan.core, plan.start_yx, plan.shape_yx, strict=True):
            assert start % step == shape % step == 0
            assert start <= part.start - halo_px
            assert start + shape >= part.stop + halo_px
            assert (core.start, core.stop) == (part.start - start, part.stop - start)
            assert shape < min(block_px, max(store.pan_shape_yx)) + 2 * halo_px + 2 * step
        tile = read_tile(store, plan)
        assert tile.pan.shape == plan.shape_yx
        assert tile.ms.shape == (1, plan.shape_yx[0] // ratio, plan.shape_yx[1] // ratio)


def mirrored_index(places: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Which pixel stands at a place beyond the border: the border lies between two equal ones."""
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


def test_tile_mirrors_the_scene_at_its_border(tmp_path: Path) -> None:
    """Of a narrow block at the end of the scene as far as its halo reaches, else all of it."""
    grid = overlap((70, 90), 4, (1, 2))
    pan = np.arange(70 * 90, dtype=np.uint16).reshape(70, 90)
    ms = np.arange(np.prod(grid.ms_shape_yx), dtype=np.uint16).reshape(1, *grid.ms_shape_yx)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, block_px=64)
    for block in ((0, 0), (1, 1)):
        plan = plan_tile(store, block, 20)
        tile = read_tile(store, plan)
        needed = [slice(part.start - 20, part.stop + 20) for part in plan.core]
        if block == (0, 0):
            needed = [slice(0, size) for size in plan.shape_yx]
        rows, cols = (start + np.arange(n) for start, n in zip(plan.start_yx, plan.shape_yx, strict=True))
        expected = pan[np.ix_(mirrored_index(rows, 70), mirrored_index(cols, 90))]
        assert np.array_equal(tile.pan[*needed], expected[*needed])
        on_ms = [slice(-(-part.start // 4), part.stop // 4) for part in needed]
        rows, cols = (start // 4 + np.arange(n // 4) for start, n in zip(plan.start_yx, plan.shape_yx, strict=True))
        beneath = [mirrored_index(at, size) for at, size in zip((rows, cols), grid.ms_shape_yx, strict=True)]
        assert np.array_equal(tile.ms[0, *on_ms], ms[0][np.ix_(*beneath)][*on_ms])
        assert tile.phases_yx == (grid.phase_yx,)


@pytest.mark.parametrize(("ratio", "offset"), [(2, 0.5), (3, 0), (4, 0), (4, 3)])
def test_validity_comes_from_the_ms_pixel_beneath(tmp_path: Path, ratio: int, offset: float) -> None:
    grid = overlap((61, 67), ratio, (offset, offset))
    rng = np.random.default_rng(0)
    pan_valid, ms_valid = rng.random(grid.pan.shape_yx) > 0.2, rng.random(grid.ms_shape_yx) > 0.3
    pan, ms = np.ones(pan_valid.shape, np.uint16), np.ones((1, *ms_valid.shape), np.uint16)
    pan[0], ms[:, 0] = 9, 9
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid, ms_valid=ms_valid)
    window = (slice(13, 50), slice(5, 67))
    centres = [ratio * np.arange(n) + phase for n, phase in zip(grid.ms_shape_yx, grid.phase_yx, strict=True)]
    measured = measured_window(store, window)
    for y in (13, 20, 49):
        for x in (5, 6, 7, 8, 40, 66):
            distances = [np.abs(c - at) for c, at in zip(centres, (y, x), strict=True)]
            nearest = [np.flatnonzero(np.isclose(d, d.min())) for d in distances]
            candidates = {bool(ms_valid[i, j]) for i in nearest[0] for j in nearest[1]}
            assert bool(measured.ms[y - 13, x - 5]) in candidates
    assert np.array_equal(measured.pan, pan_valid[window])
    assert np.array_equal(valid_window(store, window), measured.pan & measured.ms)


# --- classical fallback ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "offset"), [(2, 0.5), (3, 0), (4, 0)])
def test_classical_fallback_is_the_same_in_blocks(tmp_path: Path, ratio: int, offset: float) -> None:
    grid = overlap((205, 187), ratio, (offset, offset))
    shifts = ((0.4, -0.9), (-2.2, 3.1))
    pan, ms = observed(grid, 2, seed=8, shifts=shifts)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[40:90, 60:101] = False
    gains, results, constants = (0.30, 0.24), [], []
    for block_px in (64, 96, 256):
        store = stage_arrays(
            tmp_path / f"{block_px}.zarr", grid, pan, ms, block_px=block_px, pan_valid=pan_valid, band_shift_yx=shifts
        )
        sharpener = GlpSharpener.fit(store, gains)
        constants.append(np.array(sharpener.constants.gains))
        results.append(in_blocks(store, sharpener))
        whole = inner(store, sharpener(whole_tile(store)))
        assert np.abs(results[-1] - whole).max() < 1e-3
    assert constants[0] == pytest.approx(constants[2], rel=1e-9)
    assert constants[1] == pytest.approx(constants[2], rel=1e-9)
    assert np.abs(results[0] - results[2]).max() < 1e-3
    assert sharpener.method in classical.METHODS
    # The whole-scene method in memory ends its low-pass samples at the border; away from it the two are one.
    pair = classical.PairInput(pan, ms, ratio, band_phases(store.staged), gains)
    away = (slice(None), slice(40, -40), slice(40, -40))
    everywhere = GlpSharpener(
        classical.fit_glp_constants(classical.glp_sums(pan, ms, ratio, pair.phases_yx, gains)), gains
    )
    assert np.abs(in_blocks(store, everywhere) - classical.sharpen("mtf-glp-fs", pair))[away].max() < 1e-3
    valid = valid_window(store, everything(store))
    sums = classical.glp_sums(pan, ms, ratio, pair.phases_yx, gains, valid)
    assert constants[0] == pytest.approx(np.array(classical.fit_glp_constants(sums).gains), rel=0.02)


# --- nodata ---------------------------------------------------------------------------------------------------------

NODATA_BANDS = ("blue", "green")


def write_pair(folder: Path, pan: Array, ms: Array, pan_valid: Array) -> Scene:
    """A PAN file with an internal mask and an MS file with nodata 0."""
    folder.mkdir()
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint16", "crs": "EPSG:32633"}
    profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            folder / "pan.tif", "w", **profile, count=1, height=pan.shape[0], width=pan.shape[1],
            transform=from_origin(5e5, 4e6, 0.5, 0.5),
        ) as file,
    ):  # fmt: skip
        file.write(pan, 1)
        file.write_mask(pan_valid)
    with rasterio.open(
        folder / "ms.tif", "w", **profile, count=2, height=ms.shape[1], width=ms.shape[2], nodata=0,
        transform=from_origin(5e5, 4e6, 2, 2),
    ) as file:  # fmt: skip
        file.write(ms)
    return Scene(
        collection="tests", item_id=folder.name, sensor="test-sensor", acquired="2026-01-01T00:00:00Z",
        pan=AssetRef(key="pan", href=str(folder / "pan.tif")),
        ms=tuple(AssetRef(key="ms", href=str(folder / "ms.tif"), band=b) for b in (1, 2)),
        bands=NODATA_BANDS, fingerprint="f", source_href="item.json", geometry={},
    )  # fmt: skip


@pytest.mark.parametrize("method", ["pan-crafter", "mtf-glp-fs"])
def test_what_lies_beneath_nodata_changes_no_valid_pixel(tmp_path: Path, method: str) -> None:
    """Two sources that differ only beneath their masks give one result; the holes cross block borders."""
    rng = np.random.default_rng(4)
    pan, ms = observed(overlap((200, 212), 4), 2, seed=9)
    y, x = np.mgrid[: pan.shape[0], : pan.shape[1]]
    pan_valid = ((y - 66) ** 2 + (x - 120) ** 2 > 35**2) & (x + y > 60)
    ms_hole = np.zeros(ms.shape[1:], bool)
    ms_hole[28:40, 3:17] = True
    contract = contract_of(NODATA_BANDS)
    network = NetworkSharpener(random_checkpoint(6))
    results = []
    for name in ("one", "other"):
        hidden_pan, hidden_ms = pan.copy(), ms.copy()
        hidden_pan[~pan_valid] = rng.integers(1, 2047, (~pan_valid).sum())
        hidden_ms[0, ms_hole], hidden_ms[1, ms_hole] = 0, rng.integers(1, 2047, ms_hole.sum())
        scene = write_pair(tmp_path / name, hidden_pan, hidden_ms, pan_valid)
        with dask.config.set(scheduler="synchronous"):
            stage_scene(scene, contract, str(tmp_path / f"{name}.zarr"), block_px=128, reach_px=80)
        store = SceneStore.open(str(tmp_path / f"{name}.zarr"), "r+")
        store.begin_sharpening("r")
        sharpener = network if method == "pan-crafter" else GlpSharpener.fit(store, (0.3, 0.3))
        for block in store.pending_blocks():
            sharpen_block(store, block, sharpener)
        results.append(store.read_sharpened(everything(store)))
    assert not np.array_equal(hidden_pan, pan)
    valid = valid_window(store, everything(store))
    assert np.array_equal(valid, pan_valid & ~np.kron(ms_hole, np.ones((4, 4), bool)))
    assert np.array_equal(results[0], results[1])
    assert ((results[0] == 0) == ~valid).all()


def test_block_without_data_needs_no_sharpener(tmp_path: Path) -> None:
    grid = overlap((128, 128), 4)
    pan, ms = observed(grid, 3, seed=1)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[:64, :64] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid, nodata=7.0)
    two_bands = NetworkSharpener(random_checkpoint(bands=2))
    sharpen_block(store, (0, 0), two_bands)
    assert store.done_count == 1
    assert (store.read_sharpened(store.block_window((0, 0))) == 7).all()
    with pytest.raises(BandCountError, match="random take 2 bands at once, the scene has 3; choose weights"):
        sharpen_block(store, (0, 1), two_bands)
    assert store.done_count == 1


# --- numbers --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    nodata=st.one_of(st.none(), st.sampled_from([0.0, 1.0, 255.0, 254.0, 65535.0, 100.0])),
    dn_max=st.sampled_from([255, 2047, 65535]),
    values=st.lists(st.floats(-300, 70_000, width=32), min_size=1, max_size=30),
)
def test_quantised_dn_are_rounded_in_range_and_never_nodata(
    nodata: float | None, dn_max: int, values: list[float]
) -> None:
    grid = overlap((40, 40), 4)
    store = StagedScene.model_construct(grid=grid, nodata=nodata, dn_max=dn_max)
    image = np.array(values, np.float32)[None, None]
    valid = np.ones((1, len(values)), bool)
    valid[0, -1] = False
    found = quantise(image, valid, store)
    assert found.dtype == np.uint16
    low, high = dn_limits(store)
    kept = found[0, 0, :-1].astype(int)
    assert found[0, 0, -1] == (0 if nodata is None else nodata)
    assert (kept >= low).all()
    assert (kept <= high).all()
    if nodata is not None:
        assert not (kept == nodata).any()
        assert nodata in (low - 1, high + 1) or low < nodata
    moved = kept != np.round(image[0, 0, :-1].astype(np.float64)).clip(0, dn_max)
    for value, dn in zip(image[0, 0, :-1][moved], kept[moved], strict=True):
        assert abs(dn - min(max(float(value), 0), dn_max)) <= 1.5
        assert nodata is not None


def test_rounding_is_to_the_nearest_dn() -> None:
    staged = StagedScene.model_construct(nodata=None, dn_max=2047)
    image = np.array([[[-3.2, 0.4, 0.6, 1199.49, 1199.51, 2047.4, 9e9]]], np.float32)
    assert quantise(image, np.ones((1, 7), bool), staged)[0, 0].tolist() == [0, 0, 1, 1199, 1200, 2047, 2047]


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits of every product, yet the shipped weights stay within 0.3 % of the range on average."""
    grid = overlap((128, 128), 4)
    pan, ms = observed(grid, 2, seed=3)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, block_px=128)
    checkpoint, injection = load_checkpoint("open-compact"), fit_scene_injection(store, (0.3, 0.3))
    full, short = (
        in_blocks(store, NetworkSharpener(checkpoint, "cpu", p, injection, (Mtf(0.3),) * 2))
        for p in ("float32", "bfloat16")
    )
    difference = np.abs(full - short) / ranges(store.staged)
    detail = np.abs(full - classical.sharpen("exp", classical.PairInput(pan, ms, 4, ((1.5, 1.5),) * 2, (0.3, 0.3))))
    assert 0 < difference.mean() < 0.003
    assert difference.max() < 0.05
    assert (detail / ranges(store.staged)).mean() > 5 * difference.mean()


def test_device_without_memory_for_all_bands_takes_as_many_as_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And knows it at the next tile."""
    grid = overlap((64, 64), 4)
    pan, ms = observed(grid, 5, seed=3)
    tile = whole_tile(stage_arrays(tmp_path / "s.zarr", grid, pan, ms))
    checkpoint = random_checkpoint(3)
    expected = NetworkSharpener(checkpoint)(tile)
    sharpener, tried = NetworkSharpener(checkpoint), []
    network = sharpener._network

    class Small:
        def __call__(self, conditions: Any, region: Any) -> torch.Tensor:
            tried.append(len(conditions.ms[0]))
            if len(conditions.ms[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(conditions, region)

    monkeypatch.setitem(sharpener.__dict__, "_network", Small())
    monkeypatch.setitem(sharpener.__dict__, "device", "cuda:pretended")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(NetworkSharpener, "_conditions", lambda self, tile: _conditions_on_cpu(checkpoint, tile))
    with pytest.warns(UserWarning, match="no memory for 5 band groups of .* px at once: 2 from here on"):
        found = sharpener(tile)
    assert found == pytest.approx(expected, abs=1e-2)
    assert np.array_equal(sharpener(tile), found)
    assert tried == [5, 2, 2, 1, 2, 2, 1]


def _conditions_on_cpu(checkpoint: Checkpoint, tile: Tile) -> Any:
    return _CPU_CONDITIONS(NetworkSharpener(checkpoint), tile)


_CPU_CONDITIONS = NetworkSharpener._conditions


def test_value_range_cancels_out(tmp_path: Path) -> None:
    """A scene in other units comes out in those units: DN times four, range times four, result times four."""
    grid = overlap((80, 80), 4)
    pan, ms = observed(grid, 1, seed=2)
    results = []
    for factor in (1, 4):
        store = stage_arrays(tmp_path / f"{factor}.zarr", grid, pan * factor, ms * factor, dn_max=65535)
        results.append(in_blocks(store, NetworkSharpener(random_checkpoint(1))))
    assert results[1] == pytest.approx(4 * results[0], rel=1e-3, abs=0.1)


# --- building -------------------------------------------------------------------------------------------------------


def test_spec_travels_and_builds_once(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, random_network(1), {})
    spec = SharpenerSpec(
        weights=str(path),
        weights_sha256=weights_sha256(str(path)),
        precision="bfloat16",
        relative_mtf=(Mtf(0.2), Mtf(0.1, 3.0)),
    )
    travelled = SharpenerSpec.model_validate_json(pickle.loads(pickle.dumps(spec)).model_dump_json())
    sharpener = build_sharpener(travelled)
    assert sharpener is build_sharpener(spec)
    assert isinstance(sharpener, NetworkSharpener)
    assert (sharpener.method, sharpener.precision, sharpener.checkpoint.name) == ("pan-crafter", "bfloat16", "small")
    assert sharpener.relative_mtf == (Mtf(0.2), Mtf(0.1, 3.0))
    fallback = spec.model_copy(update={"glp": (classical.GlpConstants(gains=(0.5,)), (Mtf(0.3, 4.0),))})
    glp = build_sharpener(SharpenerSpec.model_validate_json(fallback.model_dump_json()))
    assert glp == GlpSharpener(classical.GlpConstants(gains=(0.5,)), (Mtf(0.3, 4.0),))
    with pytest.raises(WeightsError, match="not found"):
        build_sharpener(SharpenerSpec(weights="missing", weights_sha256="0" * 64))


def test_weights_trained_anew_at_the_same_path_are_other_weights(tmp_path: Path) -> None:
    """A scene begun with the new file gets the new network; a worker that finds another file than was meant refuses."""
    grid = overlap((80, 80), 4)
    store = stage_arrays(tmp_path / "s.zarr", grid, *observed(grid, 1, seed=1))
    contract = contract_of(("b1",))
    path = tmp_path / "mine.safetensors"

    def fitted() -> SharpenerSpec:
        return fit_sharpener(store, contract, "pan-crafter", weights=str(path), device="cpu", precision="float32")

    def stem(spec: SharpenerSpec) -> torch.Tensor:
        sharpener = build_sharpener(spec)
        assert isinstance(sharpener, NetworkSharpener)
        return sharpener.checkpoint.network.stem.weight

    networks, specs = [random_network(seed) for seed in (1, 2)], []
    for network in networks:
        save_checkpoint(path, network, {})
        specs.append(fitted())
        assert torch.equal(stem(specs[-1]), network.stem.weight)
    assert torch.equal(stem(specs[0]), networks[0].stem.weight)
    travelled = specs[0].model_copy(update={"device": "cpu:0"})
    with pytest.raises(
        WeightsError, match=f"SHA-256 {specs[1].weights_sha256}, the scene is made with {specs[0].weights_sha256}"
    ):
        build_sharpener(travelled)


def test_weights_of_the_benchmark_sharpen_no_scene(tmp_path: Path) -> None:
    path = tmp_path / "gf2.safetensors"
    save_checkpoint(path, random_network(1), {"config": {"pancollection": {"train": ["train_gf2.h5"]}}})
    with pytest.raises(WeightsError, match=r"gf2\.safetensors was trained on PanCollection.*choose open-compact, or"):
        build_sharpener(SharpenerSpec(weights=str(path), weights_sha256=weights_sha256(str(path))))


def test_a_worker_without_the_device_is_no_fault_of_the_scene() -> None:
    spec = SharpenerSpec(weights="open-compact", weights_sha256=weights_sha256("open-compact"), device="cuda:99")
    with pytest.raises(
        DeviceError, match=r"device 'cuda:99' cannot be used here \(.*\); expected auto, cpu, cuda"
    ) as it:
        build_sharpener(spec)
    assert it.value.kind == "system"


def test_sharpening_again_writes_the_same_dn(tmp_path: Path) -> None:
    grid = overlap((130, 110), 4)
    pan, ms = observed(grid, 1, seed=1)
    assert landscape((8, 8), 1).shape == (8, 8)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    sharpener = NetworkSharpener(random_checkpoint(2))
    sharpen_block(store, (1, 1), sharpener)
    first = store.read_sharpened(store.block_window((1, 1)))
    sharpen_block(store, (0, 0), sharpener)
    sharpen_block(store, (1, 1), sharpener)
    assert np.array_equal(store.read_sharpened(store.block_window((1, 1))), first)
