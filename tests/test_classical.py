"""Classical sharpeners on scenes whose truth is known, on real pairs, and in windows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pancrafter import classical, metrics, resample
from pancrafter.classical import GlpConstants, PairInput
from pancrafter.errors import GridMismatchError, InvalidSceneError, PancrafterError

Array = NDArray[np.float64]

MIX = np.array([0.2, 0.3, 0.4, 0.1])
GAINS = (0.34, 0.32, 0.30, 0.22)
SHIFTS = ((0.0, 0.0), (-0.8, 1.3), (2.6, -3.1), (0.4, 0.0))
FAR_BACK = ((0.0, 0.0), (-9.0, 11.0), (7.3, -40.0), (-35.0, 0.0))
FAR_AHEAD = ((0.0, 0.0), (9.0, 11.0), (7.3, 40.0), (35.0, 0.0))
INJECTING = [name for name in classical.METHODS if name != "exp"]


def field(shape: tuple[int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) / (0.02 + np.hypot(fy, fx)), s=shape)
    return np.asarray(noise / noise.std())


def truth_of(shape: tuple[int, int], seed: int = 0) -> Array:
    """Four correlated bands of DN around 400 to 900."""
    common = field(shape, seed)
    own = np.stack([field(shape, seed + 1 + b) for b in range(4)])
    levels, spreads = np.array([400.0, 500, 550, 900]), np.array([50.0, 70, 90, 120])
    return np.maximum(levels[:, None, None] + spreads[:, None, None] * (common + 0.25 * own), 1.0)


def phases_of(ratio: int, shifts: tuple[tuple[float, float], ...] = SHIFTS) -> tuple[tuple[float, float], ...]:
    nominal = (ratio - 1) / 2
    return tuple((nominal + y, nominal + x) for y, x in shifts)


def observe(truth: Array, ratio: int, phases: tuple[tuple[float, float], ...], gains: tuple[float, ...]) -> PairInput:
    """A sensor that mixes the bands into PAN exactly and blurs and samples each band at its phase."""
    shape = (truth.shape[1] // ratio, truth.shape[2] // ratio)
    bands = zip(truth, phases, gains, strict=True)
    ms = np.stack([resample.degrade(band, shape, ratio, phase, gain) for band, phase, gain in bands])
    return PairInput(np.tensordot(MIX, truth, axes=1), ms, ratio, phases, gains)


@pytest.fixture(scope="module")
def truth() -> Array:
    return truth_of((192, 180))


@pytest.fixture(scope="module")
def pair(truth: Array) -> PairInput:
    return observe(truth, 4, phases_of(4), GAINS)


# --- whole scenes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", INJECTING)
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pan_detail_beats_plain_upsampling(method: str, ratio: int, truth: Array) -> None:
    pair = observe(truth, ratio, phases_of(ratio), GAINS)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    with_pan = metrics.ergas(truth[inner], classical.sharpen(method, pair)[inner], ratio)
    without = metrics.ergas(truth[inner], classical.sharpen("exp", pair)[inner], ratio)
    assert with_pan < 0.75 * without
    result = classical.sharpen(method, pair)
    assert result.dtype == np.float32
    assert result.shape == truth.shape


@pytest.mark.parametrize("method", list(classical.METHODS))
def test_band_shifts_are_corrected_by_the_phase(method: str, truth: Array, pair: PairInput) -> None:
    unaware = replace(pair, phases_yx=phases_of(4, ((0.0, 0.0),) * 4))
    inner = (slice(None), slice(8, -8), slice(8, -8))
    aligned = metrics.ergas(truth[inner], classical.sharpen(method, pair)[inner], 4)
    blind = metrics.ergas(truth[inner], classical.sharpen(method, unaware)[inner], 4)
    assert aligned < (1.0 if method == "exp" else 0.7) * blind


@pytest.mark.parametrize(("method", "share"), [("mtf-glp-fs", 0.7), ("mtf-glp-cbd", 0.7), ("mtf-glp-hpm", 0.7)])
def test_glp_explains_its_ms_better_than_upsampling(method: str, share: float, pair: PairInput) -> None:
    def error(name: str) -> float:
        sharpened = classical.sharpen(name, pair)
        return metrics.consistency(sharpened, pair.ms, 4, pair.phases_yx, pair.mtfs)[0]

    assert error(method) < share * error("exp")


def test_exp_is_cubic_upsampling_at_each_phase(pair: PairInput) -> None:
    for band, ms, phase in zip(classical.sharpen("exp", pair), pair.ms, pair.phases_yx, strict=True):
        expected = resample.upsample(ms.astype(np.float64), (192, 180), 4, phase)
        np.testing.assert_allclose(band, expected, rtol=1e-6)


def test_brovey_by_hand() -> None:
    """Flat MS of 100 and 300; the matched PAN has no spread to show, so the result is MS."""
    ms = np.stack([np.full((8, 8), 100.0), np.full((8, 8), 300.0)])
    pan = field((32, 32), 0) * 20 + 500
    result = classical.sharpen("brovey", PairInput(pan, ms, 4, ((1.5, 1.5),) * 2, (0.3, 0.3)))
    np.testing.assert_allclose(result, np.repeat(np.repeat(ms, 4, 1), 4, 2), rtol=1e-6)


def test_brovey_keeps_the_spectral_direction(pair: PairInput) -> None:
    expanded, result = (classical.sharpen(name, pair) for name in ("exp", "brovey"))
    assert metrics.sam_deg(expanded, result) == pytest.approx(0, abs=0.02)  # float32 angles


def test_haze_is_not_modulated(pair: PairInput) -> None:
    """What the air adds to a band everywhere stays as it is; Brovey without haze correction scales it too."""
    haze = np.array([300.0, 200.0, 100.0, 0.0])[:, None, None]
    hazy = replace(pair, ms=pair.ms + haze)
    clear = classical.sharpen("bt-h", pair)
    np.testing.assert_allclose(classical.sharpen("bt-h", hazy) - haze, clear, atol=1e-2)
    scaled = classical.sharpen("brovey", hazy) - haze - classical.sharpen("brovey", pair)
    assert np.abs(scaled).max() > 20


def test_gsa_finds_the_mix_that_made_pan(truth: Array) -> None:
    """With one blur and one phase for all bands, PAN at MS scale is exactly the mix of the bands."""
    pair = observe(truth, 4, ((1.5, 1.5),) * 4, (0.3,) * 4)
    weights, constant = classical._intensity_mix(pair, classical._aligned_ms(pair.ms, pair.ratio, pair.phases_yx))
    assert weights == pytest.approx(MIX, abs=1e-8)
    assert constant == pytest.approx(0, abs=1e-5)
    aligned = classical._aligned_ms(pair.ms, pair.ratio, pair.phases_yx)
    assert np.array_equal(aligned, pair.ms)


def test_gsa_written_out(pair: PairInput) -> None:
    """Each band plus its covariance with the intensity over the intensity's variance times PAN minus intensity."""
    pair = replace(pair, phases_yx=((1.5, 1.5),) * 4)
    low = resample.degrade(np.asarray(pair.pan, np.float64), (48, 45), 4, (1.5, 1.5), float(np.mean(GAINS)))
    design = np.vstack([pair.ms.reshape(4, -1), np.ones(48 * 45)]).T
    *weights, constant = np.linalg.lstsq(design, low.ravel())[0]
    expanded = [resample.upsample(np.asarray(band, np.float64), (192, 180), 4, (1.5, 1.5)) for band in pair.ms]
    intensity = sum(weight * band for weight, band in zip(weights, expanded, strict=True)) + constant
    for result, band in zip(classical.sharpen("gsa", pair), expanded, strict=True):
        (_, shared), (_, variance) = np.cov(band.ravel(), intensity.ravel())
        np.testing.assert_allclose(result, band + shared / variance * (pair.pan - intensity), rtol=1e-5)


