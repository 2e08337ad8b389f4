"""Quality indices against facts, hand-computed cases and slow independent formulations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter import metrics, resample
from pancrafter.errors import GridMismatchError, InvalidSceneError

Array = NDArray[np.float64]


def scene(shape: tuple[int, ...], seed: int = 0, level: float = 600.0) -> Array:
    """Smooth random DN fields with fine structure, all positive."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    fy, fx = np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])[None, :]
    field = np.fft.irfft2(spectrum / (0.02 + np.hypot(fy, fx)), s=shape[-2:])
    return np.asarray(np.clip(level + 150 * field / field.std(), 1, 2047))


# --- slow oracles ---------------------------------------------------------------------------------------------------


def conj(a: Array) -> Array:
    return np.concatenate([a[:1], -a[1:]])


def product(u: Array, v: Array) -> Array:
    """Hypercomplex product of two vectors by recursion, as the protocol words it."""
    if len(u) == 1:
        return u * v
    h = len(u) // 2
    a, c, b, d = u[:h], v[:h], conj(u[h:]), conj(v[h:])
    return np.concatenate([product(a, c) - product(d, conj(b)), product(conj(a), d) + product(c, b)])


def naive_q2n_block(x: Array, y: Array) -> float:
    """Pixel by pixel; ``x``, ``y`` are (band, pixel) integers."""
    n, count = 1, x.shape[1]
    while n < len(x):
        n *= 2
    x, y = (np.vstack([v, np.zeros((n - len(v), count))]) for v in (x, y))
    for i in range(n):
        mean, dev = x[i].mean(), x[i].std(ddof=1)
        dev = np.finfo(float).eps if dev == 0 else dev
        y[i] = y[i] + 1 if mean == 0 else (y[i] - mean) / dev + 1
        x[i] = (x[i] - mean) / dev + 1
    ybar = np.array([conj(p) for p in y.T])
    m1, m2 = x.T.mean(axis=0), ybar.mean(axis=0)
    e1, e2 = np.mean([p @ p for p in x.T]), np.mean([p @ p for p in y.T])
    s = count / (count - 1) * (e1 + e2 - m1 @ m1 - m2 @ m2)
    bias = 2 * np.linalg.norm(m1) * np.linalg.norm(m2) / (m1 @ m1 + m2 @ m2)
    if abs(s) < 1e-12:
        return float(bias)
    mixed = np.mean([product(p, q) for p, q in zip(x.T, ybar, strict=True)], axis=0)
    cov = count / (count - 1) * (mixed - product(m1, m2))
    return float(np.linalg.norm(bias * 2 / s * cov))


def naive_uqi(x: Array, y: Array) -> float:
    c = np.cov(x.ravel(), y.ravel())
    mx, my = x.mean(), y.mean()
    return float(4 * c[0, 1] * mx * my / ((c[0, 0] + c[1, 1]) * (mx**2 + my**2)))


def tiles(image: Array, block: int) -> list[Array]:
    return [
        image[..., i : i + block, j : j + block]
        for i in range(0, image.shape[-2], block)
        for j in range(0, image.shape[-1], block)
    ]


def mean_uqi(x: Array, y: Array) -> float:
    return float(np.mean([naive_uqi(a, b) for a, b in zip(tiles(x, 32), tiles(y, 32), strict=True)]))


