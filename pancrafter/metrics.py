"""Quality indices of sharpened images, in two families that must not be mixed.

The *benchmark* indices (``hqnr``, ``d_lambda_khan``, ``d_s`` and everything that compares with a reference) follow the
conventions under which published tables were made, with all their peculiarities: circular borders, an interpolator that
places MS pixel i at PAN index 4i + 2, image sides cut into blocks. The *production* indices (``consistency``,
``hqnr_production_sums``) measure the same ideas on real scenes: explicit phase and shift per band, ratio 2, 3 or 4,
invalid pixels left out. Figures of the two families are not comparable with each other.

Arrays are (band, y, x) or (y, x) in DN. Values that are sums over pixels or blocks add up over windows, so a scene of
any size can be measured piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array

from pancrafter import resample
from pancrafter.errors import GridMismatchError, InvalidSceneError
from pancrafter.resample import Mtf
from pancrafter.types import Record, Sums

Pixels = NDArray[np.integer | np.floating]
Float64s = NDArray[np.float64]
Mask = NDArray[np.bool_]
PhaseYX = tuple[float, float]

BLOCK_PX = 32
"""Side of the blocks of Q2n and UQI in the benchmark protocol."""

MTF_TAPS = 41
"""Side of the benchmark's MTF kernels, PAN pixels."""

MTF_KAISER_BETA = 0.5
"""Shape of the window that tapers the benchmark's MTF kernels."""

HALF_BAND_23 = (
    0.5,
    0.305334091185,
    0.0,
    -0.072698593239,
    0.0,
    0.021809577942,
    0.0,
    -0.005192756653,
    0.0,
    0.000807762146,
    0.0,
    -0.000060081482,
)
"""Centre and right half of the symmetric 23-tap half-band low-pass that doubles the sampling rate; sums to 1.

Aiazzi et al. (2002), "Context-driven fusion of high spatial and spectral resolution images based on oversampled
multiresolution analysis".
"""

_UINT16_MAX = float(np.iinfo(np.uint16).max)


# --- Errors against a reference -----------------------------------------------------------------------------------


class ErrorSums(Sums):
    """Sums over pixels from which ERGAS and SAM follow; those of disjoint windows add up to those of the scene."""

    pixels: int
    squared_error: tuple[float, ...]
    reference: tuple[float, ...]
    angle_deg: float
    angles: int

    def without_empty_bands(self) -> ErrorSums:
        """The same without bands whose reference is 0 everywhere, of which no share can be taken, unless all are."""
        kept = [band for band, total in enumerate(self.reference) if total] or range(len(self.reference))
        errors, reference = (tuple(sums[band] for band in kept) for sums in (self.squared_error, self.reference))
        return self.model_copy(update={"squared_error": errors, "reference": reference})

    def ergas(self, ratio: float) -> float:
        """ERGAS as in ``ergas``.

        Raises:
            InvalidSceneError: No pixel was counted, or a reference band has mean 0.
        """
        if self.pixels == 0:
            raise InvalidSceneError("ERGAS of no pixels at all: 0 valid pixels, expected 1 or more; check the mask")
        means = np.array(self.reference) / self.pixels
        if not means.all():
            empty = ", ".join(str(band) for band in np.flatnonzero(means == 0))
            raise InvalidSceneError(f"ERGAS divides by band means; the reference mean of band index {empty} is 0")
        relative = np.array(self.squared_error) / self.pixels / means**2
        return float(100 / ratio * np.sqrt(relative.mean()))

    def sam_deg(self) -> float:
        """SAM as in ``sam_deg``.

        Raises:
            InvalidSceneError: No pixel has a spectrum other than zero on both sides.
        """
        if self.angles == 0:
            raise InvalidSceneError("SAM of no pixels at all: 0 valid non-zero spectra, expected 1 or more")
        return self.angle_deg / self.angles


def error_sums(reference: Pixels, test: Pixels, valid: Mask | None = None) -> ErrorSums:
    """Sums for ERGAS and SAM of two (band, y, x) images over the pixels where ``valid`` (y, x) is true."""
    _require_same_shape(reference, test)
    keep = slice(None) if valid is None else valid.ravel()
    x = reference.reshape(len(reference), -1)[:, keep].astype(np.float64)
    y = test.reshape(len(test), -1)[:, keep].astype(np.float64)
    norms = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    seen = norms != 0
    cosines = np.clip((x * y).sum(axis=0)[seen] / norms[seen], -1, 1)
    return ErrorSums(
        pixels=x.shape[1],
        squared_error=tuple(((x - y) ** 2).sum(axis=1).tolist()),
        reference=tuple(x.sum(axis=1).tolist()),
        angle_deg=float(np.degrees(np.arccos(cosines)).sum()),
        angles=int(seen.sum()),
    )


