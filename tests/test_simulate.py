"""The simulated surface and the imaging chain: each physical claim measured on the output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pancrafter.resample import degrade
from pancrafter.sensors import get_contract
from pancrafter.simulate.imaging import (
    NO_FIELD,
    PAN_ONLY_UM,
    ImagingModel,
    ShiftField,
    digitise,
    image_scene,
    random_model,
    random_shift_field,
    see_as_ms,
    see_as_pan,
    truth_wavelengths,
)
from pancrafter.simulate.spectra import Material, reflectance
from pancrafter.simulate.truth import STYLES, make_truth

CENTERS = (0.48, 0.55, 0.66, 0.83)


def model(**changes: object) -> ImagingModel:
    """A quiet four-band 4:1 sensor without shifts, changed as asked."""
    base = ImagingModel(
        ratio=4, ms_mtf=(0.30, 0.28, 0.25, 0.22), pan_mtf=0.15, pan_weights=(0.3, 0.4, 0.3, 0.0),
        gain_dn=(1500.0,) * 4, offset_dn=(60.0, 40.0, 20.0, 5.0), dn_max=2047, phase=(1.5, 1.5),
        shift_yx=((0.0, 0.0),) * 4,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", STYLES)
def test_truth_is_reflectance_and_repeats_with_its_seed(style: str) -> None:
    first, second = (make_truth(np.random.default_rng(3), (96, 80), CENTERS, 0.5, style=style) for _ in range(2))
    other = make_truth(np.random.default_rng(4), (96, 80), CENTERS, 0.5, style=style)
    assert first.shape == (4, 96, 80)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).mean() > 0.01


def test_unknown_style_and_tiny_scene_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown scene style 'moon'; choose one of city"):
        make_truth(np.random.default_rng(0), (64, 64), CENTERS, 0.5, style="moon")
    with pytest.raises(ValueError, match="8 x 64 px is too small"):
        make_truth(np.random.default_rng(0), (8, 64), CENTERS, 0.5)


def test_materials_have_their_well_known_colours() -> None:
    blue, green, red, nir, swir = reflectance((0.48, 0.55, 0.66, 0.83, 1.61)).T
    assert len(Material) >= 25
    for plant in (Material.GRASS, Material.DECIDUOUS, Material.CONIFER, Material.CROP_GREEN):
        assert (nir[plant] - red[plant]) / (nir[plant] + red[plant]) > 0.7
        assert green[plant] > red[plant]
    assert nir[Material.TURF] < 0.5 * nir[Material.GRASS]
    assert max(nir[Material.WATER_CLEAR], swir[Material.WATER_CLEAR]) < 0.01 < blue[Material.WATER_CLEAR]
    assert swir[Material.SNOW] < 0.2 < 0.9 < green[Material.SNOW]
    assert red[Material.SOIL_RED] > 3 * blue[Material.SOIL_RED]


def test_bands_are_no_linear_mix_of_each_other() -> None:
    truth = make_truth(np.random.default_rng(8), (160, 160), (*CENTERS, *PAN_ONLY_UM), 0.5, style="suburb")
    flat = truth.reshape(len(truth), -1).astype(np.float64)
    design = np.vstack([flat[:4], np.ones(flat.shape[1])]).T
    for extra in flat[4:]:
        fit = design @ np.linalg.lstsq(design, extra, rcond=None)[0]
        unexplained = np.var(extra - fit) / np.var(extra)
        assert 1e-4 < unexplained < 0.2


def _stripes_at_ms_nyquist(size: int, phase: float, ratio: int) -> NDArray[np.float64]:
    """Horizontal cosine that is +1 and -1 in turn at the centres of MS pixels."""
    return np.repeat(np.cos(np.pi * (np.arange(size) - phase) / ratio)[:, None], size, axis=1)


@pytest.mark.parametrize("field", [NO_FIELD, ShiftField(knots=(((1e-9,),), ((0.0,),)))], ids=["matrix", "spline"])
@pytest.mark.parametrize("band", [0, 3])
def test_ms_mtf_at_nyquist_is_the_stated_gain(field: ShiftField, band: int) -> None:
    sensor = model(field=field)
    seen = see_as_ms(_stripes_at_ms_nyquist(160, 1.5, 4), sensor, band)[8:-8, 8:-8]
    signs = np.where(np.arange(8, 32) % 2 == 0, 1, -1)[:, None]
    assert np.mean(seen * signs) == pytest.approx(sensor.ms_mtf[band], rel=0.015)


def test_pan_mtf_at_nyquist_is_the_stated_gain() -> None:
    sensor = model(oversample=4)
    rows = np.arange(256)
    wave = np.repeat(np.cos(np.pi * (rows - 1.5) / 4)[:, None], 256, axis=1)  # period of two PAN pixels
    seen = see_as_pan(wave, sensor)[8:-8, 8:-8]
    signs = np.where(np.arange(8, 56) % 2 == 0, 1, -1)[:, None]
    assert np.mean(seen * signs) == pytest.approx(0.15, rel=0.02)


def _measured_shift(ms: NDArray[np.float64], scene: NDArray[np.float32], gain: float) -> NDArray[np.float64]:
    """Shift of MS against the scene in PAN pixels: Gauss-Newton on the difference to the scene degraded at a shift."""
    shift: NDArray[np.float64] = np.zeros(2)
    for _ in range(4):
        expected = np.asarray(degrade(scene, (ms.shape[0], ms.shape[1]), 4, (1.5 + shift[0], 1.5 + shift[1]), gain))
        slope = np.stack([np.gradient(expected, axis=axis)[6:-6, 6:-6].ravel() for axis in (0, 1)], axis=1) / 4
        shift += np.linalg.lstsq(slope, (ms - expected)[6:-6, 6:-6].ravel(), rcond=None)[0]
    return shift


def test_ms_lies_where_the_model_says() -> None:
    shifts = ((0.6, -0.5), (-1.3, 0.2), (2.4, 1.1), (0.0, 0.0))
    sensor = model(shift_yx=shifts)
    truth = make_truth(np.random.default_rng(5), (256, 256), CENTERS, 0.5, style="suburb")
    pair = image_scene(truth, sensor, np.random.default_rng(6))
    for band, shift in enumerate(shifts):
        found = _measured_shift(
            pair.ms[band].astype(float), truth[band] * 1500 + sensor.offset_dn[band], sensor.ms_mtf[band]
        )
        np.testing.assert_allclose(found, shift, atol=0.05)


def test_constant_field_equals_a_shift() -> None:
    scene = make_truth(np.random.default_rng(5), (160, 160), CENTERS, 0.5, style="city")[1].astype(np.float64)
    by_shift = see_as_ms(scene, model(shift_yx=((0.4, -0.3),) * 4), 1)
    by_field = see_as_ms(scene, model(field=ShiftField(knots=(((0.4,),), ((-0.3,),)))), 1)
    np.testing.assert_allclose(by_field[3:-3, 3:-3], by_shift[3:-3, 3:-3], atol=2e-3)


def test_field_varies_inside_the_scene_by_the_asked_amount() -> None:
    field = random_shift_field(np.random.default_rng(2), 0.25)
    dy, dx = field.at(np.arange(0, 400, 4.0), np.arange(0, 300, 4.0), (400, 300))
    assert dy.shape == dx.shape == (100, 75)
    for axis in (dy, dx):
        assert 0.08 < axis.std() < 0.5
        assert np.abs(np.diff(axis, axis=1)).max() < 0.05


def test_pan_and_truth_share_one_frame() -> None:
    """PAN of a single-band world is that band's truth: same place, same blur, noise apart."""
    truth = make_truth(np.random.default_rng(7), (128, 128), CENTERS, 0.5, style="city")
    sensor = model(pan_weights=(0.0, 1.0, 0.0, 0.0), photon_noise=0.0, read_noise_dn=0.0, oversample=2)
    pair = image_scene(truth, sensor, np.random.default_rng(0))
    assert pair.pan.shape == pair.truth.shape[1:] == (64, 64)
    assert np.abs(pair.pan - np.clip(pair.truth[1], 1, 2047)).max() <= 0.5001


