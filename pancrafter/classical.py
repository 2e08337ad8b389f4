"""Textbook sharpeners: the baseline the network must beat, and the fallback where it must not be used.

``METHODS`` work on a whole scene (or crop) in memory. ``glp_window`` is the same MTF-GLP with its gains fixed once per
scene, so windows of an archive scene come out as the whole scene would. Every function places each band by its own
phase; a measured PAN-MS shift is corrected by adding it to the phase, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import maximum_filter

from pancrafter import resample
from pancrafter.errors import GridMismatchError, InvalidSceneError, PancrafterError
from pancrafter.metrics import Float64s, Mask, PhaseYX, Pixels, common_phase, fill_invalid, fill_ms
from pancrafter.moments import products
from pancrafter.resample import Mtf, mean_mtf
from pancrafter.types import Record, Sums

Float32s = NDArray[np.float32]

MODULATION_LIMIT = 10.0
"""Largest factor by which a multiplicative method may brighten a pixel; keeps near-zero intensities from exploding."""

FLAT = 1e-9
"""Spread relative to the level below which an image counts as flat: only rounding is left of it."""

HAZE_PERCENTILE = 0.1
"""Share (in %) of darkest pixels passed over when a band's path radiance is read off its darkest pixel."""


@dataclass(frozen=True, eq=False)
class PairInput:
    """PAN and MS of one scene in memory, and how they relate.

    Attributes:
        pan: (y, x) DN.
        ms: (band, y, x) DN.
        ratio: MS over PAN pixel size.
        phases_yx: Per band, where MS pixel 0 really lies on the PAN grid (nominal phase plus band shift), PAN pixels.
        mtfs: MTF per band.
        pan_mtf: MTF of the low-pass that makes the intensity-like PAN of ``gsa`` and ``bt-h``; None: mean of the
            bands'.
        valid: (y, x) of the PAN grid; invalid pixels may hold anything. None: all valid.
        dn_max: Largest DN of the sensor; pixels that reach it count in no fit.
    """

    pan: Pixels
    ms: Pixels
    ratio: int
    phases_yx: tuple[PhaseYX, ...]
    mtfs: tuple[Mtf | float, ...]
    pan_mtf: Mtf | float | None = None
    valid: Mask | None = None
    dn_max: float = math.inf

    def __post_init__(self) -> None:
        _require_fit(self.pan, self.ms, self.ratio, self.phases_yx, self.mtfs)
        if self.valid is not None and self.valid.shape != self.pan.shape:
            raise GridMismatchError(f"validity mask is {self.valid.shape} px, expected pan's {self.pan.shape}")
        if self.valid is not None and not self.valid.any():
            raise InvalidSceneError("no pixel of the pair is valid; there is nothing to sharpen")

    @cached_property
    def counted(self) -> Mask:
        """Pixels that constants are fitted to, (y, x): valid ones below the ceiling, or all valid ones.

        All of them where otherwise no MS pixel would be left, as in a window full of clouds.
        """
        valid = np.ones(self.pan.shape, dtype=np.bool_) if self.valid is None else self.valid
        below: Mask = valid & ~at_ceiling(_pan(self), _ms(self), self.ratio, self.dn_max)
        return below if _aligned_counted(below, self.ms.shape[1:], self.ratio, self.phases_yx).any() else valid