def mean_q2n(x: Array, y: Array) -> float:
    pairs = zip(tiles(x, 32), tiles(y, 32), strict=True)
    return float(np.mean([naive_q2n_block(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in pairs]))


# --- errors against a reference -------------------------------------------------------------------------------------


def test_ergas_by_hand() -> None:
    reference = np.stack([np.full((2, 2), 10.0), np.full((2, 2), 100.0)])
    test = reference + np.array([1.0, 20.0])[:, None, None]
    assert metrics.ergas(reference, test, 4) == pytest.approx(25 * np.sqrt((0.01 + 0.04) / 2))
    assert metrics.ergas(reference, test, 2) == pytest.approx(2 * metrics.ergas(reference, test, 4))


def test_ergas_divides_by_the_reference_mean() -> None:
    low, high = np.full((1, 2, 2), 10.0), np.full((1, 2, 2), 20.0)
    assert metrics.ergas(low, high, 4) == pytest.approx(25.0)
    assert metrics.ergas(high, low, 4) == pytest.approx(12.5)


def test_sam_by_hand() -> None:
    reference = np.array([1.0, 0.0, 0.0, 2.0]).reshape(2, 1, 2)  # spectra (1, 0) and (0, 2)
    test = np.array([1.0, 3.0, 1.0, 3.0]).reshape(2, 1, 2)  # spectra (1, 1) and (3, 3)
    assert metrics.sam_deg(reference, test) == pytest.approx(45.0)


def test_sam_ignores_zero_spectra_and_brightness() -> None:
    reference, test = scene((4, 8, 8)), scene((4, 8, 8), seed=1)
    angle = metrics.sam_deg(reference, test)
    assert metrics.sam_deg(reference, test * np.linspace(0.5, 3, 64).reshape(8, 8)) == pytest.approx(angle)
    dark = test.copy()
    dark[:, :4] = 0
    assert metrics.sam_deg(reference, dark) == pytest.approx(metrics.sam_deg(reference[:, 4:], test[:, 4:]))


def test_spectra_that_are_not_numbers_are_not_passed_over() -> None:
    reference, test = scene((3, 8, 8)), scene((3, 8, 8), seed=1)
    test[1, 2, 3] = np.nan
    assert np.isnan(metrics.sam_deg(reference, test))
    assert np.isnan(metrics.ergas(reference, test, 4))
    assert metrics.error_sums(reference, test).angles == 64


def test_masked_errors_equal_those_of_the_crop() -> None:
    reference, test = scene((3, 12, 10)), scene((3, 12, 10), seed=1)
    valid = np.zeros((12, 10), dtype=bool)
    valid[2:9, 3:8] = True
    test[:, ~valid] = np.nan
    crop = reference[:, 2:9, 3:8], test[:, 2:9, 3:8]
    assert metrics.ergas(reference, test, 4, valid) == pytest.approx(metrics.ergas(*crop, 4))
    assert metrics.sam_deg(reference, test, valid) == pytest.approx(metrics.sam_deg(*crop))


def test_error_sums_add_up_over_windows() -> None:
    reference, test = scene((3, 16, 16)), scene((3, 16, 16), seed=1)
    total = metrics.error_sums(reference[:, :5], test[:, :5]) + metrics.error_sums(reference[:, 5:], test[:, 5:])
    assert total.ergas(4) == pytest.approx(metrics.ergas(reference, test, 4), rel=1e-12)
    assert total.sam_deg() == pytest.approx(metrics.sam_deg(reference, test), rel=1e-12)


def test_errors_without_pixels_or_signal_are_refused() -> None:
    image = np.ones((2, 4, 4))
    nothing = np.zeros((4, 4), dtype=bool)
    with pytest.raises(InvalidSceneError, match="0 valid pixels"):
        metrics.ergas(image, image, 4, nothing)
    with pytest.raises(InvalidSceneError, match="0 valid non-zero spectra"):
        metrics.sam_deg(image, image, nothing)
    image[1] = 0
    with pytest.raises(InvalidSceneError, match="band index 1 is 0"):
        metrics.ergas(image, image, 4)
    with pytest.raises(GridMismatchError, match="expected the reference's shape"):
        metrics.ergas(image, image[:, :2], 4)


def test_unsigned_integers_do_not_wrap() -> None:
    low, high = np.full((1, 12, 12), 5, np.uint16), np.full((1, 12, 12), 7, np.uint16)
    assert metrics.ergas(high, low, 4) == pytest.approx(25 * 2 / 7)
    assert metrics.psnr(high, low, 2047) == pytest.approx(20 * np.log10(2047 / 2))
    assert metrics.psnr(low, high, 2047) == metrics.psnr(high, low, 2047)


def test_psnr_pools_the_bands() -> None:
    reference = np.zeros((2, 4, 4))
    test = np.stack([np.full((4, 4), 3.0), np.full((4, 4), 1.0)])
    assert metrics.psnr(reference, test, 100) == pytest.approx(10 * np.log10(100**2 / 5))
    assert metrics.psnr(reference, reference, 100) == np.inf


def test_ssim_equals_a_loop_over_windows() -> None:
    x, y = scene((2, 14, 13)), scene((2, 14, 13), seed=1)
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(axis, axis) / np.outer(axis, axis).sum()
    c1, c2 = (0.01 * 2047) ** 2, (0.03 * 2047) ** 2
    values = []
    for a, b in zip(x, y, strict=True):
        for i in range(4):
            for j in range(3):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert metrics.ssim(x, y, 2047) == pytest.approx(np.mean(values), abs=1e-10)
    assert metrics.ssim(x, x, 2047) == pytest.approx(1)
    with pytest.raises(GridMismatchError, match="11 x 11"):
        metrics.ssim(x[:, :10], y[:, :10], 2047)


def test_scc_equals_a_loop_over_pixels() -> None:
    x, y = scene((2, 9, 8)), scene((2, 9, 8), seed=1)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)

    def magnitude(band: Array) -> Array:
        padded = np.pad(band[1:-1, 1:-1], 1)
        out = np.zeros((band.shape[0] - 2, band.shape[1] - 2))
        for i in range(out.shape[0]):
            for j in range(out.shape[1]):
                patch = padded[i : i + 3, j : j + 3]
                out[i, j] = np.hypot((patch * kernel).sum(), (patch * kernel.T).sum())
        return out

    a, b = np.stack([magnitude(v) for v in x]), np.stack([magnitude(v) for v in y])
    assert metrics.scc(x, y) == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-12)
    assert metrics.scc(x, 3 * x) == pytest.approx(1)