def ergas(reference: Pixels, test: Pixels, ratio: float, valid: Mask | None = None) -> float:
    """Relative global error, 0 (perfect) upwards: 100/ratio * sqrt(mean over bands of MSE_b / mean_b^2).

    ``mean_b`` is taken from the reference. Wald (2000), "Quality of high resolution synthesised images".

    Raises:
        GridMismatchError: The images differ in shape.
        InvalidSceneError: No valid pixel, or a reference band has mean 0.
    """
    return error_sums(reference, test, valid).ergas(ratio)


def sam_deg(reference: Pixels, test: Pixels, valid: Mask | None = None) -> float:
    """Mean angle between spectra in degrees, 0 to 180, over pixels where both spectra differ from zero.

    Yuhas, Goetz and Boardman (1992), "Discrimination among semi-arid landscape endmembers using the spectral angle
    mapper algorithm".
    """
    return error_sums(reference, test, valid).sam_deg()


def psnr(reference: Pixels, test: Pixels, max_dn: float) -> float:
    """Peak signal-to-noise ratio in dB over all bands jointly (one MSE); infinite for identical images."""
    _require_same_shape(reference, test)
    mse = float(np.mean((reference.astype(np.float64) - test) ** 2))
    return float("inf") if mse == 0 else float(10 * np.log10(max_dn**2 / mse))


def ssim(reference: Pixels, test: Pixels, max_dn: float) -> float:
    """Structural similarity, at most 1: Gaussian 11 x 11 windows (sigma 1.5) that fit inside, averaged over bands.

    Population variances, K1 0.01, K2 0.03, dynamic range ``max_dn``. Wang et al. (2004), "Image quality assessment:
    from error visibility to structural similarity", eq. 13.

    Raises:
        GridMismatchError: The images differ in shape or have a side below 11.
    """
    _require_same_shape(reference, test)
    if min(reference.shape[1:]) < 11:
        raise GridMismatchError(f"SSIM of {reference.shape[1:]} pixels: its windows need at least 11 x 11")
    x, y = reference.astype(np.float64), test.astype(np.float64)
    mean_x, mean_y = _gaussian_11(x), _gaussian_11(y)
    var_x = _gaussian_11(x * x) - mean_x**2
    var_y = _gaussian_11(y * y) - mean_y**2
    cov = _gaussian_11(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * max_dn) ** 2, (0.03 * max_dn) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def scc(reference: Pixels, test: Pixels) -> float:
    """Spatial correlation, 0 to 1: cosine similarity of Sobel magnitudes over all pixels and bands at once.

    The outermost pixels are removed first and the gradients then see zeros beyond the border; no mean is removed. Two
    images without any gradient are alike (1); an image without one is like no other (0). Other definitions (Laplacian,
    Pearson) read about 0.1 lower and are not comparable.
    """
    _require_same_shape(reference, test)
    x, y = _sobel_magnitude(reference), _sobel_magnitude(test)
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    if norm == 0:
        return 0.0 if x.any() or y.any() else 1.0
    return float((x * y).sum() / norm)


def _gaussian_11(image: Float64s) -> Float64s:
    blurred: Float64s = ndimage.gaussian_filter(image, sigma=(0, 1.5, 1.5), radius=(0, 5, 5))
    return blurred[:, 5:-5, 5:-5]


def _sobel_magnitude(image: Pixels) -> Float64s:
    inner = image[:, 1:-1, 1:-1].astype(np.float64)
    return np.hypot(_sobel(inner, along=1, across=2), _sobel(inner, along=2, across=1))


def _sobel(image: Float64s, *, along: int, across: int) -> Float64s:
    # scipy's own sobel would smooth across bands too
    smooth = ndimage.correlate1d(image, [1.0, 2.0, 1.0], axis=across, mode="constant")
    gradient: Float64s = ndimage.correlate1d(smooth, [-1.0, 0.0, 1.0], axis=along, mode="constant")
    return gradient


# --- Q2n and UQI ----------------------------------------------------------------------------------------------------


def q2n(reference: Pixels, test: Pixels) -> float:
    """Hypercomplex quality index of two (band, y, x) images in DN, 0 to 1 (1: identical); Q4 and Q8 among others.

    Mean of ``q2n_blocks``. Alparone et al. (2004), "A global quality measurement of pan-sharpened multispectral
    imagery"; Garzelli and Nencini (2009), "Hypercomplex quality assessment of multi/hyperspectral images".
    """
    return float(q2n_blocks(reference, test).mean())


