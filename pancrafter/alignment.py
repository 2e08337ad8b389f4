"""How far each MS band really lies from its nominal place on the PAN grid, measured from the pixels.

PAN is blurred to MS sharpness, sampled where the MS pixels would be under a trial displacement, high-passed, and
correlated with the bands: all whole-pixel trials first, then Gauss-Newton steps on the best one, which converge to the
maximum of the normalised cross-correlation (NCC). Reading files and applying the shifts is left to others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from pancrafter.resample import GENERIC_MTF_GAIN, mtf_sigma
from pancrafter.types import Record

Image = NDArray[np.float32]
Vector = NDArray[np.float64]

SIGNIFICANT_PX = 0.1
"""Shifts below this are left alone: the estimator is good to 0.02 to 0.05 PAN px, and resampling costs sharpness.
Below an NCC of 0.9 it grows by half of what is missing: bands of Landsat 7 that are known to lie true within 0.1 px
measured up to 0.2 px at an NCC of 0.76."""

MIN_BAND_NCC = 0.5
"""Up to this NCC with PAN a band's own measurement counts for nothing, and the mix of all bands decides."""

TRUSTED_BAND_NCC = 0.8
"""From this NCC with PAN a band's own measurement is followed entirely."""

MIN_MIX_NCC = 0.7
"""Below this even the mix of all bands does not resemble PAN: cloud, noise, or unrelated images."""

MAX_BAND_OFFSET_PX = 2.0
"""Bands of one real scene were measured up to 2 PAN px apart. More than that is not the sensor but what it sees:
clouds and aircraft, which each band meets at another time and angle, so the shift says nothing about the ground."""

MAX_PART_SPREAD_PX = 0.6
"""Largest median disagreement of the parts of one image; averaged over its nine parts that leaves about 0.2 px."""

MAX_WINDOW_SPREAD_PX = 0.35
"""Largest median disagreement of the windows of a scene that still counts as one shift."""

SETTLED_SPREAD_PX = 0.1
"""Median disagreement of a few windows below which the others need not be asked."""

_HIGH_PASS_SIGMA_MS = 2.0
"""Detail that decides: structures larger than about this many MS pixels are removed before correlating."""

_MIN_SAMPLES = 150
_COARSE_SAMPLES = 16_384
_PARTS = 3
_MIN_PARTS = 4
_MIN_PART_SAMPLES = 30
_NEWTON_STEPS = 10
_CONVERGED_PX = 0.002

# Keys' cubic (a = -0.5): per tap the coefficients of 1, t, t^2, t^3; and of its derivative.
_CUBIC = np.array([[0, -0.5, 1, -0.5], [1, 0, -2.5, 1.5], [0, 0.5, 2, -1.5], [0, 0, -0.5, 0.5]])
_CUBIC_SLOPE = np.array([[-0.5, 2, -1.5, 0], [0, -5, 4.5, 0], [0.5, 4, -4.5, 0], [0, -1, 1.5, 0]])


class BandShift(Record):
    """Where the content of one MS band lies on the PAN grid, minus nominal.

    MS pixel ``i`` shows what PAN shows at ``ratio * i + phase + shift``. ``ncc`` is the high-pass NCC there, -1 to 1.
    ``spread_px`` is the median distance of the shifts of the image's parts from ``shift_yx``; None: not measurable.
    ``certain`` says that the shift is trustworthy, ``significant`` that it is also large enough to be worth applying.
    """

    shift_yx: tuple[float, float]
    ncc: float
    certain: bool
    significant: bool
    spread_px: float | None = None

    @property
    def applied_yx(self) -> tuple[float, float]:
        """The shift to correct by: (0, 0) unless it is significant."""
        return self.shift_yx if self.significant else (0.0, 0.0)


NO_SHIFT = BandShift(shift_yx=(0.0, 0.0), ncc=0.0, certain=False, significant=False)
"""What is known where nothing could be measured."""


