"""What the assessment says of a scene: window by window the same as at once, and planted failures do not pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import random_checkpoint
from numpy.typing import NDArray
from staged_scenes import Array, everything, observed, overlap, sharpen_all, stage_arrays, write_result

from pancrafter import assess, classical
from pancrafter.assess import (
    Sample,
    assessment_windows,
    combine,
    consistency_raster,
    inconsistent_pixels,
    local_limit,
    reduced_sample,
    sample_windows,
    window_sums,
)
from pancrafter.engine import GlpSharpener, NetworkSharpener, Sharpener
from pancrafter.errors import InvalidSceneError
from pancrafter.metrics import consistency, ergas, error_sums, hqnr_production_sums
from pancrafter.quality import QualityRule
from pancrafter.resample import GENERIC_MTF_GAIN, degrade, upsample
from pancrafter.store import SceneStore, Window
from pancrafter.tiles import Tile, band_phases, valid_window
from pancrafter.types import Quality, StagedScene, ValueRange

GAINS = (0.30, 0.28, 0.33)
SHIFTS = ((0.0, 0.0), (1.2, -0.7), (0.4, 0.3))


def read_result(store: SceneStore) -> Array:
    return store.read_sharpened(everything(store)).astype(np.float64)


def quality(store: SceneStore, sharpener: Sharpener) -> Quality:
    windows = [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in assessment_windows(store)]
    samples = [reduced_sample(store, window, sharpener, GAINS, GENERIC_MTF_GAIN) for window in sample_windows(store)]
    return combine(store.staged, sharpener.method, windows, samples)


@dataclass(frozen=True)
class Injection:
    """Cubic MS plus a good share of PAN detail, whether PAN belongs to the scene or not: a network that trusts it."""

    @property
    def method(self) -> str:
        return "pan-crafter"

    @property
    def rows_at_once(self) -> int:
        return 0

    def halo_px(self, staged: StagedScene) -> int:
        return 32

    def __call__(self, tile: Tile, core: Window | None = None) -> NDArray[np.float32]:
        constants = classical.GlpConstants(gains=(0.75, 0.65, 0.55))
        whole = classical.glp_window(tile.pan, tile.ms, tile.ratio, tile.phases_yx, GAINS, constants)
        return whole if core is None else whole[(slice(None), *core)]

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        return 100 * tile_px


# --- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "pan_yx", "offset_px"), [(4, (611, 550), (0, 0)), (3, (590, 640), (1, 0)), (2, (601, 523), (0.5, 0.5))]
)
@pytest.mark.parametrize("holes", [False, True])
def test_windows_add_up_to_the_whole_scene(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratio: int,
    pan_yx: tuple[int, int],
    offset_px: tuple[float, float],
    *,
    holes: bool,
) -> None:
    """Odd sizes, band shifts and holes across window borders: the same figures as on whole arrays."""
    monkeypatch.setattr(assess, "WINDOW_PX", 512)
    grid = overlap(pan_yx, ratio, offset_px)
    pan, ms = observed(grid, 3, seed=1, shifts=SHIFTS)
    pan_valid, ms_valid = np.ones(pan.shape, bool), np.ones(ms.shape[1:], bool)
    if holes:
        pan_valid[500:530, 470:540], ms_valid[:9, :20], pan_valid[:, 300] = False, False, False
    store = stage_arrays(
        tmp_path / "s.zarr", grid, pan, ms, block_px=256, pan_valid=pan_valid, ms_valid=ms_valid, band_shift_yx=SHIFTS
    )
    phases = band_phases(store.staged)
    sharpened = np.stack([upsample(b, pan_yx, ratio, p) for b, p in zip(ms, phases, strict=True)]) + 0.4 * (pan - 900.0)
    write_result(store, sharpened)
    valid, result = valid_window(store, everything(store)), read_result(store)
    windows = assessment_windows(store)
    assert len(windows) >= 4
    covered = np.zeros(pan.shape, int)
    for window in windows:
        covered[window] += 1
    assert (covered == 1).all()

    found = combine(
        store.staged, "none", [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in windows[::-1]], []
    )
    centres = [
        np.clip(np.rint(ratio * np.arange(n) + phase).astype(int), 0, size - 1)
        for n, phase, size in zip(ms.shape[1:], grid.phase_yx, pan.shape, strict=True)
    ]
    on_ms = valid[np.ix_(*centres)] & ms_valid
    at_once = consistency(result, ms, ratio, phases, GAINS, on_ms)
    assert (found.consistency_ergas, found.consistency_sam_deg) == pytest.approx(at_once, rel=1e-6)
    scores = hqnr_production_sums(
        result, pan, ms, ratio, phases, GAINS, GENERIC_MTF_GAIN, valid, by_structure=True
    ).scores()
    assert (found.d_lambda, found.d_s, found.hqnr) == pytest.approx(
        (scores.d_lambda, scores.d_s, scores.hqnr), abs=1e-6
    )
    assert found.clipped_share == pytest.approx(np.isin(result[:, valid], (0, 2047)).mean(), abs=1e-9)
    assert 0 <= found.clipped_share < 0.1


def test_pixels_at_the_ends_of_the_range_are_counted(tmp_path: Path) -> None:
    grid = overlap((128, 128), 4)
    pan, ms = observed(grid, 3, seed=1)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[64:] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid, nodata=0.0, valid_share=0.5)
    sharpened = np.full((3, 128, 128), 500.0)
    sharpened[0, :16] = -20
    sharpened[1, 16:24] = 5000
    write_result(store, sharpened)
    found = combine(
        store.staged, "none", [window_sums(store, w, GAINS, GENERIC_MTF_GAIN) for w in assessment_windows(store)], []
    )
    assert found.clipped_share == pytest.approx((16 + 8) / (3 * 64))
    assert found.invalid_share == 0.5


def test_damaged_blocks_are_where_the_raster_and_the_mask_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever window saw them."""
    monkeypatch.setattr(assess, "WINDOW_PX", 128)
    grid = overlap((308, 280), 4)
    pan, ms = observed(grid, 3, seed=1)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[192:224, 192:224] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid, nodata=0.0)
    sharpened = np.stack([upsample(band, pan.shape, 4, grid.phase_yx) for band in ms])
    damaged, marked = [(0, 0), (5, 3), (8, 7)], np.zeros(pan.shape, bool)
    for y, x in damaged:
        marked[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = True
    write_result(store, np.where(marked, 1.0, sharpened))
    windows = [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in assessment_windows(store)]
    assert len(windows) == 9
    raster = consistency_raster(store.staged, windows[::-1])
    assert raster.shape == (10, 9)
    assert np.isnan(raster[6, 6])
    assert np.argwhere(raster > local_limit(4)).tolist() == [list(at) for at in damaged]
    assert [raster[at] for at in damaged] == pytest.approx([100 / 4] * 3, rel=0.2)  # all of the signal is missing
    for part in (everything(store), (slice(150, 308), slice(7, 280))):
        np.testing.assert_array_equal(inconsistent_pixels(store, raster, part), marked[part])
    found = combine(store.staged, "none", windows, [])
    assert found.inconsistent_share == pytest.approx(3 / np.isfinite(raster).sum())
    assert found.worst_block_ergas == np.nanmax(raster)


def test_damage_reaches_into_a_border_too_narrow_to_be_compared(tmp_path: Path) -> None:
    grid = overlap((136, 136), 4)  # the last blocks are 2 MS pixels wide
    pan, ms = observed(grid, 3, seed=1)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    marked = np.zeros(pan.shape, bool)
    marked[96:, 96:], marked[:32, 96:] = True, True
    write_result(store, np.where(marked, 1.0, np.stack([upsample(b, pan.shape, 4, grid.phase_yx) for b in ms])))
    windows = [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in assessment_windows(store)]
    found = inconsistent_pixels(store, consistency_raster(store.staged, windows), everything(store))
    np.testing.assert_array_equal(found, marked)


def test_marked_pixels_lie_on_the_ms_pixels_of_their_block(tmp_path: Path) -> None:
    grid = overlap((120, 150), 4, (3, 1))  # PAN begins 3 rows and 1 column inside the first MS pixel
    store = stage_arrays(tmp_path / "s.zarr", grid, *observed(grid, 3, seed=1))
    errors = np.zeros((4, 5), np.float32)
    errors[1, 2] = 100
    marked = np.zeros(grid.pan.shape_yx, bool)
    marked[29:61, 63:95] = True
    np.testing.assert_array_equal(inconsistent_pixels(store, errors, everything(store)), marked)


def test_pixels_beside_missing_ones_are_not_marked_for_the_block_before(tmp_path: Path) -> None:
    """The last block is as wide as others, but too much of it is missing to be compared."""
    grid = overlap((128, 128), 4)
    pan, ms = observed(grid, 3, seed=1)
    pan_valid, marked = np.ones(pan.shape, bool), np.zeros(pan.shape, bool)
    pan_valid[:, 120:], marked[:32, 64:96] = False, True
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid, nodata=0.0)
    write_result(store, np.where(marked, 1.0, np.stack([upsample(b, pan.shape, 4, grid.phase_yx) for b in ms])))
    windows = [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in assessment_windows(store)]
    raster = consistency_raster(store.staged, windows)
    assert raster[0, 2] > local_limit(4)
    assert np.isnan(raster[:, 3]).all()
    np.testing.assert_array_equal(inconsistent_pixels(store, raster, everything(store)), marked)