def q2n_blocks(reference: Pixels, test: Pixels) -> Float64s:
    """Q2n of every block, (block row, block column).

    Sides that are no multiple of ``BLOCK_PX`` are mirrored to one; DN are rounded to uint16 with saturation; bands are
    filled up with zeros to a power of two. Within a block both images are standardised by the reference's mean and
    deviation, then bias, contrast and hypercomplex covariance multiply to one modulus.

    Raises:
        GridMismatchError: The images differ in shape.
    """
    _require_same_shape(reference, test)
    height = reference.shape[1]
    mirrored = np.pad(np.arange(height), (0, -height % BLOCK_PX), mode="symmetric")
    block_rows = []
    for top in range(0, height, BLOCK_PX):
        # by a slice where it can be: indices would copy the strip, slowly where rows do not lie one after the other
        rows = slice(top, top + BLOCK_PX) if top + BLOCK_PX <= height else mirrored[top:]
        block_rows.append(_q2n_of_blocks(*(_dn16_blocks(image[:, rows]) for image in (reference, test))))
    return np.stack(block_rows)


def _dn16_blocks(strip: Pixels) -> Float64s:
    """One row of blocks as (block, band, pixel), bands filled up with zeros to a power of two."""
    dn = _blocks(np.clip(np.rint(strip.astype(np.float64)), 0, _UINT16_MAX))[:, 0].transpose(1, 0, 2)
    missing = (1 << (dn.shape[1] - 1).bit_length()) - dn.shape[1]
    return np.pad(dn, ((0, 0), (0, missing), (0, 0))) if missing else dn


def _q2n_of_blocks(x: Float64s, y: Float64s) -> Float64s:
    """Q2n of each block; ``x`` (reference) and ``y`` are (block, component, pixel).

    The hypercomplex product is bilinear, so the mean product of centred pixels follows from the components' covariance
    matrix and the multiplication table: no product per pixel is needed, nor standardised pixels.
    """
    n_pixels = x.shape[2]
    mean_x, mean_y = x.mean(axis=2), y.mean(axis=2)
    x = x - mean_x[:, :, None]
    y = y - mean_y[:, :, None]
    unbias = n_pixels / (n_pixels - 1)
    squares_x, squares_y = (unbias * np.einsum("bcp,bcp->bc", image, image) / n_pixels for image in (x, y))
    # both standardised by the reference: x - mean over deviation, plus 1; y as it is where the reference's mean is 0
    deviation = np.sqrt(squares_x)
    deviation[deviation == 0] = np.finfo(np.float64).eps
    as_it_is = mean_x == 0
    scale_y = np.where(as_it_is, 1, 1 / deviation)
    m1, m2 = np.ones_like(mean_x), np.where(as_it_is, mean_y, (mean_y - mean_x) / deviation) + 1
    variances = (squares_x / deviation**2 + squares_y * scale_y**2).sum(axis=1)
    conjugate = np.where(np.arange(x.shape[1]) == 0, 1.0, -1.0)
    m2 *= conjugate
    scale_y *= conjugate
    components = unbias / n_pixels * (x @ y.transpose(0, 2, 1)) / deviation[:, :, None] * scale_y[:, None]
    covariance = np.einsum("kij,bij->bk", hypercomplex_table(x.shape[1]), components, optimize=True)
    norm1, norm2 = np.linalg.norm(m1, axis=1), np.linalg.norm(m2, axis=1)
    bias = 2 * norm1 * norm2 / (norm1**2 + norm2**2)
    flat = variances == 0
    contrast = 2 * np.linalg.norm(covariance, axis=1) / np.where(flat, 1, variances)
    result: Float64s = bias * np.where(flat, 1, contrast)
    return result


@lru_cache(maxsize=16)
def hypercomplex_table(n: int) -> Float64s:
    """Multiplication table T with (u v)_k = sum over i, j of T[k, i, j] u_i v_j, for ``n`` = a power of two.

    Cayley-Dickson doubling: with u = (a, b), v = (c, d) and * the conjugate, u v = (a c - d* b, a* d* + c b*).
    """
    if n == 1:
        return np.ones((1, 1, 1))
    half = n // 2
    inner = hypercomplex_table(half)
    conjugate = np.where(np.arange(half) == 0, 1.0, -1.0)
    swapped = inner.transpose(0, 2, 1)
    table = np.zeros((n, n, n))
    table[:half, :half, :half] = inner
    table[:half, half:, half:] = -swapped * conjugate[None, None, :]
    table[half:, :half, half:] = inner * conjugate[None, :, None] * conjugate[None, None, :]
    table[half:, half:, :half] = swapped * conjugate[None, :, None]
    table.setflags(write=False)
    return table


def uqi_blocks(x: Pixels, y: Pixels) -> Float64s:
    """Universal quality index of every block of two (y, x) images, -1 to 1, as (block row, block column).

    4 cov mean_x mean_y / ((var_x + var_y)(mean_x^2 + mean_y^2)); where both blocks are flat, or both have mean 0, that
    factor is 1. Sides that are no multiple of ``BLOCK_PX`` are mirrored to one. Wang and Bovik (2002), "A universal
    image quality index".
    """
    return _uqi(_centred_blocks(x), _centred_blocks(y))