def estimate_band_shifts(
    pan: ArrayLike,
    ms: ArrayLike,
    ratio: int,
    phase_yx: tuple[float, float],
    *,
    valid: ArrayLike | None = None,
    gain: float = GENERIC_MTF_GAIN,
    max_shift_px: float = 6.0,
) -> tuple[BandShift, ...]:
    """Measure the displacement of every MS band against PAN.

    A band that resembles PAN too little for a measurement of its own (NIR over vegetation, SWIR) takes the shift of the
    linear mix of all bands that resembles PAN best.

    Args:
        pan: ``(y, x)`` PAN DN, without holes.
        ms: ``(band, y, x)`` MS DN of the same area, without holes.
        ratio: MS pixel size over PAN pixel size.
        phase_yx: MS pixel ``i`` is nominally centred at PAN index ``ratio * i + phase``.
        valid: ``(y, x)`` on the MS grid, true where MS and the PAN beneath it were measured; None: everywhere.
        gain: MTF gain of the bands at the MS Nyquist frequency.
        max_shift_px: Largest displacement looked for along each axis, PAN pixels.

    Returns:
        One entry per band; (0, 0) with ``certain`` false where there is too little to go by.
    """
    pan_image, ms_image = np.asarray(pan, np.float32), np.asarray(ms, np.float32)
    usable = _usable(ms_image.shape[1:], valid, ratio, max_shift_px)
    matcher = _prepare(pan_image, ms_image, ratio, phase_yx=phase_yx, usable=usable, gain=gain)
    if matcher is None:
        return (NO_SHIFT,) * len(ms_image)
    mix_start, starts = matcher.coarse(max_shift_px)
    mix = matcher.measure(None, mix_start, max_shift_px)
    bands = [matcher.measure(band, start, max_shift_px) for band, start in enumerate(starts)]
    if _contradict(bands):
        return tuple(_doubted(band) for band in bands)
    return tuple(_choose(band, mix) for band in bands)


def combine_windows(windows: Sequence[Sequence[BandShift]]) -> tuple[BandShift, ...]:
    """One shift per band for a scene: the median over its windows, certain where most windows agree.

    Args:
        windows: Per window, one entry per band; windows of little texture may hold uncertain entries.
    """
    if len(windows) == 1:
        return tuple(windows[0])
    return tuple(_combine(entries) for entries in zip(*windows, strict=True))


def agree(windows: Sequence[Sequence[BandShift]]) -> bool:
    """Whether every band is certain in every window and no window tells another story: more windows would not help."""
    return all(
        all(entry.certain for entry in entries)
        and (spread := _combine(entries).spread_px) is not None
        and spread <= SETTLED_SPREAD_PX
        for entries in zip(*windows, strict=True)
    )


def _combine(entries: Sequence[BandShift]) -> BandShift:
    certain = [entry for entry in entries if entry.certain]
    if not certain:
        return _doubted(max(entries, key=lambda entry: entry.ncc))
    shifts = np.array([entry.shift_yx for entry in certain])
    median = np.median(shifts, axis=0)
    spread = float(np.median(np.hypot(*(shifts - median).T)))
    agreed = spread <= MAX_WINDOW_SPREAD_PX and 2 * len(certain) >= len(entries)
    return _band_shift(median, float(np.median([entry.ncc for entry in certain])), certain=agreed, spread_px=spread)


def _contradict(bands: Sequence[BandShift]) -> bool:
    """Whether bands that each match PAN well do so at places no sensor's bands are apart."""
    trusted = np.array([band.shift_yx for band in bands if band.ncc >= TRUSTED_BAND_NCC])
    if len(trusted) == 0:
        return False
    return bool(np.hypot(*(trusted - np.median(trusted, axis=0)).T).max() > MAX_BAND_OFFSET_PX)


def _doubted(shift: BandShift) -> BandShift:
    return shift.model_copy(update={"certain": False, "significant": False})


def _choose(own: BandShift, mix: BandShift) -> BandShift:
    """The band's own measurement as far as its NCC earns trust, for the rest that of the mix.

    Where a band resembles PAN only partly (0.5 to 0.8), edges of opposite contrast pull its own maximum aside by
    some tenths of a pixel, so the two are blended in proportion.
    """
    trusted = own.certain and own.ncc >= TRUSTED_BAND_NCC
    if trusted or not (mix.certain and mix.ncc > MIN_MIX_NCC):
        return own
    distance = math.dist(own.shift_yx, mix.shift_yx)
    if not own.certain or distance > MAX_BAND_OFFSET_PX:
        return mix
    trust = min(max((own.ncc - MIN_BAND_NCC) / (TRUSTED_BAND_NCC - MIN_BAND_NCC), 0.0), 1.0)
    blended = trust * np.array(own.shift_yx) + (1 - trust) * np.array(mix.shift_yx)
    return _band_shift(blended, own.ncc, certain=True, spread_px=own.spread_px)


def _band_shift(shift_yx: Vector, ncc: float, *, certain: bool, spread_px: float | None) -> BandShift:
    y, x = float(shift_yx[0]), float(shift_yx[1])
    return BandShift(
        shift_yx=(y, x),
        ncc=ncc,
        certain=certain,
        significant=certain and math.hypot(y, x) > SIGNIFICANT_PX + 0.5 * max(0.0, 0.9 - ncc),
        spread_px=spread_px,
    )


class _Samples(NamedTuple):
    """High-passed PAN at the usable MS pixels under one displacement, mean removed, and its slopes per PAN pixel."""

    value: Vector
    slope_y: Vector
    slope_x: Vector


