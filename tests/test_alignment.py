"""The shift estimator against known displacements and against the measurements that come with the real pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import bench_coregistration
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from simulated_scenes import simulated_scene

from pancrafter.alignment import BandShift, _with_the_others, agree, combine_windows, estimate_band_shifts
from pancrafter.resample import degrade, mtf_sigma

Image = NDArray[np.float64]


def ground(shape_yx: tuple[int, int], seed: int = 0) -> Image:
    """Texture with detail on several scales and hard edges, in DN."""
    rng = np.random.default_rng(seed)
    smooth = sum(ndimage.gaussian_filter(rng.normal(size=shape_yx), sigma) * sigma for sigma in (1, 3, 8))
    fields = ndimage.gaussian_filter(rng.normal(size=shape_yx), 12) > 0
    return np.asarray(800 + 150 * smooth + 200 * fields)


def sampled(image: Image, ratio: int, phase: float, shift_yx: tuple[float, float]) -> Image:
    shape = (image.shape[0] // ratio, image.shape[1] // ratio)
    return degrade(image, shape, ratio, (phase + shift_yx[0], phase + shift_yx[1]), 0.3)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.6), (-1.5, 2.25), (5.9, -4.4)])
def test_known_shift_is_found(ratio: int, shift: tuple[float, float]) -> None:
    pan = ground((96 * ratio, 112 * ratio))
    phase = (ratio - 1) / 2
    noise = np.random.default_rng(1).normal(size=(3, 96, 112)) * 3
    ms = np.stack([gain * sampled(pan, ratio, phase, shift) for gain in (0.7, 1.0, 1.3)]) + noise
    for found in estimate_band_shifts(pan, ms, ratio, (phase, phase)):
        assert found.shift_yx == pytest.approx(shift, abs=0.05)
        assert found.certain
        assert found.significant == (shift != (0.0, 0.0))
        assert found.applied_yx == (found.shift_yx if shift != (0.0, 0.0) else (0.0, 0.0))


def test_bands_move_on_their_own() -> None:
    pan = ground((384, 384))
    shifts = [(0.9, 0.0), (-0.4, 1.1), (0.0, 0.0), (1.7, -0.5)]
    ms = np.stack([sampled(pan, 4, 1.5, shift) for shift in shifts])
    for found, shift in zip(estimate_band_shifts(pan, ms, 4, (1.5, 1.5)), shifts, strict=True):
        assert found.shift_yx == pytest.approx(shift, abs=0.05)


def test_images_of_a_few_pixels_are_measured_nearer_to_their_border() -> None:
    pan = ground((44, 44))
    (found,) = estimate_band_shifts(pan, sampled(pan, 2, 0.5, (1.2, -0.8))[None], 2, (0.5, 0.5))
    assert found.shift_yx == pytest.approx((1.2, -0.8), abs=0.05)
    assert found.certain
    pan = ground((40, 40))
    (too_few_parts,) = estimate_band_shifts(pan, sampled(pan, 2, 0.5, (1.2, -0.8))[None], 2, (0.5, 0.5))
    assert not too_few_parts.certain


def test_phase_zero_and_uneven_phase() -> None:
    pan = ground((257, 255))
    ms = degrade(pan, (128, 127), 2, (0.0 + 0.8, 0.7 - 0.3), 0.3)[None]
    (found,) = estimate_band_shifts(pan, ms, 2, (0.0, 0.7))
    assert found.shift_yx == pytest.approx((0.8, -0.3), abs=0.05)


def test_band_unlike_pan_follows_the_others() -> None:
    """A SWIR-like band shares no detail with PAN: its own maximum is chance, the other bands say where MS lies."""
    pan = ground((384, 384))
    bands = [sampled(pan, 4, 1.5, (1.2, -0.8)), sampled(ground((384, 384), seed=9), 4, 1.5, (0.0, 0.0))]
    visible, swir = estimate_band_shifts(pan, np.stack(bands), 4, (1.5, 1.5))
    assert visible.shift_yx == pytest.approx((1.2, -0.8), abs=0.05)
    assert swir.shift_yx == pytest.approx((1.2, -0.8), abs=0.1)


def test_band_without_texture_follows_the_others() -> None:
    pan = ground((384, 384))
    visible = sampled(pan, 4, 1.5, (1.2, -0.8))
    _, saturated = estimate_band_shifts(pan, np.stack([visible, np.full_like(visible, 2047)]), 4, (1.5, 1.5))
    assert saturated.shift_yx == pytest.approx((1.2, -0.8), abs=0.05)
    assert saturated.certain


def test_correlation_is_that_of_the_cells_at_the_shift_that_was_found() -> None:
    """Blurred, resampled and fitted here by other means: Gaussians as sums, splines, one cell at a time."""
    pan = ground((384, 448))
    ms = sampled(pan, 4, 1.5, (0.7, -1.6)) + np.random.default_rng(1).normal(size=(96, 112)) * 20
    (found,) = estimate_band_shifts(pan, ms[None], 4, (1.5, 1.5))

    blurred = ndimage.gaussian_filter(pan, mtf_sigma(0.3, 4), mode="nearest")
    detail = blurred - ndimage.gaussian_filter(blurred, 4 * 1.5, mode="nearest")
    y, x = (4 * np.arange(size) + 1.5 + by for size, by in zip(ms.shape, found.shift_yx, strict=True))
    beneath = ndimage.map_coordinates(detail, np.meshgrid(y, x, indexing="ij"), mode="nearest")
    band = ms - ndimage.gaussian_filter(ms, 1.5, mode="nearest")
    cells = [(slice(y, y + 5), slice(x, x + 5)) for y in range(3, 93, 5) for x in range(3, 109, 5)]
    cells = [(rows, slice(cols.start, min(cols.stop, 109))) for rows, cols in cells]
    ridge = 0.001 * np.mean([beneath[cell].var() * beneath[cell].size for cell in cells])
    wanted, left = [], []
    for cell in cells:
        one, other = (image[cell].ravel() - image[cell].mean() for image in (band, beneath))
        wanted.append(one @ one / one.size)
        left.append(wanted[-1] - (one @ other) ** 2 / (other @ other + ridge) / one.size)
    floor, busy = 0.03 * np.mean(wanted), np.array(wanted) >= np.median(wanted)
    sizes = np.array([band[cell].size for cell in cells])
    logs = np.log((np.array(left) + floor) / (np.array(wanted) + floor))
    unexplained = np.average(logs[busy], weights=sizes[busy])
    assert found.correlation == pytest.approx(np.sqrt(1 - np.exp(unexplained)), abs=2e-4)


@pytest.mark.parametrize("seed", [2, 3, 7])
def test_borders_that_pan_and_a_band_see_the_other_way_round_do_not_pull_it_aside(seed: int) -> None:
    """Landsat 8 over fields, GeoEye-1 at a coast, WorldView-3 over industry: one correlation over all of the image
    puts near infrared or SWIR 0.5 to 1.4 px aside."""
    pair, _, model = simulated_scene(seed, all_bands=True, side_px=1024, field_px=0.0)
    found = estimate_band_shifts(pair.pan, pair.ms, pair.ratio, model.phase)
    errors = [np.hypot(*np.subtract(one.shift_yx, true)) for one, true in zip(found, model.shift_yx, strict=True)]
    assert all(one.certain for one in found)
    assert max(errors) < 0.16, errors


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_shift_beyond_the_limit_is_not_certain(ratio: int, sign: int) -> None:
    """The search stops at its limit, a pixel beyond what it may answer, on images of all sizes."""
    phase, shift = (ratio - 1) / 2, (sign * 7.4, sign * 7.4)
    for side in (18, 24, 96):
        pan = ndimage.gaussian_filter(ground((side * ratio, side * ratio)), 3)
        ms = sampled(pan, ratio, phase, shift)
        (found,) = estimate_band_shifts(pan, ms[None], ratio, (phase, phase))
        assert not found.certain
        assert max(map(abs, found.shift_yx)) <= 7


def test_invalid_pixels_do_not_count() -> None:
    """Half of MS shows something else; with the mask the other half decides alone."""
    pan = ground((384, 384))
    ms = sampled(pan, 4, 1.5, (1.0, 1.0))
    ms[:, 40:] = sampled(ground((384, 384), seed=4), 4, 1.5, (0.0, 0.0))[:, 40:] * 3
    valid = np.ones((96, 96), bool)
    valid[:, 40:] = False
    (masked,) = estimate_band_shifts(pan, ms[None], 4, (1.5, 1.5), valid=valid)
    assert masked.shift_yx == pytest.approx((1.0, 1.0), abs=0.05)
    assert masked.significant


@pytest.mark.parametrize("kind", ["flat", "noise", "nothing valid"])
def test_no_false_correction(kind: str) -> None:
    rng = np.random.default_rng(3)
    pan, ms = np.full((256, 256), 500.0), np.full((4, 64, 64), 300.0)
    if kind == "noise":
        pan, ms = pan + rng.normal(size=pan.shape) * 5, ms + rng.normal(size=ms.shape) * 5
    valid = np.full((64, 64), kind != "nothing valid")
    for found in estimate_band_shifts(pan, ms, 4, (1.5, 1.5), valid=valid):
        assert not found.certain
        assert found.applied_yx == (0.0, 0.0)


@pytest.mark.parametrize("angle_deg", [0, 30])
def test_parallel_lines_place_a_band_across_them_alone(angle_deg: float) -> None:
    """As of dunes, swell or a ploughed field: any place along them fits, and noise would choose."""
    rng = np.random.default_rng(0)
    across = np.array([np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))])
    profile, places = ndimage.gaussian_filter1d(rng.normal(size=1200), 2), np.indices((384, 384))
    lines = 1000 + 300 * np.interp(np.tensordot(across, places, 1), np.arange(1200), profile)
    ms = sampled(lines, 4, 1.5, (-2.4 * across[0], -2.4 * across[1])) + rng.normal(size=(96, 96)) * 2
    (found,) = estimate_band_shifts(lines + rng.normal(size=lines.shape) * 4, ms[None], 4, (1.5, 1.5))
    assert found.applied_yx == pytest.approx(-2.4 * across, abs=0.05)
    elsewhere = (_entry(1.0, 1.0),)
    assert combine_windows([[found], [found], elsewhere])[0].shift_yx == (1.0, 1.0), "windows that tell all decide"
    assert not agree([[found], [found]])


def test_bands_of_parallel_lines_follow_one_that_also_tells_where_along_them() -> None:
    """A quarter of the ground has other texture, which one band alone shows without much noise."""
    rng = np.random.default_rng(0)
    lines = np.tile(ndimage.gaussian_filter1d(rng.normal(size=384), 2), (384, 1))
    texture = ndimage.gaussian_filter(rng.normal(size=(384, 384)), 2)
    texture[192:] = texture[:, 192:] = 0
    ground = 1000 + 300 * lines / lines.std() + 200 * texture / texture.std()
    noise = rng.normal(size=(3, 96, 96)) * 2
    noise[1:, :48, :48] *= 500
    wanted = [(3.0, 1.0), (3.0, 0.5), (3.0, 1.0)]
    ms = np.stack([sampled(ground, 4, 1.5, shift) for shift in wanted]) + noise
    found = estimate_band_shifts(ground, ms, 4, (1.5, 1.5))
    np.testing.assert_allclose([band.applied_yx for band in found], wanted, atol=0.05)
    assert agree([found, found])
    (alone,) = estimate_band_shifts(ground, ms[1:2], 4, (1.5, 1.5))
    assert alone.applied_yx == pytest.approx((0.0, 0.5), abs=0.05)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    ratio=st.integers(1, 4),
    kind=st.sampled_from(
        ["noise", "one flat band", "flat pan", "half missing", "scattered holes", "copies", "extreme DN"]
    ),
)
def test_whatever_the_pixels_the_answer_is_finite_and_noise_is_never_certain(seed: int, ratio: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    height, width, bands = rng.integers(6, 60), rng.integers(6, 60), rng.integers(1, 5)
    pan, ms = rng.normal(500, 50, (height * ratio, width * ratio)), rng.normal(300, 30, (bands, height, width))
    valid = np.ones((height, width), bool)
    if kind == "one flat band":
        ms[0] = 7
    elif kind == "flat pan":
        pan[:] = 5
    elif kind == "half missing":
        pan[: height * ratio // 2], ms[:, : height // 2], valid[: height // 2] = 0, 0, False
    elif kind == "scattered holes":
        valid = rng.random((height, width)) > rng.choice([0.001, 0.02, 0.3])
    elif kind == "copies":
        ms[:] = ms[:1]
    elif kind == "extreme DN":
        pan, ms = pan * 1e-6, ms * 1e9
    for found in estimate_band_shifts(pan, ms, ratio, ((ratio - 1) / 2,) * 2, valid=valid):
        assert np.isfinite(found.shift_yx).all()
        assert 0 <= found.correlation <= 1
        assert not found.certain


def _pair(shared_data: Path, name: str) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    with np.load(shared_data / "pairs" / f"{name}.npz") as arrays:
        meta: dict[str, Any] = json.loads((shared_data / "pairs" / f"{name}.json").read_text())
        return arrays["pan"], arrays["ms"], meta


@pytest.mark.parametrize(
    "name", ["GF2_train4", "L8_istanbul", "WV2_rotterdam2", "WV2_rio_degraded", "PHR_melbourne_arena", "QB_town_full"]
)
def test_real_pairs_agree_with_their_measurement(shared_data: Path, name: str) -> None:
    pan, ms, meta = _pair(shared_data, name)
    phase = (meta["ratio"] - 1) / 2
    found = estimate_band_shifts(pan, ms, meta["ratio"], (phase, phase))
    checked = 0
    for shift, measured in zip(found, meta["shift"]["per_band"], strict=True):
        if measured["hp_ncc"] > 0.9:
            assert np.hypot(*np.subtract(shift.shift_yx, measured["shift"])) < 0.15
            assert shift.certain
            checked += 1
    assert checked >= 1


@pytest.mark.parametrize(
    "name",
    ["GE1_grip", "GF2_train1", "L7_P090R083_07", "L8_istanbul", "PHR_melbourne_arena", "QB_town_full", "S6_vegetation",
     "WV2_rotterdam2", "WV3_zpnn"],
)  # fmt: skip
def test_shifts_injected_into_real_pairs_are_recovered_per_band(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """0 to 6 PAN px, within 0.15 px on every band whose shift is certain; the table of all pairs is in docs."""
    monkeypatch.setattr(bench_coregistration, "INJECTED", (0.0, 1.25, 3.7, 6.0))
    monkeypatch.setattr(bench_coregistration, "LARGEST_MS", 128)
    pan, ms, ratio = bench_coregistration.load(shared_data / "pairs" / f"{name}.npz")
    _, found = bench_coregistration.errors_of(pan, ms, ratio)
    assert list(found) == [0.0, 1.25, 3.7, 6.0]
    for length, errors in found.items():
        assert errors, length
        assert max(errors) < 0.15, (length, errors)


def test_bands_of_one_array_lie_at_one_place_along_it(shared_data: Path) -> None:
    """WorldView-2 sees every second band with one detector array, the rest with another, 0.25 px further left."""
    pan, ms, meta = _pair(shared_data, "WV2_rio_degraded")
    along = {
        band: shift.shift_yx[1]
        for band, shift in zip(meta["bands"], estimate_band_shifts(pan, ms, 4, (1.5, 1.5)), strict=True)
    }
    for array in (("coastal", "yellow", "rededge", "nir2"), ("blue", "green", "red", "nir1")):
        assert np.ptp([along[band] for band in array]) < 0.1


def test_landsat_seven_is_left_alone(shared_data: Path) -> None:
    """Known to be registered within 0.1 px; five of its six bands hardly resemble PAN over vegetation."""
    pan, ms, _ = _pair(shared_data, "L7_P090R083_07")
    assert all(shift.applied_yx == (0.0, 0.0) for shift in estimate_band_shifts(pan, ms, 2, (0.5, 0.5)))


def test_cloud_parallax_is_not_corrected(shared_data: Path) -> None:
    """Every band matches PAN at NCC above 0.8, but at places up to 4.5 px apart: clouds, not the ground."""
    pan, ms, _ = _pair(shared_data, "L8_gulfcoast_clouds")
    assert all(shift.applied_yx == (0.0, 0.0) for shift in estimate_band_shifts(pan, ms, 2, (0.5, 0.5)))


def _entry(y: float, x: float, *, certain: bool = True, correlation: float = 0.95) -> BandShift:
    return BandShift(shift_yx=(y, x), correlation=correlation, certain=certain, significant=certain, spread_px=0.1)


def test_windows_combine_by_median_of_the_certain() -> None:
    windows = [[_entry(1.0, 0.5)], [_entry(1.1, 0.5)], [_entry(0.9, 0.6)], [_entry(-5.0, 4.0, certain=False)]]
    (found,) = combine_windows(windows)
    assert found.shift_yx == pytest.approx((1.0, 0.5))
    assert found.significant


def test_windows_in_which_a_band_is_like_pan_decide_for_it() -> None:
    """Elsewhere, over water or closed forest, it has only the shift of the other bands."""
    weak = [_entry(0.0, 0.0, correlation=0.55)] * 3
    (found,) = combine_windows([*([one] for one in weak), [_entry(0.8, 0.4)]])
    assert found.applied_yx == pytest.approx((0.8, 0.4))
    assert combine_windows([[one] for one in weak])[0].shift_yx == (0.0, 0.0)
    doubtful = [_entry(3.0, 3.0, correlation=0.55, certain=False)]
    assert combine_windows([[weak[0]], [weak[0]], doubtful, doubtful])[0].shift_yx == (0.0, 0.0)
    assert agree([[_entry(0.8, 0.4)], [_entry(0.8, 0.4)]])
    assert not agree([[one] for one in weak])  # another window may know better
    assert not agree([[_entry(0.8, 0.4)], [_entry(1.3, 0.4)]])
    assert not agree([[_entry(0.8, 0.4)], [_entry(0.8, 0.4, certain=False)]])


def test_a_band_less_like_pan_must_be_further_off_to_be_moved() -> None:
    alike, less = (combine_windows([[_entry(0.2, 0.0, correlation=at)]] * 2)[0] for at in (0.95, 0.7))
    assert (alike.applied_yx, less.applied_yx) == ((0.2, 0.0), (0.0, 0.0))


def test_a_band_half_trusted_and_far_from_the_others_follows_them_and_pulls_none() -> None:
    *others, far, near = _with_the_others([
        *[_entry(0.0, 0.0)] * 3, _entry(4.0, 0.0, correlation=0.675), _entry(1.0, 0.0, correlation=0.675),
    ])  # fmt: skip
    assert [one.shift_yx for one in others] == [(0.0, 0.0)] * 3
    mean = 0.5 * 1.0 / 3.5
    assert far.shift_yx == pytest.approx((mean, 0.0))
    assert near.shift_yx == pytest.approx(((1.0 + mean) / 2, 0.0))


def test_half_trusted_bands_that_all_lie_apart_move_none() -> None:
    """Halfway between them there is nothing."""
    assert not any(one.certain for one in _with_the_others([_entry(y, 0.0, correlation=0.675) for y in (0.0, 5.0)]))


def test_windows_that_disagree_are_not_applied() -> None:
    (scattered,) = combine_windows([[_entry(value, 0.0)] for value in (0.0, 1.5, 3.0, 4.5)])
    assert not scattered.significant
    (drifting,) = combine_windows([[_entry(value, 0.0)] for value in (3.0, 3.5, 4.5, 5.0)])
    assert drifting.applied_yx == (4.0, 0.0)
    (mostly_doubtful,) = combine_windows([[_entry(1.0, 0.0, certain=index == 0)] for index in range(4)])
    assert not mostly_doubtful.significant
    (hopeless,) = combine_windows([[_entry(1.0, 0.0, certain=False)] for _ in range(3)])
    assert not hopeless.certain