def test_noise_follows_the_signal_and_values_stay_in_range() -> None:
    rng = np.random.default_rng(1)
    sensor = model(photon_noise=0.04, read_noise_dn=2.0)
    for signal in (100.0, 1600.0):
        noisy = digitise(np.full((300, 300), signal), sensor, rng).astype(float)
        assert noisy.mean() == pytest.approx(signal, abs=0.1)
        assert noisy.var() == pytest.approx(0.04 * signal + 4.0 + 1 / 12, rel=0.03)
    extremes = digitise(np.array([[-50.0, 5000.0]]), sensor, rng)
    assert extremes.dtype == np.uint16
    np.testing.assert_array_equal(extremes, [[1, 2047]])


@pytest.mark.parametrize(
    ("pan", "ratio", "phase", "expected"),
    [(256, 4, 1.5, 64), (799, 2, 0.0, 400), (258, 4, 1.5, 64), (259, 4, 1.5, 65), (64, 4, 2.0, 16)],
)
def test_ms_shape_counts_centres_on_the_pan_image(pan: int, ratio: int, phase: float, expected: int) -> None:
    assert model(ratio=ratio, phase=(phase, phase)).ms_shape((pan, pan)) == (expected, expected)


def test_drawn_pan_sees_no_band_outside_of_it() -> None:
    contract = get_contract("landsat-8")
    drawn = random_model(np.random.default_rng(0), contract, contract.bands)
    seen = [band.in_pan for band in contract.bands]
    assert [weight > 0 for weight in drawn.pan_weights[: len(seen)]] == seen
    assert not all(seen)
    assert sum(drawn.pan_weights) == pytest.approx(1)
    assert len(drawn.pan_weights) == len(truth_wavelengths(contract.bands))


def test_contradicting_models_are_refused() -> None:
    with pytest.raises(ValueError, match="4 MS gains, 3 shifts"):
        model(shift_yx=((0.0, 0.0),) * 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        model(pan_mtf=1.2)
    with pytest.raises(ValueError, match="truth has 3 bands, the imaging model weighs 4"):
        image_scene(np.zeros((3, 32, 32)), model(), np.random.default_rng(0))
