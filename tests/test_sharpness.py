"""The sharpness of MS against PAN: known blurs are found again, and what cannot be measured is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import sharpen_tile
from pancrafter.metrics import ergas
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import read_pair, value_range
from pancrafter.resample import SHARPEST_GAIN, Mtf, degrade, relative_mtf
from pancrafter.sensors import get_contract, load_contracts
from pancrafter.sharpness import (
    SHAPES,
    WIDTHS,
    Sharpness,
    band_mtfs,
    combine,
    gain_of_width,
    sharpness,
)
from pancrafter.simulate.imaging import (
    SimulatedPair,
    image_scene,
    pan_only_wavelengths,
    random_model,
    truth_wavelengths,
)
from pancrafter.simulate.truth import make_truth
from pancrafter.tiles import Tile

Image = NDArray[np.float64]
SIDE_MS = 96


def ground(rng: np.random.Generator, side: int) -> Image:
    """Structure on all scales, DN around 1000."""
    noise = rng.normal(0, 1, (side, side))
    return 1000 + sum(60 * sigma * gaussian_filter(noise, sigma) for sigma in (0.6, 1.5, 4.0, 10.0))


def seen(
    rng: np.random.Generator,
    mtf: Mtf | float,
    ratio: int,
    *,
    noise: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> tuple[Image, Image, tuple[float, float]]:
    """PAN, three bands blurred by ``mtf`` whose mix it is, and where MS pixel 0 lies."""
    parts = [ground(rng, SIDE_MS * ratio) for _ in range(3)]
    pan = 0.2 * parts[0] + 0.5 * parts[1] + 0.3 * parts[2]
    phase = ((ratio - 1) / 2 + shift[0], (ratio - 1) / 2 + shift[1])
    ms = np.stack([degrade(part, (SIDE_MS, SIDE_MS), ratio, phase, mtf) for part in parts])
    return pan, ms + rng.normal(0, noise, ms.shape), phase


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    gain=st.floats(0.05, 0.8),
    ratio=st.sampled_from([2, 3, 4]),
    shift=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_a_known_blur_is_found_again(seed: int, gain: float, ratio: int, shift: tuple[float, float]) -> None:
    pan, ms, phase = seen(np.random.default_rng(seed), gain, ratio, shift=shift)
    found = sharpness(pan, ms, ratio, (phase,) * 3)
    assert found is not None
    assert found.certain
    narrow = ratio == 2 and gain > 0.7  # less than a PAN pixel wide
    assert found.mtf.shape == 2 or narrow
    assert found.mtf.gain == pytest.approx(gain, rel=0.06 if narrow else 0.03)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    half=st.floats(0.65, 1.0),
    shape=st.sampled_from([3.0, 3.5, 4.0, 6.0, 8.0]),
    ratio=st.sampled_from([2, 3, 4]),
    shift=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_a_known_mtf_that_falls_steeply_is_found_again(
    seed: int, half: float, shape: float, ratio: int, shift: tuple[float, float]
) -> None:
    pan, ms, phase = seen(np.random.default_rng(seed), Mtf.of_half(half, shape), ratio, shift=shift)
    found = sharpness(pan, ms, ratio, (phase,) * 3)
    assert found is not None
    assert found.certain
    tried = shape in SHAPES
    assert found.mtf.half == pytest.approx(half, rel=0.005 if tried else 0.025)
    assert found.mtf.shape == pytest.approx(shape, rel=1e-9 if tried else 0.2)


@pytest.mark.parametrize("gain", [0.08, 0.3, 0.5])
def test_noise_and_a_band_that_pan_does_not_see_hardly_matter(gain: float) -> None:
    rng = np.random.default_rng(3)
    pan, ms, phase = seen(rng, gain, 4, noise=4.0)
    other = degrade(ground(rng, SIDE_MS * 4), (SIDE_MS, SIDE_MS), 4, phase, gain)
    found = sharpness(pan, np.concatenate([ms, other[None]]), 4, (phase,) * 4)
    assert found is not None
    assert found.mtf.gain == pytest.approx(gain, rel=0.15)


def test_invalid_pixels_count_for_nothing() -> None:
    rng = np.random.default_rng(5)
    pan, ms, phase = seen(rng, 0.2, 4)
    clean = sharpness(pan, ms, 4, (phase,) * 3)
    valid = np.ones(ms.shape[1:], np.bool_)
    valid[40:52, 30:70] = False
    ms[:, ~valid] = 0
    found = sharpness(pan, ms, 4, (phase,) * 3, valid)
    spoilt = sharpness(pan, ms, 4, (phase,) * 3)
    assert clean is not None
    assert found is not None
    assert spoilt is not None
    assert found.mtf.gain == pytest.approx(clean.mtf.gain, rel=0.02)
    assert not spoilt.certain


def test_sharper_than_what_is_tried_is_certain_and_blurrier_is_not() -> None:
    sharp, blurred = (seen(np.random.default_rng(7), gain, 4) for gain in (0.94, 0.005))
    found = [sharpness(pan, ms, 4, (phase,) * 3) for pan, ms, phase in (sharp, blurred)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].certain
    assert found[0].mtf.gain > 0.99 * gain_of_width(float(WIDTHS[0]))
    assert not found[1].certain


@pytest.mark.parametrize("what", ["unrelated", "flat", "flat inside", "flat bands", "tiny"])
def test_what_cannot_be_measured_leaves_the_contract(what: str) -> None:
    rng = np.random.default_rng(11)
    pan, ms, phase = seen(rng, 0.3, 4)
    if what == "unrelated":
        pan = ground(rng, SIDE_MS * 4)
    elif what == "flat":
        pan = np.full_like(pan, 700.0)
    elif what == "flat inside":
        pan[8:-8, 8:-8] = 700.0
    elif what == "flat bands":
        ms = np.full_like(ms, 300.0)
    else:
        pan, ms = pan[:80, :80], ms[:, :20, :20]
    assert combine([sharpness(pan, ms, 4, (phase,) * 3)]) is None
    assert band_mtfs((0.3, 0.25), None, 0.15, 4) == (Mtf(0.3), Mtf(0.25))


def test_windows_that_are_not_certain_have_no_say() -> None:
    good = [Sharpness(mtf=mtf, explained=0.99) for mtf in (Mtf(0.2), Mtf.of_half(0.7, 3.0), Mtf.of_half(0.8, 4.0))]
    poor = [Sharpness(mtf=Mtf(0.03), explained=0.99), Sharpness(mtf=Mtf(0.5), explained=0.5), None]
    found = combine([*good, *poor])
    assert found is not None
    assert (found.half, found.shape) == pytest.approx((0.7, 3.0))


@given(measured=st.floats(0.05, 0.6), pan=st.floats(0.05, 0.3), ratio=st.sampled_from([2, 3, 4]))
def test_mtfs_relative_to_pan_are_on_average_what_was_measured(measured: float, pan: float, ratio: int) -> None:
    mtfs = band_mtfs((0.35, 0.35, 0.27), Mtf(measured, 3.0), pan, ratio)
    assert np.mean([relative_mtf(mtf, pan, ratio) for mtf in mtfs], axis=0) == pytest.approx((measured, 3.0))
    assert mtfs[0] == mtfs[1]
    assert mtfs[2].gain / mtfs[0].gain == pytest.approx(0.27 / 0.35)


def test_no_band_is_sharper_than_can_be() -> None:
    """Though bands that differ by a factor, brought to a sharp mean, would be."""
    assert max(mtf.gain for mtf in band_mtfs((0.6, 0.1), Mtf(0.85), 0.15, 4)) == SHARPEST_GAIN


REAL = {
    "GE1_grip": (0.18, 0.26),
    "GF2_train1": (0.03, 0.08),
    "PHR_melbourne_arena": (0.06, 0.12),
    "WV2_rio_degraded": (0.26, 0.32),
    "WV2_ridge_8bit": (0.35, 0.48),
    "L7_P090R083_07": (0.24, 0.34),
    "L7_P093R085_25": (0.24, 0.34),
    "L8_gulfcoast_ground": (0.33, 0.44),
    "L8_istanbul": (0.33, 0.44),
}
"""Pairs and between which Gaussians they have fallen to a half: scenes of one sensor agree, others are far from 0.3."""


@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_as_sharp_as_their_sensors(shared_data: Path, name: str) -> None:
    pair = read_pair(shared_data / "pairs" / f"{name}.npz", load_contracts(), with_truth=False)
    low, high = REAL[name]
    assert pair.measured_mtf is not None
    assert Mtf(low).half < pair.measured_mtf.half < Mtf(high).half


STEEP = {
    "WV2_washington": 5.0,
    "WV3_zpnn": 5.0,
    "WV2_ridge_8bit": 3.0,
    "L7_P090R083_07": 3.0,
    "GE1_grip": 2.0,
    "WV2_rio_degraded": 2.0,
}
"""Pairs and the least shape of their MTF, or that of a Gaussian."""


@pytest.mark.parametrize("name", STEEP)
def test_products_that_were_resampled_fall_more_steeply(shared_data: Path, name: str) -> None:
    """As their makers delivered them; those without, and what others degraded by a Gaussian, are Gaussians."""
    pair = read_pair(shared_data / "pairs" / f"{name}.npz", load_contracts(), with_truth=False)
    assert pair.measured_mtf is not None
    assert pair.measured_mtf.shape == 2 if STEEP[name] == 2 else pair.measured_mtf.shape >= STEEP[name]


def geoeye(mtf: float, side_px: int) -> SimulatedPair:
    """A simulated scene by GeoEye-1 whose bands all have a Gaussian of this MTF."""
    contract, rng = get_contract("geoeye-1"), np.random.default_rng(17)
    bands, pan_only = [band.model_copy(update={"mtf": mtf}) for band in contract.bands], pan_only_wavelengths(contract)
    model = random_model(rng, contract, bands, shift_px=0, band_shift_px=0, field_px=0, pan_only_um=pan_only)
    return image_scene(make_truth(rng, (side_px, side_px), truth_wavelengths(bands, pan_only), 0.5), model, rng)


def error_of_network(pan: Image, ms: Image, truth: Image, mtfs: tuple[Mtf, ...]) -> float:
    """ERGAS of the shipped network against the truth, told these MTFs of GeoEye-1's bands."""
    pan, ms = pan.astype(np.float32), ms.astype(np.float32)
    tile = Tile(pan, ms, 4, ((1.5, 1.5),) * 4, value_range(pan), tuple(value_range(band) for band in ms))
    network, pan_gain = NetworkSharpener(load_checkpoint()), get_contract("geoeye-1").pan_mtf
    result = sharpen_tile(network.fitted_to(tile, mtfs, pan_gain), tile)
    return ergas(truth[:, 32:-32, 32:-32], result[:, 32:-32, 32:-32], 4)