def test_injection_is_that_of_gsa(pair: PairInput) -> None:
    """Weights and gains from sums are those of least squares on the whole scene; sums of halves are those of all."""
    arguments = (pair.ratio, pair.phases_yx, 0.3)
    whole = classical.injection_sums(pair.pan, pair.ms, *arguments)
    found = classical.fit_injection(whole)
    same_pan_mtf = replace(pair, pan_mtf=0.3)
    aligned = classical._aligned_ms(pair.ms, pair.ratio, pair.phases_yx)
    weights, constant = classical._intensity_mix(same_pan_mtf, aligned)
    assert found.weights == pytest.approx(weights, abs=1e-4)
    assert found.offset == pytest.approx(constant, abs=0.05)
    intensity = np.tensordot(weights, aligned, axes=1)
    slopes = [np.polyfit(intensity.ravel(), band.ravel(), 1)[0] for band in aligned]
    assert found.gains == pytest.approx(slopes, rel=1e-3)
    upper = np.zeros(pair.pan.shape, np.bool_)
    upper[:70] = True
    halves = [classical.injection_sums(pair.pan, pair.ms, *arguments, counted) for counted in (upper, ~upper)]
    together = halves[0] + halves[1]
    assert together.pixels == whole.pixels
    np.testing.assert_allclose(together.second, whole.second, rtol=1e-12)


