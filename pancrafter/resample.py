"""Separable resampling between pixel grids, written as one sparse matrix per axis.

Row ``j`` of a matrix holds the weights of output pixel ``j`` over the input pixels, so any ratio, phase and sub-pixel
shift is the same operation, borders replicate by construction, and a tile gets the weights the whole scene gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

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

GAUSSIAN = 2.0
"""Shape of an MTF that falls as a Gaussian does: what sensors have by their contracts."""

SHAPED_RADIUS_MS_PX = 3
"""Support on each side, MS pixels, of the blur of an MTF that falls more steeply."""

_TAPER_FROM = 0.6
"""Share of that support within which such a blur is as its MTF says; farther out it is led to zero."""

_LEAST_GAIN = 1e-300
"""Of an MTF that leaves nothing at the MS Nyquist frequency; a logarithm of it must exist."""

_LEAST_RESPONSE = math.log(1e-6)
"""Where the response of an MTF counts as none, logarithm."""


class Mtf(NamedTuple):
    """How much of detail MS keeps along an axis: ``gain ** ((f / f_N) ** shape)`` at frequency f, f_N its Nyquist's.

    ``shape`` 2 is a Gaussian. What resampling and sharpening of a product leave keeps more of what is below the Nyquist
    frequency and falls more steeply there: 3 to 8. Wherever one is asked for, a number is the gain of a Gaussian.
    """

    gain: float
    shape: float = GAUSSIAN

    @classmethod
    def of(cls, value: Mtf | float) -> Mtf:
        """The value itself, or a Gaussian."""
        return value if isinstance(value, Mtf) else cls(float(value))

    @classmethod
    def of_half(cls, half: float, shape: float = GAUSSIAN) -> Mtf:
        """The one that has fallen to a half at ``half`` times the MS Nyquist frequency."""
        return cls(max(0.5 ** (half**-shape), _LEAST_GAIN), shape)

    @property
    def half(self) -> float:
        """Where it has fallen to a half, as a share of the MS Nyquist frequency."""
        return float((math.log(0.5) / math.log(self.gain)) ** (1 / self.shape))


def mean_mtf(mtfs: Sequence[Mtf | float]) -> Mtf:
    """Mean gain and mean shape."""
    gain, shape = np.mean([Mtf.of(mtf) for mtf in mtfs], axis=0)
    return Mtf(float(gain), float(shape))


def mtf_sigma(gain: float, ratio: float) -> float:
    """Standard deviation, in PAN pixels, of the Gaussian whose frequency response is ``gain`` at the MS Nyquist.

    A Gaussian of deviation s has the response exp(-2 pi^2 s^2 f^2); at f = 1 / (2 ratio) it equals ``gain``.
    """
    return 2 * ratio / math.pi * math.sqrt(-math.log(gain) / 2)


def mtf_radius(mtf: Mtf | float, ratio: int) -> int:
    """Pixels on each side at which the blur of an MTF is cut off.

    That of a Gaussian after five deviations, at most five MS pixels: less than 1e-6 of its weight lies beyond, for any
    gain above 0.01. That of another after ``SHAPED_RADIUS_MS_PX``.
    """
    gain, shape = Mtf.of(mtf)
    if shape != GAUSSIAN:
        return SHAPED_RADIUS_MS_PX * ratio
    return min(math.ceil(5 * mtf_sigma(gain, ratio)), 5 * ratio)


def mtf_reach(mtf: Mtf | float, ratio: int) -> float:
    """PAN pixels within which nearly all of the blur of an MTF lies: four deviations of a Gaussian."""
    gain, shape = Mtf.of(mtf)
    return 4 * mtf_sigma(gain, ratio) if shape == GAUSSIAN else float(mtf_radius(mtf, ratio))


def relative_mtf(mtf: Mtf | float, pan_gain: float, ratio: int) -> Mtf:
    """MTF of the blur that lies between an image as sharp as PAN and an MS band.

    ``mtf`` is the band's, ``pan_gain`` PAN's at its own Nyquist frequency, which is ``ratio`` times as high; PAN's is a
    Gaussian and keeps ``pan_gain ** (1 / ratio**2)`` at that of MS. The gain is at most ``SHARPEST_GAIN``.
    """
    gain, shape = Mtf.of(mtf)
    return Mtf(min(gain / float(pan_gain ** (1 / ratio**2)), SHARPEST_GAIN), shape)


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


def gaussian_taps(positions: Floats, sigma: float, radius: int) -> tuple[NDArray[np.int64], Floats]:
    """Index of the first pixel that a Gaussian reads at each position, and the normalised weights (..., 2 ``radius``).

    ``sigma`` and ``radius`` are in input pixels.
    """
    below = np.floor(positions)
    distances = np.arange(-radius + 1, radius + 1) - (positions - below)[..., None]
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    return below.astype(np.int64) - radius + 1, weights / weights.sum(axis=-1, keepdims=True)


def blur_taps(
    positions: Floats, ratio: int, gain: float | Floats, shape: float | Floats, radius: int
) -> tuple[NDArray[np.int64], Floats]:
    """Index of the first pixel that the blur of an MTF reads at each position, and the normalised weights.

    Args:
        positions: Where on the PAN grid, PAN pixels.
        ratio: PAN pixels per MS pixel.
        gain: Of the ``Mtf``; broadcasts against ``positions``.
        shape: Of the ``Mtf``; broadcasts against ``positions``.
        radius: PAN pixels read on each side.

    Returns:
        As ``positions``, and with an axis of 2 ``radius`` more.
    """
    below = np.floor(positions)
    distances = np.arange(-radius + 1, radius + 1) - (positions - below)[..., None]
    weights = spread(distances / ratio, np.asarray(gain)[..., None], np.asarray(shape)[..., None])
    return below.astype(np.int64) - radius + 1, weights / weights.sum(axis=-1, keepdims=True)


def spread(places: Floats, gain: Floats, shape: Floats) -> Floats:
    """How an MTF spreads a line: its Fourier transform at ``places``, MS pixels from the line, up to a factor.

    ``gain`` and ``shape`` broadcast against ``places``. A Gaussian's is a Gaussian. Any other's is summed up over
    frequencies at which there is a response, and led to zero at ``SHAPED_RADIUS_MS_PX`` by a cosine.
    """
    gaussian: Floats = np.exp((np.pi * places) ** 2 / (4 * np.log(gain)))
    if (shape == GAUSSIAN).all():
        return gaussian
    nodes, steps = _frequencies()
    last = 0.5 * (_LEAST_RESPONSE / np.log(gain)) ** (1 / shape)  # cycles per MS pixel
    response = np.exp(_LEAST_RESPONSE * nodes ** shape[..., None]) * steps
    summed = (response * np.cos(2 * np.pi * (last * places)[..., None] * nodes)).sum(axis=-1)
    outside = np.clip((np.abs(places) / SHAPED_RADIUS_MS_PX - _TAPER_FROM) / (1 - _TAPER_FROM), 0, 1)
    return np.where(shape == GAUSSIAN, gaussian, summed * np.cos(np.pi / 2 * outside) ** 2)


@lru_cache(maxsize=1)
def _frequencies() -> tuple[Floats, Floats]:
    """Places and weights of Gauss and Legendre's quadrature between 0 and 1."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (nodes + 1) / 2, weights / 2


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