class _Matcher:
    """High-passed PAN that can be sampled at any displacement, and the high-passed bands to compare it with."""

    def __init__(
        self, detail: Image, bands: Vector, usable: NDArray[np.bool_], ratio: int, phase_yx: tuple[float, float]
    ) -> None:
        self._detail = detail
        self._bands = bands
        self._usable = usable
        self._ratio = ratio
        self._phase_yx = phase_yx
        gram = np.einsum("bn,cn->bc", bands, bands)
        # A little ridge keeps the mix defined when bands are copies of each other.
        self._inverse = np.linalg.inv(gram + (1e-6 * np.trace(gram) / len(gram)) * np.eye(len(gram)))
        self._parts = _parts(usable)

    def coarse(self, max_shift_px: float) -> tuple[Vector, list[Vector]]:
        """Best displacement of the mix of all bands, and of each band, to the nearest pixel of PAN.

        A part of the samples is enough for that; PAN is read at whole pixels, so that nothing is interpolated.
        """
        reach = int(max_shift_px)
        rows, cols = np.nonzero(self._usable)
        part = slice(None, None, -(-len(rows) // _COARSE_SAMPLES))
        (nearest_y, rounded_y), (nearest_x, rounded_x) = (
            self._nearest(index[part], axis) for axis, index in enumerate((rows, cols))
        )
        padded = np.pad(self._detail, reach, mode="edge")
        under = (nearest_y + reach) * padded.shape[1] + nearest_x + reach
        bands = self._bands[:, part].astype(np.float32)
        bands -= bands.mean(axis=1, keepdims=True)

        trials = np.arange(-reach, reach + 1)
        mix = np.empty((len(trials), len(trials)))
        each = np.empty((len(bands), len(trials), len(trials)))
        for row, shift_y in enumerate(trials):
            values = padded.ravel()[under + (shift_y * padded.shape[1] + trials)[:, None]]
            values -= values.mean(axis=1, keepdims=True)
            products = np.einsum("bn,kn->bk", bands, values).astype(np.float64)
            energy = np.einsum("kn,kn->k", values, values).astype(np.float64) + np.finfo(float).tiny
            each[:, row] = products / np.sqrt(energy)
            mix[row] = np.einsum("bk,bc,ck->k", products, self._inverse, products) / energy
        rounded = np.array([rounded_y, rounded_x])
        return _argmax_yx(mix, reach) + rounded, [_argmax_yx(surface, reach) + rounded for surface in each]

    def _nearest(self, index: NDArray[np.int64], axis: int) -> tuple[NDArray[np.int64], float]:
        """PAN pixel nearest to the nominal place of MS pixels along an axis, and how far beyond that place it is."""
        phase = self._phase_yx[axis]
        whole = round(phase)
        return (self._ratio * index + whole).clip(0, self._detail.shape[axis] - 1), whole - phase

    def measure(self, band: int | None, start_yx: Vector, max_shift_px: float) -> BandShift:
        """Sub-pixel shift of a band (None: of the best mix), beginning at a whole-pixel one.

        The least-squares fit of value and slopes to the band is stationary exactly where the NCC is.
        """
        shift = start_yx.astype(np.float64)
        samples = self._sample(shift)
        for _ in range(_NEWTON_STEPS):
            step = np.clip(_step(samples, self._target(band, samples)), -1, 1)
            shift = np.clip(shift + step, -max_shift_px - 1, max_shift_px + 1)
            samples = self._sample(shift)
            if np.abs(step).max() < _CONVERGED_PX:
                break
        target = self._target(band, samples)
        ncc = _ncc(samples.value, target)
        spread = self._spread(samples, target)
        inside = bool(np.all(np.abs(shift) <= max_shift_px + 0.5))
        certain = inside and ncc > MIN_BAND_NCC and spread is not None and spread <= MAX_PART_SPREAD_PX
        return _band_shift(shift, ncc, certain=certain, spread_px=spread)

    def _target(self, band: int | None, samples: _Samples) -> Vector:
        if band is not None:
            return np.asarray(self._bands[band])
        weights = self._inverse @ np.einsum("bn,n->b", self._bands, samples.value)
        return np.asarray(np.einsum("b,bn->n", weights, self._bands))

    def _spread(self, samples: _Samples, target: Vector) -> float | None:
        """Median length of the step that each part of the image alone would still take."""
        if len(self._parts) < _MIN_PARTS:
            return None
        steps = [_step(_Samples(*(part_of[part] for part_of in samples)), target[part]) for part in self._parts]
        return float(np.median([np.hypot(*step) for step in steps]))

    def _sample(self, shift_yx: Vector) -> _Samples:
        y, x = float(shift_yx[0]), float(shift_yx[1])
        here = self._rows(y, _CUBIC)
        images = (
            self._columns(here, x, _CUBIC),
            self._columns(self._rows(y, _CUBIC_SLOPE), x, _CUBIC),
            self._columns(here, x, _CUBIC_SLOPE),
        )
        return _Samples(*(self._centred(image) for image in images))

    def _centred(self, image: Image) -> Vector:
        values = image[self._usable].astype(np.float64)
        return np.asarray(values - values.mean())

    def _rows(self, shift_y: float, weights: Vector) -> Image:
        return _take(self._detail, 0, self._usable.shape[0], self._ratio, self._phase_yx[0] + shift_y, weights)

    def _columns(self, strip: Image, shift_x: float, weights: Vector) -> Image:
        return _take(strip, 1, self._usable.shape[1], self._ratio, self._phase_yx[1] + shift_x, weights)


def _prepare(
    pan: Image,
    ms: Image,
    ratio: int,
    *,
    phase_yx: tuple[float, float],
    usable: NDArray[np.bool_],
    gain: float,
) -> _Matcher | None:
    """Blur PAN to MS sharpness and high-pass both; None without enough usable pixels or without any texture."""
    if np.count_nonzero(usable) < _MIN_SAMPLES:
        return None
    bands = np.stack([_high_pass(band, _HIGH_PASS_SIGMA_MS)[usable] for band in ms]).astype(np.float64)
    bands -= bands.mean(axis=1, keepdims=True)
    blurred = ndimage.gaussian_filter(pan, mtf_sigma(gain, ratio), mode="nearest")
    detail = _high_pass(blurred, _HIGH_PASS_SIGMA_MS * ratio)
    if not detail.any() or not bands.any():
        return None
    return _Matcher(detail, bands, usable, ratio, phase_yx)


def _high_pass(image: Image, sigma: float) -> Image:
    return np.asarray(image - ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0), np.float32)


def _usable(shape_yx: tuple[int, int], valid: ArrayLike | None, ratio: int, max_shift_px: float) -> NDArray[np.bool_]:
    """MS pixels whose surroundings, as far as any trial reaches, are inside the image and were measured."""
    margin = min(math.ceil(max_shift_px / ratio) + 1, min(shape_yx) // 8)
    mask = np.ones(shape_yx, bool) if valid is None else np.asarray(valid, bool)
    return np.asarray(ndimage.minimum_filter(mask, 2 * margin + 1, mode="constant", cval=False))


def _parts(usable: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Selections of the usable samples by part of the image: a ``_PARTS`` x ``_PARTS`` split."""
    rows, cols = np.nonzero(usable)
    cell = (rows * _PARTS // usable.shape[0]) * _PARTS + cols * _PARTS // usable.shape[1]
    parts = [cell == index for index in range(_PARTS**2)]
    return [part for part in parts if np.count_nonzero(part) >= _MIN_PART_SAMPLES]


def _take(image: Image, axis: int, count: int, ratio: int, offset: float, weights: Vector) -> Image:
    """Read ``image``, or its slope, along an axis at ``ratio * i + offset``; borders repeat.

    All positions share one fraction, so four slices and four weights do it. ``weights`` are `_CUBIC` or `_CUBIC_SLOPE`.
    """
    first = math.floor(offset)
    t = offset - first
    index = ratio * np.arange(count) + first
    limit = image.shape[axis] - 1
    taps = (
        weight * np.take(image, np.clip(index + tap, 0, limit), axis=axis)
        for tap, weight in zip(range(-1, 3), (weights @ (1, t, t**2, t**3)).astype(np.float32), strict=True)
        if weight
    )
    return np.asarray(sum(taps), np.float32)


def _step(samples: _Samples, target: Vector) -> Vector:
    """Displacement (dy, dx) that makes the samples fit the target better: target = g (value + dy slope_y + ...)."""
    columns = np.stack(samples)
    # einsum, as BLAS would wake a thread per core for these few products and let them spin
    normal, wanted = np.einsum("kn,ln->kl", columns, columns), np.einsum("kn,n->k", columns, target)
    gain, along_y, along_x = np.linalg.lstsq(normal, wanted, rcond=1e-10)[0]
    if gain <= 0:
        return np.full(2, np.inf)
    return np.asarray(np.array([along_y, along_x]) / gain, np.float64)


def _ncc(first: Vector, second: Vector) -> float:
    both = np.stack([first, second])
    (own, shared), (_, other) = np.einsum("kn,ln->kl", both, both)
    return float(shared / (np.sqrt(own * other) + np.finfo(float).tiny))


def _argmax_yx(surface: Vector, reach: int) -> Vector:
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    return np.array([row - reach, col - reach], np.float64)
