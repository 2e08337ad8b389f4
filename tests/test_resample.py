"""Resampling matrices against other implementations, plain loops, and waves whose position is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from pancrafter.resample import (
    CUBIC_A,
    SHARPEST_GAIN,
    Mtf,
    apply_yx,
    blurring_matrix,
    cubic_matrix,
    degrade,
    degrading_matrix,
    gaussian_matrix,
    mtf_sigma,
    relative_mtf,
    upsample,
    upsampling_matrix,
)

RNG = np.random.default_rng(11)


def keys_kernel(distance: float, a: float) -> float:
    """Keys' cubic, written as in his paper."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def cubic_by_loop(row: NDArray[np.float64], position: float, a: float) -> float:
    """Sum over every pixel of a row whose ends repeat far beyond the kernel."""
    margin = 40
    padded = np.pad(row, margin, mode="edge")
    return float(sum(value * keys_kernel(position + margin - k, a) for k, value in enumerate(padded)))


def wave_position(samples: NDArray[np.float64], period: float) -> float:
    """Where the crest of a wave lies that has ``period`` samples: the phase of its Fourier coefficient."""
    assert len(samples) % period == 0
    turns = np.exp(-2j * np.pi * np.arange(len(samples)) / period)
    return float(-np.angle((samples * turns).sum()) / (2 * np.pi) * period)


def wave(n: int, period: float, crest: float) -> NDArray[np.float64]:
    crests: NDArray[np.float64] = np.cos(2 * np.pi * (np.arange(n) - crest) / period)
    return crests


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_edge_aligned_upsampling_is_the_bicubic_of_torch(ratio: int) -> None:
    image = RNG.normal(size=(9, 13))
    found = upsample(image, (9 * ratio, 13 * ratio), ratio, ((ratio - 1) / 2, (ratio - 1) / 2))
    expected = functional.interpolate(torch.from_numpy(image)[None, None], scale_factor=ratio, mode="bicubic")[
        0, 0
    ].numpy()
    assert np.abs(found - expected).max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    n_in=st.integers(1, 9),
    n_out=st.integers(1, 12),
    scale=st.floats(0.2, 3),
    offset=st.floats(-4, 4),
    a=st.sampled_from([CUBIC_A, -0.5]),
)
def test_cubic_equals_a_sum_over_a_row_that_repeats_its_ends(
    n_in: int, n_out: int, scale: float, offset: float, a: float
) -> None:
    row = np.random.default_rng(n_in).normal(size=n_in)
    expected = [cubic_by_loop(row, scale * j + offset, a) for j in range(n_out)]
    assert cubic_matrix(n_out, n_in, scale, offset, a) @ row == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("gain", [0.15, 0.3, 0.5])
def test_gaussian_has_its_gain_at_the_nyquist_frequency(ratio: int, gain: float) -> None:
    """The response is measured on a wave of two MS pixels, not computed from the formula."""
    n = 64 * ratio
    row = gaussian_matrix(n, n, 1.0, 0.0, mtf_sigma(gain, ratio), 5 * ratio) @ wave(n, 2 * ratio, 0)
    inner = slice(8 * ratio, 56 * ratio)
    assert np.abs(row[inner] - gain * wave(n, 2 * ratio, 0)[inner]).max() < 2e-3


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("phase", [-1.3, 0.0, 0.5, 1.5, 2.0, 4.7])
def test_degrading_and_upsampling_put_a_wave_where_the_phase_says(ratio: int, phase: float) -> None:
    """MS pixel i lies at PAN index ratio * i + phase; a sub-pixel error of 0.01 px would show."""
    period_ms, crest, n_ms = 12, 5.3, 72
    period = ratio * period_ms
    ms_row = degrading_matrix(n_ms, n_ms * ratio, ratio, phase, 0.3) @ wave(n_ms * ratio, period, crest)
    inner = slice(12, 60)
    expected = (crest - phase) / ratio % period_ms
    assert wave_position(ms_row[inner], period_ms) % period_ms == pytest.approx(expected, abs=2e-3 / ratio)
    pan_row = upsampling_matrix(n_ms * ratio, n_ms, ratio, phase) @ ms_row
    assert wave_position(pan_row[12 * ratio : 60 * ratio], period) % period == pytest.approx(crest, abs=0.01)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_constants_survive_and_borders_repeat(ratio: int) -> None:
    for matrix in (upsampling_matrix(40, 7, ratio, -0.8), degrading_matrix(9, 31, ratio, 2.6, 0.2)):
        assert np.asarray(matrix.sum(axis=1)) == pytest.approx(1, abs=1e-12)
    far = upsampling_matrix(40 * ratio, 7, ratio, 0.0) @ np.arange(7.0)
    assert far[9 * ratio :] == pytest.approx(6)


@settings(max_examples=40, deadline=None)
@given(ratio=st.sampled_from([2, 3, 4]), start=st.integers(9, 20), size=st.integers(22, 30), phase=st.floats(-3, 6))
def test_a_window_gets_the_weights_of_the_whole(ratio: int, start: int, size: int, phase: float) -> None:
    """Rows of a window cut at a multiple of the ratio equal those of the whole scene, away from its ends."""
    rng = np.random.default_rng(start)
    pan, ms = rng.normal(size=64 * ratio), rng.normal(size=64)
    whole_up, whole_down = (
        upsampling_matrix(64 * ratio, 64, ratio, phase) @ ms,
        degrading_matrix(64, 64 * ratio, ratio, phase, 0.3) @ pan,
    )
    cut_up = upsampling_matrix(size * ratio, size, ratio, phase) @ ms[start : start + size]
    cut_down = degrading_matrix(size, size * ratio, ratio, phase, 0.3) @ pan[start * ratio : (start + size) * ratio]
    reach = 9
    core = slice(reach, size - reach)
    assert np.abs(cut_down[core] - whole_down[start : start + size][core]).max() < 1e-12
    pan_core = slice(reach * ratio, (size - reach) * ratio)
    assert np.abs(cut_up[pan_core] - whole_up[start * ratio : (start + size) * ratio][pan_core]).max() < 1e-12


def test_bands_as_sharp_as_pan_still_have_a_blur() -> None:
    """Gains of 1 and more, which a sharp product gets by its own blur and PAN's, have no Gaussian."""
    for mtf in (0.9, Mtf(SHARPEST_GAIN, 6.0)):
        found = relative_mtf(mtf, 0.05, 2)
        assert found == Mtf(SHARPEST_GAIN, Mtf.of(mtf).shape)
        assert blurring_matrix(9, 2, found) @ np.ones(9) == pytest.approx(1)


def test_axes_are_rows_first() -> None:
    image = RNG.normal(size=(6, 10))
    y, x = cubic_matrix(5, 6, 1.0, 0.3), cubic_matrix(7, 10, 1.2, -0.4)
    assert apply_yx(y, x, image) == pytest.approx(y.toarray() @ image @ x.toarray().T, abs=1e-12)
    shifted = degrade(np.arange(40.0)[:, None] * np.ones((1, 60)), (10, 15), 4, (2.5, 0.0), 0.3)
    assert shifted.shape == (10, 15)
    assert shifted[3:7] == pytest.approx((4 * np.arange(3, 7) + 2.5)[:, None] * np.ones((1, 15)), abs=1e-4)