def sharpen(method: str, pair: PairInput) -> Float32s:
    """The pair sharpened by one of ``METHODS``: (band, y, x) DN on the PAN grid, neither rounded nor clipped.

    Raises:
        PancrafterError: There is no such method.
    """
    if method not in METHODS:
        raise PancrafterError(f"no classical method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method](pair)


# --- Methods --------------------------------------------------------------------------------------------------------


def exp(pair: PairInput) -> Float32s:
    """MS up-sampled cubically, without any PAN detail: what every method starts from."""
    return _expand(pair).astype(np.float32)


def brovey(pair: PairInput) -> Float32s:
    """Each band times PAN over the bands' mean, PAN first brought to the mean's level and spread.

    Gillespie, Kahle and Walker (1987), "Color enhancement of highly correlated images II".
    """
    pan, expanded = _pan(pair), _expand(pair)
    intensity = expanded.mean(axis=0)
    matched = _match(pan, _common_low(pair, pan), intensity, pair.counted)
    return (expanded * _modulation(matched, intensity)).astype(np.float32)


def gsa(pair: PairInput) -> Float32s:
    """Adaptive Gram-Schmidt: detail is PAN minus the mix of bands that explains PAN best at MS scale.

    Aiazzi, Baronti and Selva (2007), "Improving component substitution pansharpening through multivariate regression
    of MS + Pan data".
    """
    weights, constant = _intensity_mix(pair, _aligned_ms(_ms(pair), pair.ratio, pair.phases_yx))
    expanded = _expand(pair)
    intensity = np.tensordot(weights, expanded, axes=1) + constant
    counted = pair.counted
    variance = float(intensity[counted].var())
    varies = variance > (FLAT * float(intensity[counted].mean())) ** 2
    gains = [_covariance(band, intensity, counted) / variance if varies else 0.0 for band in expanded]
    return (expanded + np.array(gains)[:, None, None] * (_pan(pair) - intensity)).astype(np.float32)


def bt_h(pair: PairInput) -> Float32s:
    """Brovey with haze correction: bands and intensity are modulated above their path radiance only.

    Lolli et al. (2017), "Haze correction for contrast-based multispectral pansharpening"; path radiance is the
    ``HAZE_PERCENTILE`` of each band, and the intensity is the mix of hazeless bands that explains low-pass PAN best.
    """
    aligned = _aligned_ms(_ms(pair), pair.ratio, pair.phases_yx)
    ok = _aligned_counted(pair.counted, aligned.shape[1:], pair.ratio, pair.phases_yx)
    haze = np.percentile(aligned[:, ok], HAZE_PERCENTILE, axis=1)[:, None, None]
    weights, _ = _intensity_mix(pair, aligned - haze)
    pan, hazeless = _pan(pair), _expand(pair) - haze
    intensity = np.tensordot(weights, hazeless, axes=1)
    matched = _match(pan, _common_low(pair, pan), intensity, pair.counted)
    return (hazeless * _modulation(matched, intensity) + haze).astype(np.float32)


def mtf_glp_hpm(pair: PairInput) -> Float32s:
    """MTF-matched Laplacian pyramid with high-pass modulation: each band times PAN over its own low-pass PAN.

    Aiazzi et al. (2006), "MTF-tailored multiscale fusion of high-resolution MS and Pan imagery"; PAN is first brought
    to each band's level and spread.
    """
    counted, pan = pair.counted, _pan(pair)
    bands = []
    for band, phase, mtf in zip(_expand(pair), pair.phases_yx, pair.mtfs, strict=True):
        low = _low(pan, pair.ms.shape[1:], pair.ratio, phase, mtf)
        matched, matched_low = _match(pan, low, band, counted), _match(low, low, band, counted)
        bands.append(band * _modulation(matched, matched_low))
    return np.stack(bands).astype(np.float32)


def mtf_glp_fs(pair: PairInput) -> Float32s:
    """MTF-matched Laplacian pyramid with full-scale regression gains: ``glp_window`` on the whole scene.

    Vivone, Restaino and Chanussot (2018), "Full scale regression-based injection coefficients for panchromatic
    sharpening".
    """
    return _glp(pair, fit_glp_constants)


def mtf_glp_cbd(pair: PairInput) -> Float32s:
    """MTF-matched Laplacian pyramid with regression gains at MS scale, one per band.

    Alparone et al. (2007), "Comparison of pansharpening algorithms: outcome of the 2006 GRS-S data-fusion contest",
    with one context for the whole scene.
    """
    return _glp(pair, lambda sums: _fit(sums, sums.ms_low, sums.low_low, sums.low))


def _glp(pair: PairInput, fit: Callable[[GlpSums], GlpConstants]) -> Float32s:
    given = _pan(pair), _ms(pair), pair.ratio, pair.phases_yx, pair.mtfs
    return glp_window(*given, fit(glp_sums(*given, pair.counted)))


METHODS: dict[str, Callable[[PairInput], Float32s]] = {
    "exp": exp,
    "brovey": brovey,
    "gsa": gsa,
    "bt-h": bt_h,
    "mtf-glp-hpm": mtf_glp_hpm,
    "mtf-glp-fs": mtf_glp_fs,
    "mtf-glp-cbd": mtf_glp_cbd,
}
"""Every whole-scene method by its name in settings, reports and published items."""


# --- Windowed MTF-GLP -----------------------------------------------------------------------------------------------


class GlpConstants(Record):
    """What ``glp_window`` needs to know about the whole scene: how much PAN detail each band takes."""

    gains: tuple[float, ...]


class GlpSums(Sums):
    """Sums over pixels from which ``GlpConstants`` follow; those of disjoint windows add up to those of the scene.

    Products are sums of pixel products; ``low`` is PAN blurred like the band and brought back to the PAN grid.
    """

    pixels: int
    pan: float
    ms: tuple[float, ...]
    low: tuple[float, ...]
    ms_pan: tuple[float, ...]
    low_pan: tuple[float, ...]
    ms_low: tuple[float, ...]
    low_low: tuple[float, ...]


def glp_halo_px(ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
    """PAN pixels a window must hold around its core for ``glp_window`` to equal the whole scene; a multiple of ratio.

    A PAN pixel draws on low-pass samples up to two MS pixels away, and each of those on five more; a large band shift
    moves the MS pixels themselves and can ask for more.
    """
    phases = np.array(phases_yx)
    needed = max(7.0 * ratio, 2 * ratio + phases.max(), 3 * ratio - phases.min())
    return int(np.ceil(needed / ratio)) * ratio


def glp_sums(
    pan: Pixels,
    ms: Pixels,
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
    counted: Mask | None = None,
) -> GlpSums:
    """Sums of one window (arguments as in ``glp_window``) over the PAN pixels where ``counted`` is true.

    To add up windows without counting pixels twice or seeing their borders, mark halo and invalid pixels false.
    """
    _require_fit(pan, ms, ratio, phases_yx, mtfs)
    keep = np.ones(pan.shape, dtype=np.bool_) if counted is None else counted
    p = pan[keep].astype(np.float64)
    moments = []
    for band, phase, mtf in zip(ms, phases_yx, mtfs, strict=True):
        m = resample.upsample(band.astype(np.float64), pan.shape, ratio, phase)[keep]
        low = _low(pan.astype(np.float64), ms.shape[1:], ratio, phase, mtf)[keep]
        rows = np.stack([m, low, p])
        (_, ms_low, ms_pan), (_, low_low, low_pan), _ = products(rows, rows)
        moments.append((m.sum(), low.sum(), ms_pan, low_pan, ms_low, low_low))
    sum_m, sum_low, ms_pan, low_pan, ms_low, low_low = (tuple(map(float, each)) for each in zip(*moments, strict=True))
    return GlpSums(
        pixels=len(p),
        pan=float(p.sum()),
        ms=sum_m,
        low=sum_low,
        ms_pan=ms_pan,
        low_pan=low_pan,
        ms_low=ms_low,
        low_low=low_low,
    )


def fit_glp_constants(sums: GlpSums) -> GlpConstants:
    """Full-scale gains, cov(MS, PAN) / cov(low-pass PAN, PAN) per band; 0 where PAN holds no structure.

    Raises:
        InvalidSceneError: No pixel was counted.
    """
    return _fit(sums, sums.ms_pan, sums.low_pan, (sums.pan,) * len(sums.ms))


def _fit(
    sums: GlpSums, band_product: tuple[float, ...], low_product: tuple[float, ...], other: tuple[float, ...]
) -> GlpConstants:
    """Gains cov(band, other) / cov(low, other), from the products' sums and the sums of ``other``."""
    if sums.pixels == 0:
        raise InvalidSceneError("injection gains of no pixels at all: 0 valid pixels, expected 1 or more")
    mean_other = np.array(other) / sums.pixels
    band = np.array(band_product) - np.array(sums.ms) * mean_other
    low = np.array(low_product) - np.array(sums.low) * mean_other
    noise = 1e-12 * np.abs(low_product)  # what rounding leaves of a flat image
    gains = np.where(low > noise, band / np.where(low > noise, low, 1), 0.0)
    return GlpConstants(gains=tuple(gains.tolist()))


def glp_window(
    pan: Pixels,
    ms: Pixels,
    ratio: int,
    phases_yx: Sequence[PhaseYX],
    mtfs: Sequence[Mtf | float],
    constants: GlpConstants,
) -> Float32s:
    """MTF-GLP of one window: each band up-sampled plus its gain times PAN minus PAN as the band would have seen it.

    The core of a window with a halo of ``glp_halo_px`` equals the same pixels of the whole scene; a window's first PAN
    row and column must be multiples of ``ratio``, with MS cropped to match. Arguments as in ``PairInput``; invalid
    pixels must have been filled.

    Returns:
        (band, y, x) DN, neither rounded nor clipped.

    Raises:
        GridMismatchError: Numbers of bands or shapes do not fit each other.
    """
    _require_fit(pan, ms, ratio, phases_yx, mtfs)
    if len(constants.gains) != len(ms):
        raise GridMismatchError(f"{len(constants.gains)} injection gains for {len(ms)} bands; fit them on this scene")
    high = pan.astype(np.float64)
    sharpened = np.empty((len(ms), *pan.shape), dtype=np.float32)
    for b, band in enumerate(ms):
        expanded = resample.upsample(band.astype(np.float64), pan.shape, ratio, phases_yx[b])
        detail = high - _low(high, ms.shape[1:], ratio, phases_yx[b], mtfs[b])
        sharpened[b] = expanded + constants.gains[b] * detail
    return sharpened


# --- What the network is told about a scene's bands -----------------------------------------------------------------


class InjectionConstants(Record):
    """How a scene's bands explain its PAN, and what of PAN's detail each band takes: Gram-Schmidt adaptive in numbers.

    The intensity is ``sum(weights * bands) + offset``, in DN of PAN; a band takes ``gains`` times PAN minus intensity.
    """

    weights: tuple[float, ...]
    offset: float
    gains: tuple[float, ...]
    explained: float = Field(
        ge=0, le=1, description="Share of the variance of low-pass PAN that the intensity explains, adjusted R2."
    )


@dataclass(frozen=True, eq=False)
class InjectionSums:
    """Moments of the bands and low-pass PAN at MS scale; those of disjoint windows add up to those of the scene."""

    pixels: int
    first: Float64s
    """(band + 1,) sums of every band and of low-pass PAN."""
    second: Float64s
    """(band + 1, band + 1) sums of their products."""

    def __add__(self, other: InjectionSums) -> InjectionSums:
        return InjectionSums(self.pixels + other.pixels, self.first + other.first, self.second + other.second)


def injection_sums(
    pan: Pixels, ms: Pixels, ratio: int, phases_yx: Sequence[PhaseYX], pan_mtf: Mtf | float, counted: Mask | None = None
) -> InjectionSums:
    """Moments of one window over the MS pixels whose centre is counted (arguments as in ``glp_sums``).

    ``pan_mtf`` is the MTF with which PAN is brought to MS scale. Windows need a halo of seven MS pixels and start at
    multiples of ``ratio``.
    """
    aligned = _aligned_ms(ms, ratio, phases_yx)
    everything = np.ones(pan.shape, dtype=np.bool_) if counted is None else counted
    keep = _aligned_counted(everything, aligned.shape[1:], ratio, phases_yx)
    low = resample.degrade(pan.astype(np.float64), ms.shape[1:], ratio, common_phase(phases_yx), pan_mtf)
    values = np.vstack([aligned[:, keep], low[keep][None]])
    return InjectionSums(int(keep.sum()), values.sum(axis=1), products(values, values))


def fit_injection(sums: InjectionSums) -> InjectionConstants:
    """Least-squares weights of the bands, and regression gains on the intensity they make.

    Aiazzi, Baronti and Selva (2007), see ``gsa``. A scene without any structure gets gains of zero. A trace of ridge
    keeps bands that are copies of each other apart. What is explained allows for the bands explaining something by
    chance (Ezekiel 1930, "Methods of correlation analysis").

    Raises:
        InvalidSceneError: No pixel was counted.
    """
    if sums.pixels == 0:
        raise InvalidSceneError("band weights of no pixels at all: 0 valid pixels, expected 1 or more")
    mean = sums.first / sums.pixels
    covariance = sums.second / sums.pixels - np.outer(mean, mean)
    bands, with_pan = covariance[:-1, :-1], covariance[:-1, -1]
    ridge = 1e-6 * np.trace(bands) / len(bands) + 1e-9
    weights = np.linalg.solve(bands + ridge * np.eye(len(bands)), with_pan)
    variance = float(weights @ bands @ weights)
    gains = bands @ weights / variance if variance > (FLAT * mean[-1]) ** 2 + 1e-9 else np.zeros(len(bands))
    free, total = sums.pixels - len(bands) - 1, covariance[-1, -1]
    unexplained = (1 - weights @ with_pan / total) * (sums.pixels - 1) / free if free > 0 and total > 0 else 1.0
    return InjectionConstants(
        weights=tuple(weights.tolist()),
        offset=float(mean[-1] - weights @ mean[:-1]),
        gains=tuple(gains.tolist()),
        explained=float(np.clip(1 - unexplained, 0, 1)),
    )


FusionMethod = Literal["exp", "brovey", "gsa"]


class BroveyMatch(Record):
    """The linear map that brings PAN to the level and spread of the bands' mean: ``pan * scale + offset``."""

    scale: float
    offset: float


class FusionConstants(Record):
    """What ``exp``, ``brovey`` and ``gsa`` need to know about the whole scene, so that windows come out as it would."""

    method: FusionMethod
    match: BroveyMatch
    injection: InjectionConstants


LEAST_MATCHED_PX = 16
"""MS pixels below which a spread says nothing: PAN is then brought to the level of the bands by a factor alone."""


def fit_brovey_match(sums: InjectionSums) -> BroveyMatch:
    """Level and spread of the bands' mean over those of PAN, both at MS scale."""
    mean = sums.first / sums.pixels
    level, pan = float(mean[:-1].mean()), float(mean[-1])
    if sums.pixels < LEAST_MATCHED_PX:
        scale = level / pan if pan > 0 else 0.0
    else:
        covariance = sums.second / sums.pixels - np.outer(mean, mean)
        spread = float(np.sqrt(max(covariance[-1, -1], 0.0)))
        scale = float(np.sqrt(max(covariance[:-1, :-1].mean(), 0.0))) / spread if spread > FLAT * abs(pan) else 0.0
    return BroveyMatch(scale=scale, offset=level - scale * pan)


# --- Building blocks ------------------------------------------------------------------------------------------------


def _pan(pair: PairInput) -> Float64s:
    pan: Float64s = fill_invalid(pair.pan[None], pair.valid)[0].astype(np.float64)
    return pan


def _ms(pair: PairInput) -> Float64s:
    return fill_ms(pair.ms, pair.valid, pair.ratio)


def at_ceiling(pan: Pixels, ms: Pixels, ratio: int, dn_max: float) -> Mask:
    """Where PAN (y, x) or a band (band, y, x) has reached the sensor's largest DN within one MS pixel.

    There, as over clouds, bands no longer explain PAN. (y, x) on the PAN grid; DN of degraded images are not rounded.
    """
    reached: Mask = pan >= dn_max - 0.5
    on_ms: Mask = np.logical_or.reduce(ms >= dn_max - 0.5)
    if not (reached.any() or on_ms.any()):
        return reached
    rows, cols = (np.minimum(np.arange(n) // ratio, m - 1) for n, m in zip(pan.shape, on_ms.shape, strict=True))
    near: Mask = maximum_filter(reached | on_ms[np.ix_(rows, cols)], 2 * ratio + 1, mode="nearest")
    return near


def _expand(pair: PairInput) -> Float64s:
    """MS brought onto the PAN grid, each band at its own phase."""
    bands = zip(_ms(pair), pair.phases_yx, strict=True)
    return np.stack([resample.upsample(band, pair.pan.shape, pair.ratio, phase) for band, phase in bands])


def _low(pan: Float64s, ms_shape_yx: Sequence[int], ratio: int, phase_yx: PhaseYX, mtf: Mtf | float) -> Float64s:
    """PAN as a band with this phase and MTF would have sampled it, brought back onto the PAN grid."""
    sampled = resample.degrade(pan, ms_shape_yx, ratio, phase_yx, mtf)
    low: Float64s = resample.upsample(sampled, pan.shape, ratio, phase_yx).astype(np.float64)
    return low


def _common_low(pair: PairInput, pan: Float64s) -> Float64s:
    """Low-pass PAN at the bands' common phase, for methods with one intensity."""
    return _low(pan, pair.ms.shape[1:], pair.ratio, common_phase(pair.phases_yx), _pan_mtf(pair))


def _pan_mtf(pair: PairInput) -> Mtf | float:
    return mean_mtf(pair.mtfs) if pair.pan_mtf is None else pair.pan_mtf


def _aligned_ms(ms: Pixels, ratio: int, phases_yx: Sequence[PhaseYX]) -> Float64s:
    """MS on its own scale with every band moved to the common phase; a band that is there already is untouched."""
    common, (n_y, n_x) = common_phase(phases_yx), ms.shape[1:]
    bands = []
    for band, phase in zip(ms, phases_yx, strict=True):
        offsets = [(c - p) / ratio for c, p in zip(common, phase, strict=True)]
        matrix_y = resample.cubic_matrix(n_y, n_y, 1.0, offsets[0])
        matrix_x = resample.cubic_matrix(n_x, n_x, 1.0, offsets[1])
        bands.append(resample.apply_yx(matrix_y, matrix_x, band))
    return np.stack(bands).astype(np.float64)


def _aligned_counted(counted: Mask, ms_shape_yx: tuple[int, ...], ratio: int, phases_yx: Sequence[PhaseYX]) -> Mask:
    """MS pixels whose centre at the common phase is a counted PAN pixel."""
    common = common_phase(phases_yx)
    centres = [np.rint(ratio * np.arange(n) + p).astype(np.int64) for n, p in zip(ms_shape_yx, common, strict=True)]
    inside = [(c >= 0) & (c < n) for c, n in zip(centres, counted.shape, strict=True)]
    clipped = [np.clip(c, 0, n - 1) for c, n in zip(centres, counted.shape, strict=True)]
    aligned: Mask = np.logical_and.outer(*inside) & counted[np.ix_(*clipped)]
    return aligned


def _intensity_mix(pair: PairInput, aligned: Float64s) -> tuple[Float64s, float]:
    """Weights per band and constant with which the bands explain PAN at MS scale (least squares)."""
    shape_yx = aligned.shape[1:]
    pan_low = resample.degrade(_pan(pair), shape_yx, pair.ratio, common_phase(pair.phases_yx), _pan_mtf(pair))
    counted = _aligned_counted(pair.counted, shape_yx, pair.ratio, pair.phases_yx)
    design = np.vstack([aligned[:, counted], np.ones(int(counted.sum()))]).T
    solution: Float64s = np.linalg.lstsq(design, pan_low[counted], rcond=None)[0].astype(np.float64)
    return solution[:-1], float(solution[-1])


def _match(image: Float64s, level: Float64s, target: Float64s, counted: Mask) -> Float64s:
    """``image`` under the linear map that gives ``level`` the mean and deviation of ``target``; its mean if flat."""
    mean, spread = float(level[counted].mean()), float(level[counted].std())
    scale = float(target[counted].std()) / spread if spread > FLAT * abs(mean) else 0.0
    matched: Float64s = (image - mean) * scale + target[counted].mean()
    return matched


def _modulation(numerator: Float64s, denominator: Float64s) -> Float64s:
    """Their quotient between 0 and ``MODULATION_LIMIT``; 1 where the denominator is not positive."""
    positive = denominator > 0
    quotient = np.where(positive, numerator, 1.0) / np.where(positive, denominator, 1.0)
    return np.clip(quotient, 0.0, MODULATION_LIMIT)


def _covariance(a: Float64s, b: Float64s, counted: Mask) -> float:
    x, y = a[counted], b[counted]
    return float(((x - x.mean()) * (y - y.mean())).mean())


def _require_fit(
    pan: Pixels, ms: Pixels, ratio: int, phases_yx: Sequence[PhaseYX], mtfs: Sequence[Mtf | float]
) -> None:
    """Check that a pair's parts fit: bands of everything, and sizes to within one MS pixel (2N - 1 grids exist)."""
    if pan.ndim != 2 or ms.ndim != 3:
        raise GridMismatchError(f"pan has {pan.ndim} axes and ms {ms.ndim}; expected (y, x) and (band, y, x)")
    counts = [len(ms), len(phases_yx), len(mtfs)]
    if len(set(counts)) != 1:
        raise GridMismatchError(f"bands of ms, phases and MTFs are {counts}; expected equal numbers")
    if any(abs(p - ratio * m) > ratio for p, m in zip(pan.shape, ms.shape[1:], strict=True)):
        raise GridMismatchError(
            f"pan is {pan.shape} px and ms {ms.shape[1:]}; expected pan = {ratio} x ms within one ms px"
        )
