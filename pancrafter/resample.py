"""Separable resampling between pixel grids, written as one sparse matrix per axis.

Row ``j`` of a matrix holds the weights of output pixel ``j`` over the input pixels, so any ratio, phase and sub-pixel
shift is the same operation, borders replicate by construction, and a tile gets the weights the whole scene gets.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.floating]

CUBIC_A = -0.75
"""Keys cubic coefficient of PyTorch's bicubic, which the published network uses as its residual base."""

SHARPEST_GAIN = 0.95
"""MTF at the MS Nyquist frequency of the sharpest MS there is; Gaussians of more would be narrower than a pixel."""

GENERIC_MTF_GAIN = 0.30
"""Gain at the MS Nyquist frequency of the low-pass PAN; the published low-pass arrays have it."""


@overload
def mtf_sigma(gain: float, ratio: float) -> float: ...


@overload
def mtf_sigma(gain: Floats, ratio: float) -> Floats: ...


def mtf_sigma(gain: float | Floats, ratio: float) -> float | Floats:
    """Standard deviation, in PAN pixels, of the Gaussian whose frequency response is ``gain`` at the MS Nyquist.

    A Gaussian of deviation s has the response exp(-2 pi^2 s^2 f^2); at f = 1 / (2 ratio) it equals ``gain``.
    """
    sigma: float | Floats = 2 * ratio / np.pi * np.sqrt(-np.log(gain) / 2)
    return sigma


def mtf_radius(gain: float, ratio: int) -> int:
    """Pixels on each side at which the Gaussian of an MTF is cut off: five deviations, at most five MS pixels.

    Less than 1e-6 of its weight lies beyond, for any gain above 0.01.
    """
    return min(math.ceil(5 * mtf_sigma(gain, ratio)), 5 * ratio)


def relative_gain(gain: float, pan_gain: float, ratio: int) -> float:
    """MTF at the MS Nyquist frequency of the blur that lies between an image as sharp as PAN and an MS band.

    ``gain`` is the band's at that frequency, ``pan_gain`` PAN's at its own Nyquist frequency, which is ``ratio`` times
    as high; both are Gaussians, so PAN keeps ``pan_gain ** (1 / ratio**2)`` there. At most ``SHARPEST_GAIN``.
    """
    return min(gain / float(pan_gain ** (1 / ratio**2)), SHARPEST_GAIN)


def _matrix(first: NDArray[np.int64], weights: Floats, n_in: int) -> csr_array:
    count, taps = weights.shape
    rows = np.repeat(np.arange(count), taps)
    columns = np.clip(first[:, None] + np.arange(taps), 0, n_in - 1).ravel()
    return csr_array((weights.ravel().astype(np.float64), (rows, columns)), shape=(count, n_in))


def cubic_taps(positions: Floats, a: float = CUBIC_A) -> tuple[NDArray[np.int64], Floats]:
    """Index of the first of the four pixels that cubic convolution reads at each position, and their weights (..., 4).

    Positions are pixel indices of the input (0 = centre of its first pixel).
    Keys (1981), "Cubic convolution interpolation", with free coefficient ``a``.
    """
    below = np.floor(positions)
    x = np.abs((positions - below)[..., None] - np.arange(-1, 3))
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return below.astype(np.int64) - 1, np.where(x <= 1, near, far)


def gaussian_taps(positions: Floats, sigma: float | Floats, radius: int) -> tuple[NDArray[np.int64], Floats]:
    """Index of the first pixel that a Gaussian reads at each position, and the normalised weights (..., 2 ``radius``).

    ``sigma`` and ``radius`` are in input pixels; an array of ``sigma`` has one axis more than ``positions``.
    """
    below = np.floor(positions)
    distances = np.arange(-radius + 1, radius + 1) - (positions - below)[..., None]
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    return below.astype(np.int64) - radius + 1, weights / weights.sum(axis=-1, keepdims=True)


@lru_cache(maxsize=512)
def cubic_matrix(n_out: int, n_in: int, scale: float, offset: float, a: float = CUBIC_A) -> csr_array:
    """Weights that read a row of ``n_in`` pixels at ``scale * j + offset`` for j in 0..n_out-1, by cubic convolution.

    Positions and ``a`` as in ``cubic_taps``; beyond the border pixels repeat.
    """
    return _matrix(*cubic_taps(scale * np.arange(n_out) + offset, a), n_in)


@lru_cache(maxsize=512)
def gaussian_matrix(n_out: int, n_in: int, scale: float, offset: float, sigma: float, radius: int) -> csr_array:
    """Weights of a normalised Gaussian (``sigma``, in input pixels) centred at ``scale * j + offset``.

    ``radius`` input pixels are used on each side of the centre; beyond the border pixels repeat.
    """
    return _matrix(*gaussian_taps(scale * np.arange(n_out) + offset, sigma, radius), n_in)


def upsampling_matrix(n_pan: int, n_ms: int, ratio: int, phase: float) -> csr_array:
    """Cubic weights that bring MS pixels (centred at PAN index ``ratio * i + phase``) onto ``n_pan`` PAN pixels."""
    return cubic_matrix(n_pan, n_ms, 1 / ratio, -phase / ratio)


def degrading_matrix(n_ms: int, n_pan: int, ratio: int, phase: float, gain: float) -> csr_array:
    """Weights that blur ``n_pan`` PAN pixels by a sensor's MTF and sample them where the MS pixels are centred.

    ``gain`` is the MTF at the MS Nyquist frequency; the support is that of ``mtf_radius``.
    """
    return gaussian_matrix(n_ms, n_pan, float(ratio), phase, mtf_sigma(gain, ratio), mtf_radius(gain, ratio))


def apply_yx(matrix_y: csr_array, matrix_x: csr_array, image: Floats) -> Floats:
    """Resample ``image`` (y, x) along both axes; the result is float64 (rows of ``matrix_y``, rows of ``matrix_x``)."""
    return np.asarray((matrix_x @ (matrix_y @ image).T).T)


def upsample(ms_band: Floats, shape_yx: tuple[int, int], ratio: int, phase_yx: tuple[float, float]) -> Floats:
    """One MS band (y, x) brought onto a PAN grid of ``shape_yx`` by cubic convolution at the given phase."""
    matrix_y = upsampling_matrix(shape_yx[0], ms_band.shape[0], ratio, phase_yx[0])
    matrix_x = upsampling_matrix(shape_yx[1], ms_band.shape[1], ratio, phase_yx[1])
    return apply_yx(matrix_y, matrix_x, ms_band)


def degrade(
    image: Floats, ms_shape_yx: tuple[int, int], ratio: int, phase_yx: tuple[float, float], gain: float
) -> Floats:
    """One PAN-grid image (y, x) as a sensor with MTF ``gain`` would have sampled it on the MS grid."""
    matrix_y = degrading_matrix(ms_shape_yx[0], image.shape[0], ratio, phase_yx[0], gain)
    matrix_x = degrading_matrix(ms_shape_yx[1], image.shape[1], ratio, phase_yx[1], gain)
    return apply_yx(matrix_y, matrix_x, image)