@lru_cache(maxsize=512)
def degrading_matrix(n_ms: int, n_pan: int, ratio: int, phase: float, mtf: Mtf | float) -> csr_array:
    """Weights that blur ``n_pan`` PAN pixels by a sensor's MTF and sample them where the MS pixels are centred.

    The support is that of ``mtf_radius``; beyond the border pixels repeat.
    """
    gain, shape = Mtf.of(mtf)
    first, weights = blur_taps(np.array(phase), ratio, gain, shape, mtf_radius(mtf, ratio))
    return _matrix(first + ratio * np.arange(n_ms), np.broadcast_to(weights, (n_ms, len(weights))), n_pan)


@lru_cache(maxsize=64)
def blurring_matrix(n: int, ratio: int, mtf: Mtf | float) -> csr_array:
    """Weights that blur ``n`` PAN pixels by a sensor's MTF; support and border as in ``degrading_matrix``."""
    gain, shape = Mtf.of(mtf)
    first, weights = blur_taps(np.array(0.0), ratio, gain, shape, mtf_radius(mtf, ratio))
    return _matrix(first + np.arange(n), np.broadcast_to(weights, (n, len(weights))), n)


def apply_yx(matrix_y: csr_array, matrix_x: csr_array, image: Floats) -> Floats:
    """Resample ``image`` (y, x) along both axes; the result is float64 (rows of ``matrix_y``, rows of ``matrix_x``)."""
    return np.asarray((matrix_x @ (matrix_y @ image).T).T)


def upsample(
    ms_band: Floats,
    shape_yx: Sequence[int],
    ratio: int,
    phase_yx: tuple[float, float],
    part: tuple[slice, slice] = (slice(None), slice(None)),
) -> Floats:
    """Part of one MS band (y, x) brought onto a PAN grid of ``shape_yx`` by cubic convolution at the given phase."""
    matrix_y, matrix_x = (
        upsampling_matrix(n_pan, n_ms, ratio, phase)[inner]
        for n_pan, n_ms, phase, inner in zip(shape_yx, ms_band.shape, phase_yx, part, strict=True)
    )
    return apply_yx(matrix_y, matrix_x, ms_band)


def degrade(
    image: Floats, ms_shape_yx: Sequence[int], ratio: int, phase_yx: tuple[float, float], mtf: Mtf | float
) -> Floats:
    """One PAN-grid image (y, x) as a sensor with this MTF would have sampled it on the MS grid."""
    matrix_y = degrading_matrix(ms_shape_yx[0], image.shape[0], ratio, phase_yx[0], mtf)
    matrix_x = degrading_matrix(ms_shape_yx[1], image.shape[1], ratio, phase_yx[1], mtf)
    return apply_yx(matrix_y, matrix_x, image)