def test_what_bands_explain_of_pan_is_what_they_explain_beyond_chance() -> None:
    """Adjusted R2 of a regression done by hand; nothing where there are no more pixels than unknowns."""
    rng = np.random.default_rng(4)
    bands = rng.normal(500, 100, (3, 4000))
    for share, expected in ((0.0, 0.0), (0.8, 0.64), (1.0, 1.0)):
        pan = share * bands.mean(0) * np.sqrt(3) + np.sqrt(1 - share**2) * rng.normal(0, 100, 4000)
        values = np.vstack([bands, pan])
        found = classical.fit_injection(classical.InjectionSums(4000, values.sum(1), values @ values.T)).explained
        design = np.vstack([bands, np.ones(4000)]).T
        residual = pan - design @ np.linalg.lstsq(design, pan)[0]
        assert found == pytest.approx(max(0, 1 - residual.var() / pan.var() * 3999 / 3996), abs=1e-6)
        assert found == pytest.approx(expected, abs=0.06)
    few = np.vstack([bands, bands.mean(0)])[:, :4]
    assert classical.fit_injection(classical.InjectionSums(4, few.sum(1), few @ few.T)).explained == 0


def test_injection_of_a_flat_or_empty_scene() -> None:
    flat = classical.injection_sums(np.full((64, 64), 500.0), np.full((2, 16, 16), 300.0), 4, ((1.5, 1.5),) * 2, 0.3)
    assert classical.fit_injection(flat).gains == (0.0, 0.0)
    assert classical.fit_injection(flat).explained == 0
    nothing = np.zeros((64, 64), np.bool_)
    empty = classical.injection_sums(np.ones((64, 64)), np.ones((2, 16, 16)), 4, ((1.5, 1.5),) * 2, 0.3, nothing)
    with pytest.raises(InvalidSceneError, match="0 valid pixels, expected 1 or more"):
        classical.fit_injection(empty)


def test_bands_are_compared_at_one_phase(truth: Array, pair: PairInput) -> None:
    together = observe(truth, 4, (metrics.common_phase(pair.phases_yx),) * 4, GAINS)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    aligned = classical._aligned_ms(pair.ms, pair.ratio, pair.phases_yx)[inner]
    assert metrics.ergas(together.ms[inner], aligned, 4) < 0.5 * metrics.ergas(together.ms[inner], pair.ms[inner], 4)


@pytest.mark.parametrize("method", INJECTING)
def test_level_and_scale_of_pan_do_not_matter(method: str, pair: PairInput) -> None:
    other = replace(pair, pan=2.5 * np.asarray(pair.pan, np.float64) - 300)
    np.testing.assert_allclose(classical.sharpen(method, other), classical.sharpen(method, pair), rtol=2e-6)