def nominal_and_measured(pan: Image, ms: Image) -> tuple[tuple[Mtf, ...], tuple[Mtf, ...]]:
    """MTFs of GeoEye-1's bands by its contract, and as the pair is measured."""
    contract = get_contract("geoeye-1")
    nominal, found = [band.mtf for band in contract.bands], combine([sharpness(pan, ms, 4, ((1.5, 1.5),) * 4)])
    assert found is not None
    unmeasured, measured = (band_mtfs(nominal, mtf, contract.pan_mtf, 4) for mtf in (None, found))
    return unmeasured, measured


@pytest.mark.parametrize("mtf", [0.07, 0.6])
def test_products_unlike_their_contract_are_sharpened_better(mtf: float) -> None:
    """A simulated GeoEye-1 far blurrier or sharper than its contract says, against the truth at full resolution."""
    seen_by_it = geoeye(mtf, 640)
    pan, ms = seen_by_it.pan.astype(np.float64), seen_by_it.ms.astype(np.float64)
    errors = [error_of_network(pan, ms, seen_by_it.truth, mtfs) for mtfs in nominal_and_measured(pan, ms)]
    assert errors[1] < 0.9 * errors[0]


def test_products_that_were_resampled_are_sharpened_better() -> None:
    """MS whose MTF falls as that of WorldView products does: measured, against a Gaussian of the same half response."""
    seen_by_it, rng = geoeye(0.3, 512), np.random.default_rng(3)
    pan = seen_by_it.pan.astype(np.float64)
    ms = np.stack([degrade(band, (128, 128), 4, (1.5, 1.5), Mtf.of_half(0.87, 8.0)) for band in seen_by_it.truth])
    ms = np.rint(ms + rng.normal(0, 2, ms.shape))
    _, measured = nominal_and_measured(pan, ms)
    assert measured[0].shape > 4
    gaussian = tuple(Mtf.of_half(mtf.half) for mtf in measured)
    errors = [error_of_network(pan, ms, seen_by_it.truth, mtfs) for mtfs in (gaussian, measured)]
    assert errors[1] < 0.85 * errors[0]