# --- samples --------------------------------------------------------------------------------------------------------


def test_sample_windows_are_valid_and_spread(tmp_path: Path) -> None:
    grid = overlap((300, 1700), 2)
    pan = np.arange(300 * 1700, dtype=np.uint32).reshape(300, 1700).astype(np.uint16)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[:, 310:580] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, pan[None, ::2, ::2].copy(), block_px=512, pan_valid=pan_valid)
    windows = sample_windows(store)
    assert all(w[0] == slice(0, 300) for w in windows)
    assert [w[1].start for w in windows] == [0, 600, 900, 1200]
    assert all(valid_window(store, w).mean() > 0.95 for w in windows)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("kind", ["glp", "network"])
def test_reduced_sample_compares_us_with_every_classical_method(tmp_path: Path, ratio: int, kind: str) -> None:
    grid = overlap((144 * ratio // 3, 160 * ratio // 3), ratio)
    pan, ms = observed(grid, 3, seed=2)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    sharpener: Sharpener = NetworkSharpener(random_checkpoint(1))
    if kind == "glp":
        sharpener = GlpSharpener.fit(store, GAINS)
    sharpen_all(store, GlpSharpener.fit(store, GAINS))
    (window,) = sample_windows(store)
    sample = reduced_sample(store, window, sharpener, GAINS, GENERIC_MTF_GAIN)
    assert sample is not None
    assert set(sample.errors) == set(classical.METHODS) | {sharpener.method}
    scores = {method: errors.ergas(ratio) for method, errors in sample.errors.items()}
    # MS, one scale down and cubically up again, written out here.
    side = [n // (4 * ratio) * (4 * ratio) for n in ms.shape[1:]]
    truth = ms[:, : side[0], : side[1]].astype(np.float64)
    centre = ((ratio - 1) / 2,) * 2
    small = (side[0] // ratio, side[1] // ratio)
    coarse = [degrade(b, small, ratio, centre, g) for b, g in zip(truth, GAINS, strict=True)]
    cubic = np.stack([upsample(b, (side[0], side[1]), ratio, centre) for b in coarse])
    assert scores["exp"] == pytest.approx(ergas(truth[:, 8:-8, 8:-8], cubic[:, 8:-8, 8:-8], ratio), rel=1e-4)
    assert scores["mtf-glp-fs"] < 0.9 * scores["exp"]
    # Random weights are worse than anything, and the sample says so.
    assert (scores[sharpener.method] > scores["exp"]) == (kind == "network")


def test_pan_is_reduced_where_the_bands_really_lie(tmp_path: Path) -> None:
    """A shift that staging knows costs nothing at reduced scale; one it does not know does."""
    grid = overlap((320, 320), 4)
    shift = (2.4, -1.7)
    scores = {}
    for name, true, known in (("none", (0.0, 0.0), (0.0, 0.0)), ("known", shift, shift), ("missed", shift, (0.0, 0.0))):
        pan, ms = observed(grid, 3, seed=3, shifts=(true,) * 3)
        store = stage_arrays(tmp_path / f"{name}.zarr", grid, pan, ms, block_px=256, band_shift_yx=(known,) * 3)
        sharpener = GlpSharpener.fit(store, GAINS)
        sharpen_all(store, sharpener)
        sample = reduced_sample(store, sample_windows(store)[0], sharpener, GAINS, GENERIC_MTF_GAIN)
        assert sample is not None
        scores[name] = sample.errors["mtf-glp-fs"].ergas(4)
    assert scores["known"] == pytest.approx(scores["none"], rel=0.1)
    assert scores["missed"] > 1.15 * scores["none"]


def test_too_small_a_window_gives_no_sample(tmp_path: Path) -> None:
    grid = overlap((120, 120), 4)
    pan, ms = observed(grid, 3, seed=2)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    sharpener = GlpSharpener.fit(store, GAINS)
    sharpen_all(store, sharpener)
    found = quality(store, sharpener)
    assert reduced_sample(store, sample_windows(store)[0], sharpener, GAINS, GENERIC_MTF_GAIN) is None
    assert (found.reduced_ergas, found.best_classical, found.gain_over_fallback) == (None, None, None)
    assert QualityRule().verdict(found, 4) == ("pass", "")


# --- combining ------------------------------------------------------------------------------------------------------


def test_nothing_measured_is_an_error_that_says_so(tmp_path: Path) -> None:
    grid = overlap((40, 40), 4)
    pan, ms = observed(grid, 3, seed=1)
    pan_valid = np.ones(pan.shape, bool)
    pan_valid[::16, ::16] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=pan_valid)
    with pytest.raises(InvalidSceneError, match="nothing was measured: the scene has no assessment window"):
        combine(store.staged, "none", [], [])
    windows = [window_sums(store, window, GAINS, GENERIC_MTF_GAIN) for window in assessment_windows(store)]
    with pytest.raises(InvalidSceneError, match="no complete 32 px block"):
        combine(store.staged, "none", windows, [])


def test_a_band_of_zeros_is_left_out_of_ergas(tmp_path: Path) -> None:
    """A scene with an empty cirrus band has the ERGAS of its other bands."""
    grid = overlap((600, 600), 4)
    pan, ms = observed(grid, 3, seed=2)
    ms[2] = 0
    found = {}
    for bands in (2, 3):
        store = stage_arrays(tmp_path / f"{bands}.zarr", grid, pan, ms[:bands], block_px=300)
        sharpener = GlpSharpener.fit(store, GAINS[:bands])
        sharpen_all(store, sharpener)
        windows = [window_sums(store, w, GAINS[:bands], GENERIC_MTF_GAIN) for w in assessment_windows(store)]
        samples = [reduced_sample(store, w, sharpener, GAINS[:bands], GENERIC_MTF_GAIN) for w in sample_windows(store)]
        found[bands] = combine(store.staged, sharpener.method, windows, samples)
    for name in ("consistency_ergas", "detail_ergas", "reduced_ergas"):
        assert getattr(found[3], name) == pytest.approx(getattr(found[2], name))
    assert found[3].radiometric_bias == found[2].radiometric_bias
    assert QualityRule().verdict(found[3], 4) == ("pass", "")


@pytest.mark.parametrize(("pan_yx", "ratio"), [((1, 1), 4), ((3, 500), 4), ((500, 1), 2)])
def test_an_overlap_narrower_than_an_ms_pixel_is_refused_as_too_small(
    tmp_path: Path, pan_yx: tuple[int, int], ratio: int
) -> None:
    grid, rng = overlap(pan_yx, ratio), np.random.default_rng(1)
    pan, ms = (rng.integers(100, 900, shape).astype(np.uint16) for shape in (pan_yx, (3, *grid.ms_shape_yx)))
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    sharpener = GlpSharpener.fit(store, GAINS)
    sharpen_all(store, sharpener)
    with pytest.raises(InvalidSceneError, match="no complete 32 px block"):
        quality(store, sharpener)


def test_best_classical_is_the_best_real_method_over_all_samples(tmp_path: Path) -> None:
    """``exp`` injects nothing and is no rival; sums are added before the root is taken."""
    grid = overlap((128, 128), 4)
    pan, ms = observed(grid, 3, seed=1)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    sharpen_all(store, GlpSharpener.fit(store, GAINS))
    windows = [window_sums(store, w, GAINS, GENERIC_MTF_GAIN) for w in assessment_windows(store)]

    def sample(ours: float, gsa: float, brovey: float, shift: float) -> Sample:
        flat = np.full((1, 10, 10), 100.0)
        given = {"pan-crafter": ours, "gsa": gsa, "brovey": brovey, "exp": 0.0}
        return Sample({method: error_sums(flat, flat + e) for method, e in given.items()}, shift)

    samples = [sample(6, 10, 1, 0.2), None, sample(8, 10, 30, math.nan), sample(8, 10, 30, 0.6)]
    found = combine(store.staged, "pan-crafter", windows, samples)
    assert found.best_classical == "gsa"
    assert found.best_classical_reduced_ergas == pytest.approx(25 * 0.10)
    assert found.reduced_ergas == pytest.approx(25 * math.sqrt((36 + 64 + 64) / 3) / 100)
    assert found.gain_over_classical == pytest.approx(1 - math.sqrt(164 / 3) / 10)
    assert found.residual_shift_px == pytest.approx(0.4)


def test_scene_without_any_structure_is_assessed(tmp_path: Path) -> None:
    """Calm water: every method is right to the last bit, so no gain over another can be stated."""
    grid = overlap((320, 320), 4)
    pan, ms = np.full((320, 320), 400, np.uint16), np.full((3, 80, 80), 300, np.uint16)
    wide = ValueRange(low=200, high=500)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, block_px=320, pan_range=wide, ms_ranges=(wide,) * 3)
    sharpener = GlpSharpener.fit(store, GAINS)
    sharpen_all(store, sharpener)
    found = quality(store, sharpener)
    assert found.consistency_ergas == pytest.approx(0, abs=1e-6)
    assert (found.d_lambda, found.d_s, found.hqnr) == pytest.approx((0, 0, 1))
    assert found.band_confusion == pytest.approx(0, abs=0.01)
    assert QualityRule().verdict(found, 4)[0] == "pass"


# --- planted failures -----------------------------------------------------------------------------------------------


def levels(ms: Array) -> Array:
    """Bands as unlike in brightness as those of a real scene."""
    factors = np.array([1.0, 0.55, 1.5])[:, None, None]
    scaled: Array = np.rint(ms * factors).clip(0, 2047).astype(np.uint16)
    return scaled


Plant = Callable[[Array], Array]
PLANTS: dict[str, Plant] = {
    "swapped bands": lambda image: image[[1, 2, 0]],
    "shift of 2 px": lambda image: np.roll(image, 2, axis=2),
    "wrong DN scale": lambda image: 0.5 * image,
    "noise": lambda image: image + np.random.default_rng(0).normal(0, 150, image.shape),
    "blur": lambda image: np.repeat(np.repeat(image[:, 1::4, 1::4], 4, 1), 4, 2),
}
CAUGHT_BY = {"swapped bands": "consistency", "shift of 2 px": "residual shift", "wrong DN scale": "consistency"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[SceneStore, Array, GlpSharpener, Quality]:
    grid = overlap((384, 384), 4)
    pan, ms = observed(grid, 3, seed=6)
    store = stage_arrays(tmp_path_factory.mktemp("good") / "s.zarr", grid, pan, levels(ms), block_px=384)
    sharpener = GlpSharpener.fit(store, GAINS)
    sharpen_all(store, sharpener)
    return store, read_result(store), sharpener, quality(store, sharpener)


def test_a_good_result_passes(good: tuple[SceneStore, Array, GlpSharpener, Quality]) -> None:
    found = good[3]
    assert QualityRule().verdict(found, 4) == ("pass", "")
    assert found.consistency_ergas < 1
    assert found.hqnr > 0.9
    assert found.residual_shift_px < 0.2
    assert found.gain_over_classical == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_failures_lower_the_scores_and_do_not_pass(
    good: tuple[SceneStore, Array, GlpSharpener, Quality], plant: str
) -> None:
    store, image, sharpener, before = good
    write_result(store, PLANTS[plant](image))
    found = quality(store, sharpener)
    assert found.hqnr < before.hqnr - 0.05
    assert found.consistency_ergas > 1.5 * before.consistency_ergas
    verdict, reason = QualityRule().verdict(found, 4)
    if plant in CAUGHT_BY:
        assert verdict == "fallback"
        assert CAUGHT_BY[plant] in reason


def test_pan_of_another_scene_is_held(tmp_path: Path) -> None:
    """Detail that is not in the scene shows at reduced scale, where methods that doubt it do better."""
    grid = overlap((384, 384), 4)
    (pan, ms), (other, _) = observed(grid, 3, seed=6), observed(grid, 1, seed=60)
    found = {}
    for name, used in (("own", pan), ("other", other)):
        store = stage_arrays(tmp_path / f"{name}.zarr", grid, used, ms, block_px=384)
        sharpen_all(store, Injection())
        found[name] = quality(store, Injection())
    assert found["other"].hqnr < found["own"].hqnr - 0.1
    assert found["own"].gain_over_classical is not None
    assert found["other"].gain_over_classical is not None
    assert found["other"].gain_over_classical < min(-0.2, found["own"].gain_over_classical)
    verdict, reason = QualityRule().verdict(found["other"], 4)
    assert verdict == "hold"
    assert "gain over the classical result" in reason
    assert "other ground" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gain_over_fallback": -0.08}, "gain over the classical result -8.0% < -7.0%"),
        ({"detail_correlation": 0.915}, "detail correlation 0.915 < 0.92"),
        ({"detail_correlation": math.nan}, "detail correlation nan < 0.92"),
        ({"consistency_ergas": 3.01}, "consistency ERGAS 3.01 > 3"),
        ({"consistency_ergas": 7.6, "detail_ergas": 10.0}, "consistency ERGAS 7.6 > 7.5"),
        ({"consistency_ergas": math.nan}, "consistency ERGAS nan > 3"),
        ({"consistency_sam_deg": 5.0}, "consistency SAM 5 deg > 4.5"),
        ({"consistency_sam_deg": 7.6, "detail_sam_deg": 10.0}, "consistency SAM 7.6 deg > 7.5"),
        ({"radiometric_bias": 0.2}, "radiometric bias 0.2 > 0.05"),
        ({"band_confusion": 1.1}, "band confusion 1.1 > 1"),
        ({"worst_block_error": 1.1}, "worst block 1.1 > 0.85"),
        ({"displacement_px": 1.5}, "displacement 1.5 px > 0.75"),
        ({"residual_shift_px": 1.2}, "residual shift 1.2 px > 1"),
        ({"hqnr": 0.59}, "HQNR 0.590 < 0.6"),
        ({"hqnr": math.nan}, "HQNR nan < 0.6"),
    ],
)
def test_each_limit_alone_holds_a_scene_back(change: dict[str, Any], reason: str) -> None:
    rule = QualityRule()
    passing = Quality(
        consistency_ergas=2, consistency_sam_deg=1, d_lambda=0.1, d_s=0.1, hqnr=0.81, residual_shift_px=0.1,
        reduced_ergas=2, best_classical="gsa", best_classical_reduced_ergas=2.2, gain_over_classical=0.09,
        gain_over_fallback=-0.06, clipped_share=0, invalid_share=0,
    )  # fmt: skip
    assert rule.verdict(passing, 4) == ("pass", "")
    broken = passing.model_copy(update=change)
    assert rule.verdict(broken, 4) == ("fallback", reason)
    assert rule.model_copy(update={"on_miss": "hold"}).verdict(broken, 4) == ("hold", reason)
    expected = ("pass", "") if "gain" in reason else ("hold", reason)
    assert rule.verdict(broken, 4, classical=True) == expected
    unmeasured = passing.model_copy(update={"residual_shift_px": None, "displacement_px": None})
    assert rule.verdict(unmeasured, 4) == ("pass", "")


def test_pan_of_other_ground_is_held_whatever_the_method() -> None:
    found = Quality(
        consistency_ergas=1, consistency_sam_deg=1, d_lambda=0.1, d_s=0.1, hqnr=0.81, residual_shift_px=None,
        reduced_ergas=None, best_classical=None, best_classical_reduced_ergas=None, gain_over_classical=None,
        clipped_share=0, invalid_share=0, pan_correlation=0.1,
    )  # fmt: skip
    for made_classically in (False, True):
        verdict, reason = QualityRule().verdict(found, 4, classical=made_classically)
        assert verdict == "hold"
        assert "correlation 0.10 < 0.35" in reason