class _CentredBlocks(NamedTuple):
    """The blocks of a (y, x) image: their means and variances, and the pixels less the mean."""

    mean: Float64s
    """(block row, block column)."""
    variance: Float64s
    """(block row, block column)."""
    rest: Float64s
    """(block row, block column, pixel)."""

    def covariance(self, other: _CentredBlocks) -> Float64s:
        """With the same blocks of another image, (block row, block column)."""
        return np.asarray(np.einsum("yxp,yxp->yx", self.rest, other.rest) / self.rest.shape[2])


def _centred_blocks(image: Pixels) -> _CentredBlocks:
    """Of a flat block nothing is left, not what rounding made of it on its way: that would look like structure."""
    rest = _blocks(image[None].astype(np.float64))[0]
    mean = rest.mean(axis=2)
    rest -= mean[:, :, None]
    variance = np.einsum("yxp,yxp->yx", rest, rest) / rest.shape[2]
    flat = variance <= (_FLAT * mean) ** 2
    variance[flat] = rest[flat] = 0
    return _CentredBlocks(mean, variance, rest)


def _uqi(a: _CentredBlocks, b: _CentredBlocks) -> Float64s:
    spread, level = a.variance + b.variance, a.mean**2 + b.mean**2
    contrast = np.where(spread == 0, 1, 2 * a.covariance(b) / np.where(spread == 0, 1, spread))
    result: Float64s = contrast * np.where(level == 0, 1, 2 * a.mean * b.mean / np.where(level == 0, 1, level))
    return result


def _blocks(image: Float64s) -> Float64s:
    """(band, y, x) cut into (band, block row, block column, pixel), right and bottom mirrored (edge pixel included)."""
    grow_y, grow_x = (-side % BLOCK_PX for side in image.shape[1:])
    full = np.pad(image, ((0, 0), (0, grow_y), (0, grow_x)), mode="symmetric") if grow_y or grow_x else image
    rows, columns = (side // BLOCK_PX for side in full.shape[1:])
    cut = full.reshape(len(full), rows, BLOCK_PX, columns, BLOCK_PX).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(full), rows, columns, BLOCK_PX**2)


# --- Filters of the benchmark protocol ------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def mtf_kernel(gain: float, ratio: int) -> Float64s:
    """The benchmark's low-pass kernel (41 x 41) for an MTF of ``gain`` at the MS Nyquist frequency.

    A Gaussian frequency response sampled on the tap grid, transformed back and tapered by a circularly rotated Kaiser
    window. It is deliberately not normalised, and its gain at Nyquist is a little below the nominal one (0.283 for
    0.30), because published figures were computed this way. ``resample.degrade`` has the exact Gaussian.
    """
    half = MTF_TAPS // 2
    alpha = np.sqrt((half / ratio) ** 2 / (-2 * np.log(gain)))
    taps = np.arange(-half, half + 1)
    radius = np.hypot(taps[:, None], taps[None, :])
    response = np.exp(-0.5 * (radius / alpha) ** 2)
    kernel = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(response))).real
    window = np.interp(radius, taps[half:], np.kaiser(MTF_TAPS, MTF_KAISER_BETA)[half:], right=0.0)
    tapered: Float64s = kernel * window
    tapered.setflags(write=False)
    return tapered


def mtf_blur(image: Pixels, kernel: Float64s) -> Float64s:
    """One band (y, x) filtered by a benchmark kernel; beyond the border pixels repeat."""
    from scipy.signal import oaconvolve  # takes 0.3 s to import, and only HQNR needs it

    half = kernel.shape[0] // 2
    blurred: Float64s = oaconvolve(np.pad(image.astype(np.float64), half, mode="edge"), kernel, mode="valid")
    return blurred


def poly_upsample(ms: Pixels, ratio: int) -> Float64s:
    """(band, y, x) brought to ``ratio`` times the sides by the benchmark's 23-tap half-band filter, circular border.

    MS pixel i lands on PAN index ``ratio * i + ratio / 2``: half a PAN pixel later than edge-aligned pixels really lie.

    Raises:
        GridMismatchError: ``ratio`` is not 2, 4, 8, ...
    """
    if ratio < 2 or ratio & (ratio - 1):
        raise GridMismatchError(
            f"the benchmark's interpolator doubles the size per stage: ratio is {ratio}, expected "
            "a power of two; use the production indices for other ratios"
        )
    image = ms.astype(np.float64)
    for stage in range(ratio.bit_length() - 1):
        image = _double(_double(image, 1, first=int(stage == 0)), 2, first=int(stage == 0))
    return image