def test_scc_of_nothing_is_perfect_only_between_two_images_of_nothing() -> None:
    x = scene((2, 9, 8))
    assert metrics.scc(0 * x, 0 * x) == 1
    assert metrics.scc(x, 0 * x) == 0
    assert metrics.scc(0 * x, x) == 0
    broken = x.copy()
    broken[0, 4, 4] = np.nan
    assert np.isnan(metrics.scc(x, broken))
    assert np.isnan(metrics.scc(0 * x, broken))


# --- Q2n and UQI ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_hypercomplex_table_is_the_recursive_product(n: int) -> None:
    u, v = np.random.default_rng(n).normal(size=(2, n))
    by_table = np.einsum("kij,i,j->k", metrics.hypercomplex_table(n), u, v)
    assert by_table == pytest.approx(product(u, v), abs=1e-12)
    assert np.linalg.norm(by_table) == pytest.approx(np.linalg.norm(u) * np.linalg.norm(v))  # composition algebras
    assert product(u, conj(u)) == pytest.approx([u @ u] + [0] * (n - 1), abs=1e-12)


@pytest.mark.parametrize("n_bands", [1, 2, 3, 4, 6, 8])
def test_q2n_equals_the_product_per_pixel(n_bands: int) -> None:
    x = np.rint(scene((n_bands, 32, 64), seed=2))
    y = np.rint(0.9 * x + 0.3 * scene((n_bands, 32, 64), seed=3))
    slow = [
        naive_q2n_block(a.reshape(n_bands, -1), b.reshape(n_bands, -1))
        for a, b in zip(tiles(x, 32), tiles(y, 32), strict=True)
    ]
    assert metrics.q2n_blocks(x, y).ravel() == pytest.approx(slow, abs=1e-10)
    assert metrics.q2n(x, y) == pytest.approx(np.mean(slow), abs=1e-10)


@pytest.mark.parametrize("n_bands", [3, 4])
def test_q2n_takes_a_band_as_it_is_where_the_reference_is_empty(n_bands: int) -> None:
    x = np.rint(scene((n_bands, 32, 32), seed=2))
    y = np.rint(0.9 * x + 0.3 * scene((n_bands, 32, 32), seed=3))
    x[2], y[2] = 0, np.rint(y[2] / 300)  # nearly nothing, or the other bands would not show
    slow = naive_q2n_block(x.reshape(n_bands, -1), y.reshape(n_bands, -1))
    assert 0.1 < slow < 0.9
    assert metrics.q2n(x, y) == pytest.approx(slow, abs=1e-10)


@pytest.mark.parametrize("n_bands", [1, 3, 4, 8, 10])
def test_q2n_of_identical_images_is_one(n_bands: int) -> None:
    x = np.rint(scene((n_bands, 64, 64)))
    assert metrics.q2n(x, x) == pytest.approx(1, abs=1e-12)


def test_q2n_of_one_band_is_the_uqi_of_standardised_blocks() -> None:
    x, y = np.rint(scene((1, 32, 32))), np.rint(scene((1, 32, 32), seed=5))
    mean, dev = x.mean(), x.std(ddof=1)
    assert metrics.q2n(x, y) == pytest.approx(abs(naive_uqi((x - mean) / dev + 1, (y - mean) / dev + 1)), abs=1e-12)


def test_q2n_rounds_saturates_and_mirrors() -> None:
    x, y = np.rint(scene((4, 32, 40))), np.rint(scene((4, 32, 40), seed=1))
    assert metrics.q2n(x + 0.4, y - 0.4) == metrics.q2n(x, y)
    y[0, 0, :3], y[1, 0, :3] = -50.0, 70000.0
    clipped = np.clip(y, 0, 65535)
    assert metrics.q2n(x, y) == metrics.q2n(x, clipped)
    wide_x, wide_y = (np.concatenate([v, v[:, :, :15:-1]], axis=2) for v in (x, clipped))
    assert metrics.q2n(x, clipped) == pytest.approx(metrics.q2n(wide_x, wide_y), abs=1e-12)