@pytest.mark.parametrize("method", list(classical.METHODS))
def test_order_of_bands_does_not_matter(method: str, pair: PairInput) -> None:
    order = [2, 0, 3, 1]
    other = replace(
        pair,
        ms=pair.ms[order],
        phases_yx=tuple(pair.phases_yx[b] for b in order),
        mtfs=tuple(pair.mtfs[b] for b in order),
    )
    np.testing.assert_allclose(classical.sharpen(method, other), classical.sharpen(method, pair)[order], rtol=1e-6)


@pytest.mark.parametrize("method", list(classical.METHODS))
def test_invalid_pixels_hold_anything(method: str, pair: PairInput) -> None:
    pair = replace(pair, phases_yx=phases_of(4, ((0.0, 0.0),) * 4))
    valid = np.ones((192, 180), dtype=bool)
    valid[:, 160:] = False
    clean = classical.sharpen(method, replace(pair, valid=valid))
    pan, ms = np.array(pair.pan, np.float64), np.array(pair.ms, np.float64)
    pan[~valid], ms[:, :, 40:] = np.nan, 65535.0
    dirty = classical.sharpen(method, replace(pair, pan=pan, ms=ms, valid=valid))
    assert np.isfinite(dirty).all()
    assert np.array_equal(dirty, clean)
    cropped = replace(pair, pan=pair.pan[:, :160], ms=pair.ms[:, :, :40])
    np.testing.assert_allclose(
        clean[..., :120], classical.sharpen(method, cropped)[..., :120], rtol=5e-3
    )  # border pixels differ


@pytest.mark.parametrize("method", INJECTING)
def test_flat_pan_adds_nothing_and_breaks_nothing(method: str, pair: PairInput) -> None:
    flat = replace(pair, pan=np.full(pair.pan.shape, 700, np.uint16))
    result = classical.sharpen(method, flat)
    assert np.isfinite(result).all()
    if method.startswith("mtf-glp"):
        np.testing.assert_allclose(result, classical.sharpen("exp", pair), rtol=1e-6)


def test_dark_intensities_do_not_explode() -> None:
    ms = np.zeros((3, 16, 16))
    ms[:, 8:] = 500.0
    pan = np.repeat(np.repeat(ms[0], 4, 0), 4, 1) + np.random.default_rng(0).normal(0, 5, (64, 64))
    for method in INJECTING:
        result = classical.sharpen(method, PairInput(pan, ms, 4, ((1.5, 1.5),) * 3, (0.3,) * 3))
        assert np.isfinite(result).all()
        assert np.abs(result).max() < 2000


def test_pairs_that_do_not_fit_are_refused(pair: PairInput) -> None:
    with pytest.raises(PancrafterError, match="choose one of exp, brovey"):
        classical.sharpen("magic", pair)
    with pytest.raises(GridMismatchError, match="phases and MTFs are"):
        replace(pair, mtfs=(0.3,))
    with pytest.raises(GridMismatchError, match="expected pan = 4 x ms"):
        replace(pair, ms=pair.ms[:, :40])
    with pytest.raises(GridMismatchError, match="validity mask"):
        replace(pair, valid=np.ones((3, 3), dtype=bool))
    with pytest.raises(InvalidSceneError, match="no pixel"):
        replace(pair, valid=np.zeros((192, 180), dtype=bool))
    with pytest.raises(GridMismatchError, match="axes"):
        replace(pair, ms=pair.ms[0])


# --- windows --------------------------------------------------------------------------------------------------------


def scene_of(ratio: int, shifts: tuple[tuple[float, float], ...]) -> PairInput:
    return observe(truth_of((80 * ratio, 70 * ratio), seed=9), ratio, phases_of(ratio, shifts), GAINS)


def glp(pair: PairInput, constants: GlpConstants) -> NDArray[np.float32]:
    return classical.glp_window(pair.pan, pair.ms, pair.ratio, pair.phases_yx, pair.mtfs, constants)


def window_of(pair: PairInput, y: slice, x: slice) -> PairInput:
    """The pair's part on an MS window, PAN cropped to match."""
    r = pair.ratio
    pan = pair.pan[y.start * r : y.stop * r, x.start * r : x.stop * r]
    return replace(pair, pan=pan, ms=pair.ms[:, y, x])


