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
from pancrafter.resample import degrade, relative_gain
from pancrafter.sensors import get_contract, load_contracts
from pancrafter.sharpness import (
    WIDTHS,
    Sharpness,
    band_gains,
    combine,
    gain_of_width,
    sharpness,
)
from pancrafter.simulate import image_scene, make_truth, random_model
from pancrafter.simulate.archive import pan_only_wavelengths
from pancrafter.tiles import Tile

Image = NDArray[np.float64]
SIDE_MS = 96


def ground(rng: np.random.Generator, side: int) -> Image:
    """Structure on all scales, DN around 1000."""
    noise = rng.normal(0, 1, (side, side))
    return 1000 + sum(60 * sigma * gaussian_filter(noise, sigma) for sigma in (0.6, 1.5, 4.0, 10.0))


def seen(
    rng: np.random.Generator, gain: float, ratio: int, *, noise: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Image, Image, tuple[float, float]]:
    """PAN, three bands blurred by ``gain`` whose mix it is, and where MS pixel 0 lies."""
    parts = [ground(rng, SIDE_MS * ratio) for _ in range(3)]
    pan = 0.2 * parts[0] + 0.5 * parts[1] + 0.3 * parts[2]
    phase = ((ratio - 1) / 2 + shift[0], (ratio - 1) / 2 + shift[1])
    ms = np.stack([degrade(part, (SIDE_MS, SIDE_MS), ratio, phase, gain) for part in parts])
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
    assert found.gain == pytest.approx(gain, rel=0.06 if narrow else 0.03)


@pytest.mark.parametrize("gain", [0.08, 0.3, 0.5])
def test_noise_and_a_band_that_pan_does_not_see_hardly_matter(gain: float) -> None:
    rng = np.random.default_rng(3)
    pan, ms, phase = seen(rng, gain, 4, noise=4.0)
    other = degrade(ground(rng, SIDE_MS * 4), (SIDE_MS, SIDE_MS), 4, phase, gain)
    found = sharpness(pan, np.concatenate([ms, other[None]]), 4, (phase,) * 4)
    assert found is not None
    assert found.gain == pytest.approx(gain, rel=0.15)


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
    assert found.gain == pytest.approx(clean.gain, rel=0.02)
    assert not spoilt.certain


def test_sharper_than_what_is_tried_is_certain_and_blurrier_is_not() -> None:
    sharp, blurred = (seen(np.random.default_rng(7), gain, 4) for gain in (0.94, 0.005))
    found = [sharpness(pan, ms, 4, (phase,) * 3) for pan, ms, phase in (sharp, blurred)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].certain
    assert found[0].gain == pytest.approx(gain_of_width(float(WIDTHS[0])))
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
    assert band_gains((0.3, 0.25), None, 0.15, 4) == (0.3, 0.25)


def test_windows_that_are_not_certain_have_no_say() -> None:
    good = [Sharpness(gain=gain, explained=0.99) for gain in (0.2, 0.22, 0.6)]
    assert combine([*good, Sharpness(gain=0.03, explained=0.99), Sharpness(gain=0.5, explained=0.5), None]) == 0.22


@given(measured=st.floats(0.05, 0.6), pan=st.floats(0.05, 0.3), ratio=st.sampled_from([2, 3, 4]))
def test_gains_relative_to_pan_are_on_average_what_was_measured(measured: float, pan: float, ratio: int) -> None:
    gains = band_gains((0.35, 0.35, 0.27), measured, pan, ratio)
    assert np.mean([relative_gain(gain, pan, ratio) for gain in gains]) == pytest.approx(measured)
    assert gains[0] == gains[1]
    assert gains[2] / gains[0] == pytest.approx(0.27 / 0.35)


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
"""Pairs and where their MTF lies: scenes of one sensor agree, others are far from the usual 0.3 in both directions."""


@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_as_sharp_as_their_sensors(shared_data: Path, name: str) -> None:
    pair = read_pair(shared_data / "pairs" / f"{name}.npz", load_contracts(), with_truth=False)
    low, high = REAL[name]
    assert pair.measured_mtf is not None
    assert low < pair.measured_mtf < high


@pytest.mark.parametrize("mtf", [0.07, 0.6])
def test_products_unlike_their_contract_are_sharpened_better(mtf: float) -> None:
    """A simulated GeoEye-1 far blurrier or sharper than its contract says, against the truth at full resolution."""
    contract, rng = get_contract("geoeye-1"), np.random.default_rng(17)
    centers = [band.center_um for band in contract.bands if band.center_um is not None]
    model = random_model(
        rng,
        ratio=4,
        centers_um=centers,
        ms_mtf=[mtf] * 4,
        pan_mtf=contract.pan_mtf,
        in_pan=[band.in_pan for band in contract.bands],
        dn_max=contract.dn_max,
        shift_px=0,
        band_shift_px=0,
        field_px=0,
        pan_only_um=pan_only_wavelengths(contract),
    )
    seen_by_it = image_scene(make_truth(rng, (640, 640), (*centers, *pan_only_wavelengths(contract)), 0.5), model, rng)
    phases = ((1.5, 1.5),) * 4
    found = combine([sharpness(seen_by_it.pan, seen_by_it.ms, 4, phases)])
    nominal = [band.mtf for band in contract.bands]
    network = NetworkSharpener(load_checkpoint())
    pan, ms = seen_by_it.pan.astype(np.float32), seen_by_it.ms.astype(np.float32)
    tile = Tile(pan, ms, 4, phases, value_range(pan), tuple(value_range(band) for band in ms))
    errors = []
    for gains in (tuple(nominal), band_gains(nominal, found, contract.pan_mtf, 4)):
        result = sharpen_tile(network.fitted_to(tile, gains, contract.pan_mtf), tile)
        errors.append(ergas(seen_by_it.truth[:, 32:-32, 32:-32], result[:, 32:-32, 32:-32], 4))
    assert errors[1] < 0.9 * errors[0]