@pytest.mark.parametrize("shape_yx", [(40, 44), (36, 64), (49, 33), (20, 40)])
def test_q2n_mirrors_the_whole_image_at_right_and_bottom(shape_yx: tuple[int, int]) -> None:
    """First the whole image grows to multiples of 32, then it is cut; rows are treated like columns."""
    x, y = np.rint(scene((3, *shape_yx))), np.rint(scene((3, *shape_yx), seed=1))

    def mirrored_index(side: int) -> list[int]:
        there_and_back = [*range(side), *reversed(range(side))]
        return [there_and_back[i % (2 * side)] for i in range(-(-side // 32) * 32)]

    rows, columns = (mirrored_index(side) for side in shape_yx)
    grown = [image[:, rows][:, :, columns] for image in (x, y)]
    assert metrics.q2n(x, y) == pytest.approx(mean_q2n(*grown), abs=1e-10)
    turned = (np.ascontiguousarray(image.transpose(0, 2, 1)) for image in (x, y))
    assert metrics.q2n(*turned) == pytest.approx(metrics.q2n(x, y), abs=1e-12)


def test_q2n_of_flat_blocks_is_finite() -> None:
    flat = np.full((4, 32, 32), 300.0)
    assert metrics.q2n(flat, flat) == 1
    assert metrics.q2n(np.zeros((4, 32, 32)), np.zeros((4, 32, 32))) == 1
    assert 0 <= metrics.q2n(flat, flat + 5) < 0.01


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_bands=st.integers(1, 9), noise=st.floats(1, 400))
def test_q2n_stays_between_zero_and_one(seed: int, n_bands: int, noise: float) -> None:
    x = scene((n_bands, 32, 64), seed)
    y = x + np.random.default_rng(seed).normal(0, noise, x.shape)
    value = metrics.q2n(x, y)
    assert 0 <= value <= 1
    assert metrics.q2n(x[:, ::-1, ::-1], y[:, ::-1, ::-1]) == pytest.approx(value, abs=1e-12)


def test_uqi_blocks_equal_the_formula() -> None:
    x, y = scene((64, 96)), scene((64, 96), seed=1)
    slow = [naive_uqi(a, b) for a, b in zip(tiles(x, 32), tiles(y, 32), strict=True)]
    assert metrics.uqi_blocks(x, y).ravel() == pytest.approx(slow, abs=1e-12)
    flat = np.full((32, 32), 4.0)
    assert metrics.uqi_blocks(flat, 2 * flat)[0, 0] == pytest.approx(2 * 4 * 8 / (16 + 64))
    assert metrics.uqi_blocks(0 * flat, 0 * flat)[0, 0] == 1


def test_q2n_of_a_stretched_band_by_hand() -> None:
    """y = k x: with x standardised to mean 1 and deviation 1, y has mean 1 + (k - 1) a / c and deviation k."""
    x = np.rint(scene((1, 32, 32), seed=4))
    a, c, k = x.mean(), x.std(ddof=1), 2.0
    mean = 1 + (k - 1) * a / c
    expected = 2 * mean / (1 + mean**2) * 2 * k / (1 + k**2)
    assert metrics.q2n(x, k * x) == pytest.approx(expected, rel=1e-9)


def test_bands_are_filled_up_with_zero_bands() -> None:
    x, y = np.rint(scene((3, 32, 32))), np.rint(scene((3, 32, 32), seed=6))
    zero = np.zeros((1, 32, 32))
    assert metrics.q2n(x, y) == pytest.approx(metrics.q2n(np.vstack([x, zero]), np.vstack([y, zero])), abs=1e-12)


def test_q2n_is_not_the_ports_that_standardise_each_image_by_itself() -> None:
    """Only the reference's mean and deviation count, so a change of contrast is seen."""
    x = np.rint(scene((4, 32, 32), seed=8))
    flat = np.rint(x.mean(axis=(1, 2), keepdims=True) + 0.25 * (x - x.mean(axis=(1, 2), keepdims=True)))
    assert metrics.q2n(x, flat) == pytest.approx(2 * 0.25 / (1 + 0.25**2), abs=0.01)


# --- benchmark filters ----------------------------------------------------------------------------------------------


def test_mtf_kernel_facts() -> None:
    kernel = metrics.mtf_kernel(0.30, 4)
    taps = np.arange(-20, 21)
    assert kernel.shape == (41, 41)
    assert kernel.sum() == pytest.approx(0.99874, abs=5e-6)
    assert kernel[20, 20] == pytest.approx(0.038807, abs=1e-6)
    at_nyquist = (kernel.sum(axis=0) * np.cos(2 * np.pi * taps / 8)).sum() / kernel.sum()
    assert at_nyquist == pytest.approx(0.283, abs=5e-4)
    spectrum = (kernel.sum(axis=0) * np.cos(2 * np.pi * taps / 40)).sum() / kernel.sum()
    assert np.sqrt(-2 * np.log(spectrum)) / (2 * np.pi / 40) == pytest.approx(2.024, abs=0.02)
    assert kernel == pytest.approx(kernel.T, abs=1e-17)
    assert kernel == pytest.approx(kernel[::-1], abs=1e-17)


def test_mtf_kernel_alpha_is_the_published_one() -> None:
    """The central row of the untapered kernel is the transform of a Gaussian of deviation 3.2222 bins."""
    bins = np.arange(-20, 21)
    response = np.exp(-0.5 * (bins / 3.2222) ** 2)
    untapered = (response[:, None] * np.cos(2 * np.pi * np.outer(bins, bins) / 41)).sum(axis=0) / 41
    kernel = metrics.mtf_kernel(0.30, 4)
    window = np.kaiser(41, 0.5)
    assert kernel[20] == pytest.approx(untapered[20] * untapered * window, abs=2e-6)
    assert kernel[0, 0] == 0  # outside the circle


def test_mtf_kernel_is_neither_normalised_nor_clipped() -> None:
    """The published ports do both, and read D_lambda 2e-4 to 4e-4 lower."""
    kernel = metrics.mtf_kernel(0.30, 4)
    assert kernel.sum() < 0.999
    assert kernel.min() < 0


def test_interpolator_is_the_23_tap_half_band_filter() -> None:
    taps = np.array(metrics.HALF_BAND_23[:0:-1] + metrics.HALF_BAND_23)
    assert len(taps) == 23
    assert taps.sum() == pytest.approx(1, abs=1e-9)
    assert taps[11] == 0.5
    assert not taps[np.arange(1, 23, 2)[np.arange(1, 23, 2) != 11]].any()  # half-band: samples stay as they are
    assert taps[::2].sum() == pytest.approx(0.5, abs=1e-9)  # and a constant stays one between them
    offsets = np.arange(-11, 12)
    assert (taps * np.cos(np.pi / 2 * offsets)).sum() == pytest.approx(0.5, abs=1e-9)  # -6 dB at the old Nyquist


def test_mtf_blur_equals_direct_correlation_with_repeated_borders() -> None:
    image, kernel = scene((12, 15)), metrics.mtf_kernel(0.22, 4)
    padded = np.pad(image, 20, mode="edge")
    slow = [[(padded[i : i + 41, j : j + 41] * kernel).sum() for j in range(15)] for i in range(12)]
    assert metrics.mtf_blur(image, kernel) == pytest.approx(np.array(slow), rel=1e-10)


@pytest.mark.parametrize(("ratio", "first"), [(2, 1), (4, 2), (8, 4)])
def test_poly_upsample_places_samples_and_interpolates(ratio: int, first: int) -> None:
    i, j = np.arange(32), np.arange(32 * ratio)
    ms = (500 + 100 * np.cos(2 * np.pi * 3 * i / 32))[None, :, None] * np.ones((1, 1, 32))
    up = metrics.poly_upsample(ms, ratio)
    expected = 500 + 100 * np.cos(2 * np.pi * 3 * (j - first) / (32 * ratio))
    assert up[0, :, 5] == pytest.approx(expected, abs=0.1)
    field = scene((2, 16, 16))
    assert metrics.poly_upsample(field, ratio)[:, first::ratio, first::ratio] == pytest.approx(field, rel=1e-9)


def test_poly_upsample_wraps_around() -> None:
    field = scene((1, 16, 16))
    rolled = metrics.poly_upsample(np.roll(field, (3, 5), axis=(1, 2)), 4)
    assert rolled == pytest.approx(np.roll(metrics.poly_upsample(field, 4), (12, 20), axis=(1, 2)), rel=1e-12)
    with pytest.raises(GridMismatchError, match="power of two"):
        metrics.poly_upsample(field, 3)


@pytest.mark.parametrize("ratio", [2, 4])
def test_reduce_bicubic_equals_torch_inside_and_mirrors_at_the_border(ratio: int) -> None:
    image = scene((64, 48))
    reduced = metrics.reduce_bicubic(image, ratio)
    size = (64 // ratio, 48 // ratio)
    other = torch.nn.functional.interpolate(torch.from_numpy(image)[None, None], size, mode="bicubic", antialias=True)
    assert reduced[2:-2, 2:-2] == pytest.approx(other[0, 0].numpy()[2:-2, 2:-2], rel=1e-9)
    mirrored = metrics.reduce_bicubic(np.pad(image, 4 * ratio, mode="symmetric"), ratio)
    assert reduced == pytest.approx(mirrored[4:-4, 4:-4], rel=1e-9)


# --- benchmark quality at full resolution ---------------------------------------------------------------------------


def test_hqnr_equals_its_definition_written_out() -> None:
    ms, pan = np.rint(scene((4, 16, 16))), np.rint(scene((64, 64), seed=7))
    lms = metrics.poly_upsample(ms, 4)
    sharpened = lms + 0.5 * (pan - pan.mean())
    gains = (0.34, 0.32, 0.30, 0.22)
    scores = metrics.hqnr(sharpened, pan, ms, 4, gains)
    blurred = np.stack([metrics.mtf_blur(b, metrics.mtf_kernel(g, 4)) for b, g in zip(sharpened, gains, strict=True)])
    dn = [np.clip(np.rint(v), 0, 65535) for v in (lms, blurred)]
    q4 = mean_q2n(*dn)
    pan_low = metrics.poly_upsample(metrics.reduce_bicubic(pan, 4)[None], 4)[0]
    ds = np.mean([abs(mean_uqi(f, pan) - mean_uqi(low, pan_low)) for f, low in zip(sharpened, lms, strict=True)])
    assert scores.d_lambda == pytest.approx(1 - q4, abs=1e-10)
    assert scores.d_s == pytest.approx(ds, abs=1e-10)
    assert scores.hqnr == pytest.approx(q4 * (1 - ds), abs=1e-10)


def test_d_s_by_hand() -> None:
    """MS that is PAN reduced as the index reduces it has UQI 1; PAN mirrored about its block means has UQI -1."""
    pan = np.rint(scene((64, 64), seed=7))
    ms = metrics.reduce_bicubic(pan, 4)[None]
    assert metrics.d_s(pan[None], pan, ms, 4) == pytest.approx(0, abs=1e-12)
    means = pan.reshape(2, 32, 2, 32).mean(axis=(1, 3)).repeat(32, 0).repeat(32, 1)
    assert metrics.d_s((2 * means - pan)[None], pan, ms, 4) == pytest.approx(2, abs=1e-9)


def test_d_lambda_and_hqnr_by_hand() -> None:
    """An MTF of nearly 1 passes everything, so up-sampled MS itself has no spectral distortion."""
    pan, ms = np.rint(scene((64, 64), seed=7)), np.rint(scene((4, 16, 16)))
    lms = metrics.poly_upsample(ms, 4)
    scores = metrics.hqnr(lms, pan, ms, 4, (0.99999,) * 4)
    assert scores.d_lambda == pytest.approx(0, abs=1e-3)
    assert scores.hqnr == (1 - scores.d_lambda) * (1 - scores.d_s)
    assert metrics.d_lambda_khan(lms, ms, 4, (0.2,) * 4) > 10 * scores.d_lambda


def test_hqnr_refuses_shapes_that_do_not_fit() -> None:
    ms, pan = scene((4, 16, 16)), scene((64, 64))
    with pytest.raises(GridMismatchError, match="one MTF per band"):
        metrics.hqnr(scene((4, 64, 64)), pan, ms, 4, (0.3, 0.3))
    with pytest.raises(GridMismatchError, match="expected 4 times ms"):
        metrics.hqnr(scene((4, 64, 64)), pan, ms[:, :15], 4, (0.3,) * 4)


# --- production variants --------------------------------------------------------------------------------------------

SHIFTED = ((1.5, 1.5), (0.7, 2.9), (1.5, -2.2))
GAINS = (0.34, 0.3, 0.22)


def observed(truth: Array, ratio: int, phases: tuple[tuple[float, float], ...]) -> Array:
    shape = (truth.shape[1] // ratio, truth.shape[2] // ratio)
    return np.stack(
        [resample.degrade(b, shape, ratio, p, g) for b, p, g in zip(truth, phases, GAINS, strict=True)]
    ).astype(np.float64)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_truth_is_consistent_with_what_was_observed_of_it(ratio: int) -> None:
    truth = scene((3, 36 * ratio, 30 * ratio))
    ms = observed(truth, ratio, SHIFTED)
    error, angle = metrics.consistency(truth, ms, ratio, SHIFTED, GAINS)
    assert error == pytest.approx(0, abs=1e-9)
    assert angle == pytest.approx(0, abs=1e-5)
    misplaced = tuple((y + 1.0, x) for y, x in SHIFTED)
    assert metrics.consistency(truth, ms, ratio, misplaced, GAINS)[0] > 0.5


@pytest.mark.parametrize("edge", [0, 1])
def test_consistency_leaves_out_pixels_that_saw_beyond_the_border(edge: int) -> None:
    """A scene cut out of a larger one is as consistent as the whole, though its border cannot be degraded again."""
    large = scene((3, 160, 160))
    ms = observed(large, 4, SHIFTED)[:, 10 * edge : 30 + 10 * edge, 10 * edge : 30 + 10 * edge]
    cut = large[:, 40 * edge : 120 + 40 * edge, 40 * edge : 120 + 40 * edge]
    sums = metrics.error_sums(*metrics.degraded_pair(cut, ms, 4, SHIFTED, GAINS))
    assert 22**2 < sums.pixels < 30**2
    assert sums.ergas(4) == pytest.approx(0, abs=0.01)
    _, _, frame = metrics.degraded_pair(cut, ms, 4, ((1.5, 1.5),) * 3, GAINS)
    assert frame.sum() == 26**2  # four deviations are two MS pixels on each side


@pytest.mark.parametrize("phases", [SHIFTED, ((1.5, 1.5), (14.5, -10.0), (1.5, 1.5))])
def test_consistency_never_sees_invalid_pixels(phases: tuple[tuple[float, float], ...]) -> None:
    """Also where a band lies more than three MS pixels from its nominal place."""
    truth = scene((3, 160, 144))
    ms = observed(truth, 4, phases)
    valid = np.ones((40, 36), dtype=bool)
    valid[10:12, 20:24] = False
    broken, missing = truth.copy(), ms.copy()
    broken[:, np.repeat(np.repeat(~valid, 4, 0), 4, 1)] = np.nan
    missing[:, ~valid] = 65535
    error, angle = metrics.consistency(broken, missing, 4, phases, GAINS, valid)
    assert error == pytest.approx(0, abs=1e-9)
    assert angle == pytest.approx(0, abs=1e-5)
    _, _, counted = metrics.degraded_pair(broken, missing, 4, phases, GAINS, valid)
    _, _, whole = metrics.degraded_pair(truth, ms, 4, phases, GAINS)
    assert 0 < counted.sum() < whole.sum() - 8


def test_consistency_adds_up_over_windows_with_a_halo() -> None:
    truth = scene((3, 96, 256))
    ms = observed(truth, 4, SHIFTED) + np.random.default_rng(0).normal(0, 5, (3, 24, 64))
    whole = metrics.error_sums(*metrics.degraded_pair(truth, ms, 4, SHIFTED, GAINS))
    left, right = np.zeros((24, 48), dtype=bool), np.zeros((24, 48), dtype=bool)
    left[:, :32] = right[:, 16:] = True
    *at_left, kept_left = metrics.degraded_pair(truth[..., :192], ms[..., :48], 4, SHIFTED, GAINS)
    *at_right, kept_right = metrics.degraded_pair(truth[..., 64:], ms[..., 16:], 4, SHIFTED, GAINS)
    parts = metrics.error_sums(*at_left, kept_left & left) + metrics.error_sums(*at_right, kept_right & right)
    assert parts.pixels == whole.pixels
    assert parts.ergas(4) == pytest.approx(whole.ergas(4), rel=1e-9)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_production_hqnr_prefers_the_truth(ratio: int) -> None:
    truth = scene((1, 192, 192)) * np.array([0.6, 1.0, 1.3])[:, None, None] + scene((3, 192, 192), 4, 50.0) / 5
    ms, pan = observed(truth, ratio, SHIFTED), truth.mean(axis=0)
    shape = (192, 192)
    blurred = np.stack([resample.upsample(b, shape, ratio, p) for b, p in zip(ms, SHIFTED, strict=True)])
    unshifted = ((1.5, 1.5),) * 3
    good, poor, unaligned = (
        metrics.hqnr_production_sums(image, pan, ms, ratio, phases, GAINS, 0.3).scores()
        for image, phases in ((truth, SHIFTED), (blurred, SHIFTED), (truth, unshifted))
    )
    assert good.hqnr > 0.93
    assert good.hqnr > poor.hqnr + 0.02
    assert good.d_s < poor.d_s
    assert good.d_lambda < unaligned.d_lambda


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_production_hqnr_equals_its_definition_written_out(ratio: int) -> None:
    """Low-pass PAN is blurred by its own MTF and sampled edge-aligned, bands by theirs and where they lie."""
    truth, shape = scene((3, 96, 96)), (96, 96)
    ms, pan, small = observed(truth, ratio, SHIFTED), truth.mean(axis=0), (96 // ratio, 96 // ratio)
    lms = [resample.upsample(b, shape, ratio, p) for b, p in zip(ms, SHIFTED, strict=True)]
    sharpened = np.stack(lms) + 0.5 * (pan - pan.mean())
    scores = metrics.hqnr_production_sums(sharpened, pan, ms, ratio, SHIFTED, GAINS, 0.5).scores()
    blurred = [
        ndimage.gaussian_filter(b, resample.mtf_sigma(g, ratio), mode="nearest", truncate=8)
        for b, g in zip(sharpened, GAINS, strict=True)
    ]
    dn = [np.rint(np.stack(image)) for image in (lms, blurred)]
    q = mean_q2n(*dn)
    centre = ((ratio - 1) / 2, (ratio - 1) / 2)
    pan_low = resample.upsample(resample.degrade(pan, small, ratio, centre, 0.5), shape, ratio, centre)
    ds = np.mean([abs(mean_uqi(f, pan) - mean_uqi(low, pan_low)) for f, low in zip(sharpened, lms, strict=True)])
    assert scores.d_lambda == pytest.approx(1 - q, abs=1e-5)
    assert scores.d_s == pytest.approx(ds, abs=1e-9)


def test_production_hqnr_never_sees_invalid_pixels() -> None:
    truth = scene((3, 160, 160))
    ms, pan = observed(truth, 4, SHIFTED), truth.mean(axis=0)
    valid = np.ones((160, 160), dtype=bool)
    valid[70:80, 70:80] = False
    valid[:, 156:] = False
    clean = metrics.hqnr_production_sums(truth, pan, ms, 4, SHIFTED, GAINS, 0.15, valid)
    broken, holed, missing = truth.copy(), pan.copy(), ms.copy()
    broken[:, ~valid], holed[~valid] = np.nan, np.inf
    missing[:, 18:20, 18:20] = 1e9
    missing[:, :, 39] = np.nan
    dirty = metrics.hqnr_production_sums(broken, holed, missing, 4, SHIFTED, GAINS, 0.15, valid)
    assert clean.blocks == 25 - 1 - 5
    assert dirty == clean
    with pytest.raises(InvalidSceneError, match="no complete 32 px block"):
        metrics.hqnr_production_sums(truth, pan, ms, 4, SHIFTED, GAINS, 0.15, ~np.ones_like(valid)).scores()


def test_production_hqnr_adds_up_over_windows_with_a_halo() -> None:
    truth = scene((3, 64, 384))
    ms, pan = observed(truth, 4, SHIFTED), truth.mean(axis=0)
    whole = metrics.hqnr_production_sums(truth, pan, ms, 4, SHIFTED, GAINS, 0.15)
    left, right = np.zeros((64, 256), dtype=bool), np.zeros((64, 256), dtype=bool)
    left[:, :192] = right[:, 64:] = True
    parts = metrics.hqnr_production_sums(
        truth[..., :256], pan[:, :256], ms[..., :64], 4, SHIFTED, GAINS, 0.15, counted=left
    ) + metrics.hqnr_production_sums(
        truth[..., 128:], pan[:, 128:], ms[..., 32:], 4, SHIFTED, GAINS, 0.15, counted=right
    )
    assert parts.blocks == whole.blocks == 24
    assert parts.scores().d_lambda == pytest.approx(whole.scores().d_lambda, abs=1e-6)  # Q2n rounds to whole DN
    assert parts.scores().d_s == pytest.approx(whole.scores().d_s, abs=1e-9)


def test_hqnr_by_structure_ignores_the_noise_of_calm_water() -> None:
    """Half of the scene is water: noise of two sensors. It spoils the plain index of a good result, not this one."""
    rng = np.random.default_rng(3)
    truth = scene((3, 192, 384))
    truth[..., 192:] = 40.0
    ms, pan = observed(truth, 4, SHIFTED), truth.mean(axis=0)
    ms[..., 48:] += rng.normal(0, 3, ms[..., 48:].shape)
    pan[:, 192:] += rng.normal(0, 3, pan[:, 192:].shape)
    result = truth.copy()
    result[..., 192:] = pan[:, 192:]
    dry = truth[..., :160], pan[:, :160], ms[..., :40]
    land = metrics.hqnr_production_sums(*dry, 4, SHIFTED, GAINS, 0.3).scores()
    plain, weighted = (
        metrics.hqnr_production_sums(result, pan, ms, 4, SHIFTED, GAINS, 0.3, by_structure=by).scores()
        for by in (False, True)
    )
    assert plain.hqnr < land.hqnr - 0.2
    assert weighted.hqnr > land.hqnr - 0.1


def test_fill_invalid_takes_the_nearest_valid_pixel() -> None:
    image = np.arange(12.0).reshape(1, 3, 4)
    valid = np.ones((3, 4), dtype=bool)
    valid[0, 0] = valid[2, 3] = False
    filled = metrics.fill_invalid(image, valid)
    assert filled[0, 0, 0] in {1.0, 4.0}
    assert filled[0, 2, 3] in {7.0, 10.0}
    assert np.array_equal(filled[:, valid], image[:, valid])
    with pytest.raises(InvalidSceneError, match="none of the 12 pixels"):
        metrics.fill_invalid(image, ~np.ones((3, 4), dtype=bool))


def test_real_pair_degrades_back_to_its_ms_where_its_phase_is_right(shared_data: Path) -> None:
    """The native MS of a reduced QuickBird pair explains its degraded MS best at the measured shift."""
    folder = shared_data / "pairs"
    data = np.load(folder / "QB_rr_train0.npz")
    shift = json.loads((folder / "QB_rr_train0.json").read_text())["shift"]["shift_pan_px"]
    gains = (0.34, 0.32, 0.30, 0.22)
    nominal = metrics.consistency(data["gt"], data["ms"], 4, ((1.5, 1.5),) * 4, gains)
    shifted = ((1.5 + shift[0], 1.5 + shift[1]),) * 4
    measured = metrics.consistency(data["gt"], data["ms"], 4, shifted, gains)
    assert measured[0] < 0.6 * nominal[0]
    assert measured[1] < nominal[1]