@pytest.mark.parametrize("shifts", [SHIFTS, FAR_BACK, FAR_AHEAD])
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_windows_with_their_halo_equal_the_scene(ratio: int, shifts: tuple[tuple[float, float], ...]) -> None:
    pair = scene_of(ratio, shifts)
    constants = GlpConstants(gains=(0.7, 0.9, 1.1, 1.6))
    whole = glp(pair, constants)
    halo = classical.glp_halo_px(ratio, pair.phases_yx) // ratio
    tiled = np.full_like(whole, np.nan)
    for top in range(0, 80, 32):
        for left in range(0, 70, 32):
            y = slice(max(0, top - halo), min(80, top + 32 + halo))
            x = slice(max(0, left - halo), min(70, left + 32 + halo))
            part = glp(window_of(pair, y, x), constants)
            core_y, core_x = slice(top * ratio, (top + 32) * ratio), slice(left * ratio, (left + 32) * ratio)
            rows = slice((top - y.start) * ratio, (min(80, top + 32) - y.start) * ratio)
            columns = slice((left - x.start) * ratio, (min(70, left + 32) - x.start) * ratio)
            tiled[:, core_y, core_x] = part[:, rows, columns]
    np.testing.assert_allclose(tiled, whole, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_stated_halo_is_needed_and_enough(ratio: int) -> None:
    """A change of one PAN pixel reaches beyond half the halo, and never past it."""
    pair, constants = scene_of(ratio, SHIFTS), GlpConstants(gains=(1.0,) * 4)
    changed = np.array(pair.pan)
    row, column = 40 * ratio, 35 * ratio
    changed[row, column] += 1e12
    difference = np.abs(glp(replace(pair, pan=changed), constants) - glp(pair, constants)).max(axis=0)
    touched_y, touched_x = np.nonzero(difference > 1e-2)
    reach = max(np.abs(touched_y - row).max(), np.abs(touched_x - column).max())
    halo = classical.glp_halo_px(ratio, pair.phases_yx)
    assert halo / 2 < reach <= halo
    assert halo % ratio == 0


def test_gains_follow_from_sums_over_blocks(pair: PairInput) -> None:
    arguments = (pair.pan, pair.ms, 4, pair.phases_yx, pair.mtfs)
    whole = classical.fit_glp_constants(classical.glp_sums(*arguments))
    left = np.zeros(pair.pan.shape, dtype=bool)
    left[:, :77] = True
    parts = classical.glp_sums(*arguments, left) + classical.glp_sums(*arguments, ~left)
    assert classical.fit_glp_constants(parts).gains == pytest.approx(whole.gains, rel=1e-9)
    expanded = classical.sharpen("exp", pair).astype(np.float64)
    for b in range(4):
        on_ms = resample.degrade(np.asarray(pair.pan, np.float64), (48, 45), 4, pair.phases_yx[b], GAINS[b])
        low = resample.upsample(on_ms, (192, 180), 4, pair.phases_yx[b])
        pan = np.asarray(pair.pan).ravel()
        expected = np.cov(expanded[b].ravel(), pan)[0, 1] / np.cov(low.ravel(), pan)[0, 1]
        assert whole.gains[b] == pytest.approx(expected, rel=1e-5)
    method = classical.sharpen("mtf-glp-fs", pair)
    assert np.array_equal(method, glp(pair, whole))


def test_gains_at_ms_scale_are_those_on_low_pass_pan(pair: PairInput) -> None:
    expanded, gains = classical.sharpen("exp", pair).astype(np.float64), []
    for band, phase, mtf in zip(expanded, pair.phases_yx, GAINS, strict=True):
        on_ms = resample.degrade(np.asarray(pair.pan, np.float64), (48, 45), 4, phase, mtf)
        (_, shared), (_, variance) = np.cov(band.ravel(), resample.upsample(on_ms, (192, 180), 4, phase).ravel())
        gains.append(shared / variance)
    method = classical.sharpen("mtf-glp-cbd", pair)
    np.testing.assert_allclose(method, glp(pair, GlpConstants(gains=tuple(gains))), atol=1e-2)
    assert np.abs(method - classical.sharpen("mtf-glp-fs", pair)).max() > 1


def test_gains_of_windows_with_a_halo_are_those_of_the_scene() -> None:
    pair = scene_of(4, SHIFTS)
    halo = classical.glp_halo_px(4, pair.phases_yx) // 4
    sums = []
    for left, right in ((0, 35), (35, 70)):
        x = slice(max(0, left - halo), min(70, right + halo))
        part = window_of(pair, slice(0, 80), x)
        core = np.zeros(part.pan.shape, dtype=bool)
        core[:, (left - x.start) * 4 : (right - x.start) * 4] = True
        sums.append(classical.glp_sums(part.pan, part.ms, 4, part.phases_yx, part.mtfs, core))
    whole = classical.glp_sums(pair.pan, pair.ms, 4, pair.phases_yx, pair.mtfs)
    expected = classical.fit_glp_constants(whole)
    assert classical.fit_glp_constants(sums[0] + sums[1]).gains == pytest.approx(expected.gains, rel=1e-9)


def test_constants_survive_json_and_are_checked(pair: PairInput) -> None:
    constants = GlpConstants(gains=(0.1, 0.2, 0.3, 1 / 3))
    assert GlpConstants.model_validate_json(constants.model_dump_json()) == constants
    with pytest.raises(GridMismatchError, match="1 injection gains for 4 bands"):
        glp(pair, GlpConstants(gains=(1.0,)))
    nothing = classical.glp_sums(pair.pan, pair.ms, 4, pair.phases_yx, pair.mtfs, np.zeros(pair.pan.shape, dtype=bool))
    with pytest.raises(InvalidSceneError, match="0 valid pixels"):
        classical.fit_glp_constants(nothing)


# --- real imagery ---------------------------------------------------------------------------------------------------


def shift_of(path: Path) -> tuple[float, float]:
    y, x = json.loads(path.with_suffix(".json").read_text())["shift"]["shift_pan_px"]
    return float(y), float(x)


@pytest.mark.parametrize("method", INJECTING)
def test_reduced_quickbird_scene(method: str, shared_data: Path) -> None:
    """PAN detail halves the error against the native MS, most of all once the measured shift is corrected."""
    path = shared_data / "pairs" / "QB_rr_train0.npz"
    data = np.load(path)
    pair = PairInput(data["pan"], data["ms"], 4, phases_of(4, (shift_of(path),) * 4), GAINS)
    nominal = replace(pair, phases_yx=phases_of(4, ((0.0, 0.0),) * 4))
    errors = [metrics.ergas(data["gt"], classical.sharpen(method, p), 4) for p in (pair, nominal)]
    plain = metrics.ergas(data["gt"], classical.sharpen("exp", pair), 4)
    assert errors[0] < 0.65 * plain
    assert errors[0] < errors[1]


@pytest.mark.parametrize("method", ["gsa", "bt-h", "mtf-glp-fs", "mtf-glp-cbd"])
@pytest.mark.parametrize(("name", "ratio"), [("S6_vegetation", 4), ("L7_P092R086_19", 2)])
def test_real_scene_reduced_by_wald_protocol(method: str, name: str, ratio: int, shared_data: Path) -> None:
    """Regression gains pay even where PAN sees some bands badly (Landsat 7 blue), which pure modulation does not."""
    path = shared_data / "pairs" / f"{name}.npz"
    data, side = np.load(path), 192
    ms = data["ms"][:, :side, :side].astype(np.float64)
    pan = data["pan"][: side * ratio, : side * ratio].astype(np.float64)
    n_bands = min(len(ms), 4)
    ms, gains = ms[:n_bands], (0.3,) * n_bands
    nominal, shift = (ratio - 1) / 2, shift_of(path)
    there = (nominal + shift[0], nominal + shift[1])
    small = (side // ratio, side // ratio)
    reduced_pan = resample.degrade(pan, (side, side), ratio, there, 0.3)
    reduced = np.stack([resample.degrade(band, small, ratio, (nominal, nominal), 0.3) for band in ms])
    pair = PairInput(reduced_pan, reduced, ratio, ((nominal, nominal),) * n_bands, gains)
    with_pan = metrics.ergas(ms, classical.sharpen(method, pair), ratio)
    assert with_pan < metrics.ergas(ms, classical.sharpen("exp", pair), ratio)


def test_a_few_pixels_bring_pan_to_the_level_of_the_bands_only() -> None:
    """Of two by two MS pixels a spread is chance: brought to that of the bands, PAN would count a hundredfold."""
    pan, ms = np.full((8, 8), 400.0), np.full((2, 2, 2), 300.0)
    pan[:4, :4], ms[0, 0, 0] = 402, 500
    few = classical.injection_sums(pan, ms, 4, ((1.5, 1.5),) * 2, 0.3)
    assert few.pixels == 4
    match, mean = classical.fit_brovey_match(few), few.first / few.pixels
    assert match.scale == pytest.approx(mean[:2].mean() / mean[2])
    assert match.offset == pytest.approx(0, abs=1e-9)
    many = replace(few, pixels=16, first=4 * few.first, second=4 * few.second)
    assert classical.fit_brovey_match(many).scale > 20 * match.scale


@pytest.mark.parametrize("method", INJECTING)
def test_clouds_at_the_ceiling_do_not_bend_what_the_ground_gets(method: str, truth: Array) -> None:
    """PAN ends at the ceiling long before the bands do; the ground stays as without clouds, or nearly."""
    cloudy = truth.copy()
    cloudy[:, 20:60, 100:150] *= 5
    clear, seen = (observe(t, 4, phases_of(4), GAINS) for t in (truth, cloudy))
    limit = 2 * float(clear.pan.max())
    clipped = replace(seen, pan=np.minimum(seen.pan, limit), ms=np.minimum(seen.ms, 1.3 * limit))
    ground = (slice(None), slice(100, 184), slice(8, 172))
    expected = classical.sharpen(method, clear)[ground]
    misled, told = (
        float(np.abs(classical.sharpen(method, p)[ground] - expected).mean())
        for p in (clipped, replace(clipped, dn_max=limit))
    )
    assert told < 0.02 * expected.std()
    assert told < 0.3 * misled


def test_pixels_near_the_ceiling_are_within_one_ms_pixel_of_it() -> None:
    pan, ms = np.zeros((22, 24)), np.zeros((2, 5, 6))
    pan[9, 13], ms[1, 0, 5] = 2047, 2046.7  # as degrading leaves it
    expected = np.zeros((22, 24), dtype=bool)
    expected[5:14, 9:18] = expected[:8, 16:] = True
    assert np.array_equal(classical.at_ceiling(pan, ms, 4, 2047), expected)
    assert not classical.at_ceiling(pan, ms, 4, 2048).any()
    everything = PairInput(np.full((16, 16), 255.0), np.full((1, 4, 4), 255.0), 4, ((1.5, 1.5),), (0.3,), dn_max=255)
    assert classical.sharpen("gsa", everything) == pytest.approx(255, abs=1e-3)


@pytest.mark.parametrize("method", classical.METHODS)
def test_a_window_whose_ground_holds_no_ms_centre_is_sharpened_by_what_there_is(method: str) -> None:
    """A window full of clouds: beside them lies less than an MS pixel of ground, so all pixels count again."""
    pan, ms = np.full((64, 64), 255.0), np.full((3, 16, 16), 255.0)
    pan[:5, :5], ms[:, :3, :3] = 100, 90
    pair = PairInput(pan, ms, 4, ((1.5, 1.5),) * 3, (0.3,) * 3, dn_max=255)
    assert pair.counted.all()
    result = classical.sharpen(method, pair)
    assert np.array_equal(result, classical.sharpen(method, replace(pair, dn_max=math.inf)))
    assert np.isfinite(result).all()