def _double(image: Float64s, axis: int, *, first: int) -> Float64s:
    shape = list(image.shape)
    shape[axis] *= 2
    spread = np.zeros(shape)
    spread[tuple(slice(first, None, 2) if a == axis else slice(None) for a in range(image.ndim))] = image
    kernel = 2 * np.array(HALF_BAND_23[:0:-1] + HALF_BAND_23)
    doubled: Float64s = ndimage.correlate1d(spread, kernel, axis=axis, mode="wrap")
    return doubled


@lru_cache(maxsize=64)
def _antialiased_matrix(n_in: int, ratio: int) -> csr_array:
    """Bicubic reduction (Keys, a = -0.5, stretched by ``ratio`` against aliasing), pixel corners aligned, mirrored."""
    centres = ratio * np.arange(n_in // ratio) + (ratio - 1) / 2
    taps = np.floor(centres).astype(np.int64)[:, None] + np.arange(-2 * ratio + 1, 2 * ratio + 1)
    x = np.abs(taps - centres[:, None]) / ratio
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    folded = taps % (2 * n_in)
    columns = np.where(folded < n_in, folded, 2 * n_in - 1 - folded)
    rows = np.repeat(np.arange(len(centres)), taps.shape[1])
    return csr_array((weights.ravel(), (rows, columns.ravel())), shape=(len(centres), n_in))


def reduce_bicubic(image: Pixels, ratio: int) -> Float64s:
    """One image (y, x) at 1/``ratio`` of its size by antialiased bicubic reduction, as the benchmark reduces PAN."""
    matrix_y, matrix_x = (_antialiased_matrix(side, ratio) for side in image.shape)
    reduced: Float64s = resample.apply_yx(matrix_y, matrix_x, image.astype(np.float64)).astype(np.float64)
    return reduced


# --- Quality without a reference ------------------------------------------------------------------------------------


_FLAT = 1e-10
"""Deviation, over the mean, up to which a block is flat but for rounding."""

LEAST_WEIGHT = 0.01
"""Least weight of a block in HQNR by structure, so that a scene without any has figures too."""


class HqnrScores(Record):
    """Quality without a reference: spectral distortion, spatial distortion and their joint index, each 0 to 1."""

    d_lambda: float
    d_s: float

    @property
    def hqnr(self) -> float:
        """Hybrid quality with no reference, (1 - d_lambda)(1 - d_s); 1 is best."""
        return (1 - self.d_lambda) * (1 - self.d_s)


class BlockSums(Sums):
    """Sums over blocks from which d_lambda and d_s follow; those of disjoint windows add up to those of the scene.

    ``uqi_sharpened`` compares each sharpened band with PAN, ``uqi_ms`` each up-sampled MS band with the low-pass PAN.
    Each block counts by its weight; ``weight`` is their sum, the number of blocks where they are not weighted.
    """

    blocks: int
    weight: float
    q2n: float
    uqi_sharpened: tuple[float, ...]
    uqi_ms: tuple[float, ...]

    def scores(self) -> HqnrScores:
        """The indices of everything summed so far.

        Raises:
            InvalidSceneError: No block was counted.
        """
        if self.blocks == 0:
            raise InvalidSceneError(
                f"no complete {BLOCK_PX} px block without an invalid pixel; quality needs 1 or more"
            )
        differences = np.subtract(self.uqi_sharpened, self.uqi_ms) / self.weight
        return HqnrScores(d_lambda=1 - self.q2n / self.weight, d_s=float(np.abs(differences).mean()))


def d_lambda_khan(sharpened: Pixels, ms: Pixels, ratio: int, mtf_gains: Sequence[float]) -> float:
    """Spectral distortion of the benchmark, 0 to 1: 1 - Q2n(up-sampled MS, MTF-filtered sharpened image).

    Both at PAN size, nothing is decimated. Khan et al. (2009), "Pansharpening quality assessment using the modulation
    transfer functions of instruments".
    """
    return 1 - q2n(poly_upsample(ms, ratio), _mtf_blurred(sharpened, ratio, mtf_gains))


def d_s(sharpened: Pixels, pan: Pixels, ms: Pixels, ratio: int) -> float:
    """Spatial distortion of the benchmark, 0 to 1: how far block UQI with PAN changed from low to high resolution.

    The low-resolution PAN is reduced bicubically and brought back by ``poly_upsample``, which leaves it half a pixel
    off PAN; published figures contain that. Alparone et al. (2008), "Multispectral and panchromatic data fusion
    assessment without reference", with exponent 1.
    """
    lms, pan_low = poly_upsample(ms, ratio), poly_upsample(reduce_bicubic(pan, ratio)[None], ratio)[0]
    high = [uqi_blocks(band, pan).mean() for band in sharpened]
    low = [uqi_blocks(band, pan_low).mean() for band in lms]
    return float(np.abs(np.subtract(high, low)).mean())


def hqnr(sharpened: Pixels, pan: Pixels, ms: Pixels, ratio: int, mtf_gains: Sequence[float]) -> HqnrScores:
    """Benchmark quality at full resolution, for comparison with published tables.

    Aiazzi et al. (2014), "Full-scale assessment of pansharpening methods and data products".

    Args:
        sharpened: (band, y, x) DN on the PAN grid.
        pan: (y, x) DN.
        ms: (band, y / ratio, x / ratio) DN.
        ratio: 2 or 4.
        mtf_gains: MTF at the MS Nyquist frequency, per band.

    Raises:
        GridMismatchError: Shapes do not fit each other, or ``ratio`` is no power of two.
    """
    _require_pair(sharpened, pan, ms, mtf_gains)
    if pan.shape != (ms.shape[1] * ratio, ms.shape[2] * ratio):
        raise GridMismatchError(f"pan is {pan.shape} px, expected {ratio} times ms {ms.shape[1:]}")
    return HqnrScores(d_lambda=d_lambda_khan(sharpened, ms, ratio, mtf_gains), d_s=d_s(sharpened, pan, ms, ratio))


def _mtf_blurred(sharpened: Pixels, ratio: int, mtf_gains: Sequence[float]) -> Float64s:
    return np.stack([mtf_blur(b, mtf_kernel(gain, ratio)) for b, gain in zip(sharpened, mtf_gains, strict=True)])


# --- Production variants --------------------------------------------------------------------------------------------


def consistency(
    sharpened: Pixels,
    ms: Pixels,
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
    valid: Mask | None = None,
) -> tuple[float, float]:
    """ERGAS and SAM (degrees) of the sharpened image, degraded to the MS grid, against the MS it was made from.

    See ``degraded_pair`` for arguments and errors; both are 0 for an image that explains its MS input perfectly.
    """
    sums = error_sums(*degraded_pair(sharpened, ms, ratio, phases_yx, mtfs, valid))
    return sums.ergas(ratio), sums.sam_deg()


def degraded_pair(
    sharpened: Pixels,
    ms: Pixels,
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
    valid: Mask | None = None,
) -> tuple[Float64s, Float64s, Mask]:
    """MS, the sharpened image degraded to its grid (both (band, y, x) DN), and which pixels (y, x) may be compared.

    Args:
        sharpened: (band, y, x) DN on the PAN grid.
        ms: (band, y, x) DN.
        ratio: MS over PAN pixel size.
        phases_yx: Per band, where MS pixel 0 really lies on the PAN grid (phase plus band shift), PAN pixels.
        mtfs: MTF per band.
        valid: (y, x) of the MS grid. A pixel counts where the blur's whole support is valid; invalid pixels may hold
            anything, NaN too. Pixels whose blur reaches over the image border (``resample.mtf_reach``) do not either.

    Raises:
        GridMismatchError: Numbers of bands or shapes do not fit each other.
    """
    _require_bands(sharpened, ms, phases_yx, mtfs)
    kept = _reliable(sharpened.shape[1:], ms.shape[1:], ratio, phases_yx, mtfs)
    image, wanted = sharpened, ms
    if valid is not None:
        _require_mask(valid, ms.shape[1:], "MS")
        kept &= _eroded(valid, 5 + -(-shift_reach_px(phases_yx, ratio) // ratio))
        image, wanted = (
            np.nan_to_num(pixels) if pixels.dtype.kind == "f" else pixels  # only floats can be NaN
            for pixels in (sharpened, ms)
        )
    bands = zip(image, phases_yx, mtfs, strict=True)
    degraded: Float64s = np.stack(
        [resample.degrade(band.astype(np.float64), ms.shape[1:], ratio, phase, mtf) for band, phase, mtf in bands]
    )
    return wanted.astype(np.float64, copy=False), degraded, kept


def hqnr_production_sums(
    sharpened: Pixels,
    pan: Pixels,
    ms: Pixels,
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
    pan_mtf: Mtf | float,
    valid: Mask | None = None,
    *,
    counted: Mask | None = None,
    by_structure: bool = False,
) -> BlockSums:
    """Block sums behind the quality at full resolution of a real scene, which add up over windows.

    Windows that start at multiples of 32 PAN pixels (and of the ratio) and carry a halo of 64 count the whole scene's
    blocks.

    The indices are those of ``hqnr``, but (1) MS is up-sampled cubically at each band's own phase, so a corrected shift
    is not counted as distortion; (2) the low-resolution PAN is PAN degraded with ``pan_mtf`` at the edge-aligned phase
    and up-sampled again, so it is not displaced; (3) the MTF filter is exact and borders repeat; (4) any
    ratio works; (5) blocks with an invalid pixel are left out, and so are the incomplete ones at the right and bottom
    border. Hence the figures are not comparable with published ones.

    Args:
        sharpened: (band, y, x) DN on the PAN grid.
        pan: (y, x) DN.
        ms: (band, y, x) DN on the MS grid.
        ratio: MS over PAN pixel size.
        phases_yx: Per band, where MS pixel 0 really lies on the PAN grid (phase plus band shift), PAN pixels.
        mtfs: MTF per band.
        pan_mtf: Of the filter that makes the low-resolution PAN.
        valid: (y, x) of the PAN grid: PAN, MS and result all valid. Invalid pixels may hold anything, NaN too; the
            nearest valid ones stand in for them before filtering.
        counted: (y, x) of the PAN grid: the window's core, without its halo. None: everything.
        by_structure: Weight each block by what PAN and MS have in common there (``_shared_structure``). Over calm water
            the indices compare one sensor's noise with another's, and a scene that is half water would look bad
            whatever was made of it. The weights depend on the input alone, so no result can hide behind them.

    Raises:
        GridMismatchError: Numbers of bands or shapes do not fit each other.
    """
    _require_pair(sharpened, pan, ms, mtfs)
    _require_bands(sharpened, ms, phases_yx, mtfs)
    kept = _complete_blocks(pan.shape, valid, counted)
    if not kept.any():
        nothing = (0.0,) * len(ms)
        return BlockSums(blocks=0, weight=0.0, q2n=0.0, uqi_sharpened=nothing, uqi_ms=nothing)
    # Only what the counted blocks hold is resampled; filtering still sees what lies around them.
    inner, kept = _bounds(kept)
    image, high = fill_invalid(sharpened, valid), fill_invalid(pan[None], valid)[0].astype(np.float64)
    low = fill_ms(ms, valid, ratio)
    lms = np.stack(
        [resample.upsample(b, pan.shape, ratio, phase, inner) for b, phase in zip(low, phases_yx, strict=True)]
    )
    blurred = np.stack([_blurred(b, ratio, mtf, inner) for b, mtf in zip(image, mtfs, strict=True)])
    centred = ((ratio - 1) / 2, (ratio - 1) / 2)
    pan_on_ms = resample.degrade(high, ms.shape[1:], ratio, centred, pan_mtf)
    pan_low = resample.upsample(pan_on_ms, pan.shape, ratio, centred, inner)
    # one band at a time: cut into blocks, a band takes as much memory as it does whole
    low_pan, high_pan = _centred_blocks(pan_low), _centred_blocks(high[inner])
    shares, uqi_ms = np.full(kept.shape, LEAST_WEIGHT), []
    for band in lms:
        blocks = _centred_blocks(band)
        np.maximum(shares, _shared_structure(blocks, low_pan), out=shares)
        uqi_ms.append(_uqi(blocks, low_pan))
    weights = kept * (shares if by_structure else 1.0)

    def weighted(index: Float64s) -> float:
        return float((weights * index).sum())

    return BlockSums(
        blocks=int(kept.sum()),
        weight=float(weights.sum()),
        q2n=weighted(q2n_blocks(lms, blurred)),
        uqi_sharpened=tuple(weighted(_uqi(_centred_blocks(b[inner]), high_pan)) for b in image),
        uqi_ms=tuple(map(weighted, uqi_ms)),
    )


def _bounds(kept: Mask) -> tuple[tuple[slice, slice], Mask]:
    """The pixels of the smallest rectangle of blocks that holds all kept ones, and which of its blocks are kept."""
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    first, last = (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)
    y, x = (slice(BLOCK_PX * start, BLOCK_PX * stop) for start, stop in zip(first, last, strict=True))
    return (y, x), kept[first[0] : last[0], first[1] : last[1]]


def _shared_structure(ms: _CentredBlocks, pan: _CentredBlocks) -> Float64s:
    """Share of low-pass PAN's variance that an MS band explains in each block, (block row, column).

    Noise of two sensors shares a few percent by chance.
    """
    energy = ms.variance * pan.variance
    share: Float64s = ms.covariance(pan) ** 2 / np.where(energy == 0, 1, energy)
    return share


def fill_invalid(image: Pixels, valid: Mask | None) -> Pixels:
    """(band, y, x) with every invalid pixel replaced by the nearest valid one; itself without a mask.

    Raises:
        GridMismatchError: The mask has another shape.
        InvalidSceneError: No pixel is valid.
    """
    if valid is None or valid.all():
        return image
    _require_mask(valid, image.shape[1:], "image")
    if not valid.any():
        raise InvalidSceneError(f"none of the {valid.size} pixels is valid; there is nothing to fill the others with")
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    filled: Pixels = image[:, nearest[0], nearest[1]]
    return filled


def fill_ms(ms: Pixels, valid: Mask | None, ratio: int) -> Float64s:
    """MS (band, y, x) in float64 filled like ``fill_invalid``, given ``valid`` on the PAN grid.

    An MS pixel counts as valid where the PAN pixel at its nominal, edge-aligned centre is.
    """
    if valid is None:
        return ms.astype(np.float64)
    centres = (
        np.minimum(ratio * np.arange(n) + ratio // 2, m - 1) for n, m in zip(ms.shape[1:], valid.shape, strict=True)
    )
    return fill_invalid(ms, valid[np.ix_(*centres)]).astype(np.float64)


def _blurred(band: Pixels, ratio: int, mtf: Mtf | float, inner: tuple[slice, slice]) -> NDArray[np.float32]:
    """Part ``inner`` of a band blurred by a sensor's MTF, in the precision that whole DN need."""
    matrix_y, matrix_x = (
        resample.blurring_matrix(side, ratio, mtf)[part].astype(np.float32)
        for side, part in zip(band.shape, inner, strict=True)
    )
    return resample.apply_yx(matrix_y, matrix_x, band.astype(np.float32)).astype(np.float32, copy=False)


def _complete_blocks(shape_yx: tuple[int, ...], *masks: Mask | None) -> Mask:
    """Which whole blocks of an image are true throughout all masks, (block row, block column)."""
    both = np.ones(shape_yx, dtype=np.bool_)
    for mask in masks:
        if mask is not None:
            _require_mask(mask, shape_yx, "PAN")
            both &= mask
    rows, columns = (side // BLOCK_PX for side in shape_yx)
    whole = both[: rows * BLOCK_PX, : columns * BLOCK_PX].reshape(rows, BLOCK_PX, columns, BLOCK_PX)
    return np.asarray(whole.all(axis=(1, 3)))


def common_phase(phases_yx: Sequence[PhaseYX]) -> PhaseYX:
    """Median of the bands' phases: where most bands need no resampling to be compared with each other."""
    y, x = np.median(np.array(phases_yx), axis=0)
    return float(y), float(x)


def shift_reach_px(phases_yx: Sequence[PhaseYX], ratio: int) -> int:
    """Largest distance of a band's pixels from their nominal place, PAN pixels, rounded up."""
    return int(np.ceil(np.abs(np.array(phases_yx) - (ratio - 1) / 2).max()))


def _eroded(valid: Mask, reach: int) -> Mask:
    """Pixels with no invalid pixel within ``reach`` along both axes; what lies beyond the border counts as valid."""
    invalid: Mask = ndimage.maximum_filter(~valid, size=2 * reach + 1, mode="nearest")
    return ~invalid


def _reliable(
    pan_shape: tuple[int, ...],
    ms_shape: tuple[int, ...],
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
) -> Mask:
    """MS pixels (y, x) whose blur (``resample.mtf_reach``) lies inside the PAN image for every band."""
    inside = [np.ones(n, dtype=np.bool_) for n in ms_shape]
    for phase_yx, mtf in zip(phases_yx, mtfs, strict=True):
        reach = resample.mtf_reach(mtf, ratio)
        for axis, phase in enumerate(phase_yx):
            centres = ratio * np.arange(ms_shape[axis]) + phase
            inside[axis] &= (centres - reach >= -0.5) & (centres + reach <= pan_shape[axis] - 0.5)
    return np.logical_and.outer(*inside)


def _require_same_shape(reference: Pixels, test: Pixels) -> None:
    if reference.shape != test.shape:
        raise GridMismatchError(f"test image is {test.shape}, expected the reference's shape {reference.shape}")


def _require_mask(valid: Mask, shape: tuple[int, ...], of: str) -> None:
    if valid.shape != shape:
        raise GridMismatchError(f"validity mask is {valid.shape} px, expected the {of} grid's {shape}")


def _require_pair(sharpened: Pixels, pan: Pixels, ms: Pixels, mtfs: Sequence[Mtf | float]) -> None:
    expected = (len(ms), *pan.shape)
    if sharpened.shape != expected or len(mtfs) != len(ms):
        raise GridMismatchError(
            f"sharpened is {sharpened.shape} with {len(mtfs)} MTFs, expected {expected} (bands of ms, pixels "
            "of pan) and one MTF per band"
        )


def _require_bands(sharpened: Pixels, ms: Pixels, phases_yx: Sequence[PhaseYX], mtfs: Sequence[Mtf | float]) -> None:
    counts = [len(sharpened), len(ms), len(phases_yx), len(mtfs)]
    if len(set(counts)) != 1:
        raise GridMismatchError(f"bands of sharpened, ms, phases and MTFs are {counts}; expected equal numbers")
