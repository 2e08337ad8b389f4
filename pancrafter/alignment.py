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
from scipy import fft, ndimage

from pancrafter.moments import products
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
_COARSE_SAMPLES = 8_192
_PARTS = 3
_MIN_PARTS = 4
_MIN_PART_SAMPLES = 30
_NEIGHBOURS = 2
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
    matcher = _prepare(
        pan_image, ms_image, ratio, phase_yx=phase_yx, usable=usable, gain=gain, max_shift_px=max_shift_px
    )
    if matcher is None:
        return (NO_SHIFT,) * len(ms_image)
    mix_start, starts = matcher.coarse()
    mix = matcher.measure(None, mix_start)
    bands = [matcher.measure(band, start) for band, start in enumerate(starts)]
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


class _Moments(NamedTuple):
    """Sums of products of centred rows over the samples: the neighbours of `_Matcher.moments`, then the bands."""

    whole: Vector
    """(row, row), of all samples."""
    parts: Vector
    """(part, row, row), of those in one part of the image each."""


class _Fit(NamedTuple):
    """What least squares needs to fit value and slopes to a target: sums of products, (3, 3) and (3,), and target's."""

    normal: Vector
    wanted: Vector
    energy: float

    @property
    def step(self) -> Vector:
        """Displacement (dy, dx) that makes the samples fit better: target = g (value + dy slope_y + dx slope_x)."""
        gain, along_y, along_x = np.linalg.lstsq(self.normal, self.wanted, rcond=1e-10)[0]
        if gain <= 0:
            return np.full(2, np.inf)
        return np.asarray(np.array([along_y, along_x]) / gain, np.float64)

    @property
    def ncc(self) -> float:
        """Of value and target."""
        return float(self.wanted[0] / (np.sqrt(self.normal[0, 0] * self.energy) + np.finfo(float).tiny))


class _Matcher:
    """High-passed PAN that can be sampled at any displacement, and the high-passed bands to compare it with.

    Between whole pixels PAN is interpolated by a cubic of four by four neighbours, with the same weights at every
    sample. So sums of products over all samples follow from those of the neighbours, which are taken once for every
    whole pixel that the search comes by.
    """

    def __init__(
        self,
        detail: Image,
        bands: Image,
        usable: NDArray[np.bool_],
        ratio: int,
        *,
        phase_yx: tuple[float, float],
        max_shift_px: float,
    ) -> None:
        cell = _cells(usable)
        order = np.argsort(cell, kind="stable")
        self._bands = bands[:, order]
        self._ends = np.cumsum(np.bincount(cell, minlength=_PARTS**2))
        gram = products(bands, bands)
        # A little ridge keeps the mix defined when bands are copies of each other.
        self._inverse = np.linalg.inv(gram + (1e-6 * np.trace(gram) / len(gram)) * np.eye(len(gram)))
        self._max_shift_px = max_shift_px
        self._limit_px = max_shift_px + 1
        margin = math.ceil(self._limit_px + 0.5) + _NEIGHBOURS  # a trial lies up to half a pixel from a whole one
        padded = np.pad(detail, margin, mode="edge")
        self._detail, self._row = padded.ravel(), padded.shape[1]
        # nearest PAN pixel to the nominal place of each sample, and how far beyond that place it is
        whole_yx = [round(phase) for phase in phase_yx]
        self._rounded_yx = np.subtract(whole_yx, phase_yx)
        y, x = (
            (ratio * index[order] + whole).clip(0, size - 1) + margin
            for index, whole, size in zip(np.nonzero(usable), whole_yx, detail.shape, strict=True)
        )
        self._under = y * self._row + x
        self._known: dict[tuple[int, int], _Moments] = {}

    def coarse(self) -> tuple[Vector, list[Vector]]:
        """Best displacement of the mix of all bands, and of each band, to the nearest pixel of PAN.

        A part of the samples is enough for that; PAN is read at whole pixels, so that nothing is interpolated.
        """
        reach = int(self._max_shift_px)
        part = slice(None, None, -(-len(self._under) // _COARSE_SAMPLES))
        under, bands = self._under[part], self._bands[:, part]
        bands = bands - bands.mean(axis=1, keepdims=True)

        trials = np.arange(-reach, reach + 1)
        mix = np.empty((len(trials), len(trials)))
        each = np.empty((len(bands), len(trials), len(trials)))
        for row, shift_y in enumerate(trials):
            values = self._detail[under + (shift_y * self._row + trials)[:, None]]
            values -= values.mean(axis=1, keepdims=True)
            shared = products(bands, values)
            energy = np.einsum("kn,kn->k", values, values).astype(np.float64) + np.finfo(float).tiny
            each[:, row] = shared / np.sqrt(energy)
            mix[row] = np.einsum("bk,bc,ck->k", shared, self._inverse, shared) / energy
        return (
            _argmax_yx(mix, reach) + self._rounded_yx,
            [_argmax_yx(surface, reach) + self._rounded_yx for surface in each],
        )

    def measure(self, band: int | None, start_yx: Vector) -> BandShift:
        """Sub-pixel shift of a band (None: of the best mix), beginning at a whole-pixel one.

        The least-squares fit of value and slopes to the band is stationary exactly where the NCC is.
        """
        shift = start_yx.astype(np.float64)
        for _ in range(_NEWTON_STEPS):
            step = np.clip(self._fits(band, shift)[0].step, -1, 1)
            shift = np.clip(shift + step, -self._limit_px, self._limit_px)
            if np.abs(step).max() < _CONVERGED_PX:
                break
        whole, *parts = self._fits(band, shift)
        # how far each part of the image alone would still go
        spread = float(np.median([np.hypot(*part.step) for part in parts])) if len(parts) >= _MIN_PARTS else None
        inside = bool(np.all(np.abs(shift) <= self._max_shift_px + 0.5))
        certain = inside and whole.ncc > MIN_BAND_NCC and spread is not None and spread <= MAX_PART_SPREAD_PX
        return _band_shift(shift, whole.ncc, certain=certain, spread_px=spread)

    def _fits(self, band: int | None, shift_yx: Vector) -> list[_Fit]:
        """Of all samples, then of each part, PAN displaced by ``shift_yx``."""
        offset = shift_yx - self._rounded_yx
        centre = np.rint(offset).astype(int)
        moments = self._moments(int(centre[0]), int(centre[1]))
        (at_y, slope_y), (at_x, slope_x) = (_taps(float(t)) for t in offset - centre)
        taps = np.stack([np.outer(at_y, at_x), np.outer(slope_y, at_x), np.outer(at_y, slope_x)]).reshape(3, -1)
        count = taps.shape[1]
        if band is None:
            target = self._inverse @ (moments.whole[count:, :count] @ taps[0])
        else:
            target = np.eye(len(self._bands))[band]
        return [
            _Fit(
                normal=taps @ sums[:count, :count] @ taps.T,
                wanted=taps @ sums[:count, count:] @ target,
                energy=float(target @ sums[count:, count:] @ target),
            )
            for sums in (moments.whole, *moments.parts)
        ]

    def _moments(self, centre_y: int, centre_x: int) -> _Moments:
        """Of the five by five pixels of PAN around each sample displaced by whole pixels, row by row, and the bands."""
        if (centre_y, centre_x) not in self._known:
            near = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
            offsets = ((centre_y + near[:, None]) * self._row + centre_x + near).ravel()
            neighbours = self._detail[self._under + offsets[:, None]]
            rows = np.concatenate([neighbours, self._bands, np.ones((1, len(self._under)), np.float32)])
            starts = [0, *self._ends[:-1]]
            parts = [rows[:, start:end] for start, end in zip(starts, self._ends, strict=True)]
            sums = np.stack([products(part, part) for part in parts])
            # each row less its mean over all samples: the last row holds sums, and its own last entry how many
            centring = np.eye(len(rows))[:-1]
            centring[:, -1] = -sums.sum(axis=0)[:-1, -1] / len(self._under)
            centred = centring @ sums @ centring.T
            large = sums[:, -1, -1] >= _MIN_PART_SAMPLES
            self._known[centre_y, centre_x] = _Moments(centred.sum(axis=0), centred[large])
        return self._known[centre_y, centre_x]


def _prepare(
    pan: Image,
    ms: Image,
    ratio: int,
    *,
    phase_yx: tuple[float, float],
    usable: NDArray[np.bool_],
    gain: float,
    max_shift_px: float,
) -> _Matcher | None:
    """Blur PAN to MS sharpness and high-pass both; None without enough usable pixels or without any texture."""
    if np.count_nonzero(usable) < _MIN_SAMPLES:
        return None
    bands = np.stack([band[usable] for band in _detail(ms, 0.0, _HIGH_PASS_SIGMA_MS)])
    bands -= bands.mean(axis=1, keepdims=True)
    detail = _detail(pan, mtf_sigma(gain, ratio), _HIGH_PASS_SIGMA_MS * ratio)
    if not detail.any() or not bands.any():
        return None
    return _Matcher(detail, bands, usable, ratio, phase_yx=phase_yx, max_shift_px=max_shift_px)


def _detail(image: Image, blur_sigma: float, sigma: float) -> Image:
    """``(..., y, x)`` blurred by one Gaussian, less the same blurred by another; borders repeat, deviations in pixels.

    By the Fourier transform, where a Gaussian of deviation s is exp(-2 pi^2 s^2 f^2): its time does not depend on s.
    A constant does not matter, so one is taken away first, and an image without any texture gives exact zeros.
    """
    reach = math.ceil(4 * math.hypot(blur_sigma, sigma))
    sizes = image.shape[-2:]
    padded_sizes = [fft.next_fast_len(size + 2 * reach, real=True) for size in sizes]
    beyond = [(reach, padded - size - reach) for size, padded in zip(sizes, padded_sizes, strict=True)]
    padded = np.pad(image - image[..., :1, :1], [(0, 0)] * (image.ndim - 2) + beyond, mode="edge")
    frequencies = fft.fftfreq(padded_sizes[0]), fft.rfftfreq(padded_sizes[1])
    sharp_y, sharp_x = (np.exp(-2 * (np.pi * blur_sigma * f) ** 2).astype(np.float32) for f in frequencies)
    smooth_y, smooth_x = (np.exp(-2 * (np.pi * sigma * f) ** 2).astype(np.float32) for f in frequencies)
    spectrum = fft.rfft2(padded)
    spectrum *= np.outer(sharp_y, sharp_x) - np.outer(sharp_y * smooth_y, sharp_x * smooth_x)
    detail = fft.irfft2(spectrum, padded_sizes, overwrite_x=True)
    return np.ascontiguousarray(detail[..., reach : reach + sizes[0], reach : reach + sizes[1]], np.float32)


def _usable(shape_yx: tuple[int, int], valid: ArrayLike | None, ratio: int, max_shift_px: float) -> NDArray[np.bool_]:
    """MS pixels whose surroundings, as far as any trial reaches, are inside the image and were measured."""
    margin = min(math.ceil(max_shift_px / ratio) + 1, min(shape_yx) // 8)
    mask = np.ones(shape_yx, bool) if valid is None else np.asarray(valid, bool)
    return np.asarray(ndimage.minimum_filter(mask, 2 * margin + 1, mode="constant", cval=False))


def _cells(usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which part of the image each usable sample lies in: a ``_PARTS`` x ``_PARTS`` split."""
    (rows, cols), (height, width) = np.nonzero(usable), usable.shape
    return np.asarray((rows * _PARTS // height) * _PARTS + cols * _PARTS // width, np.int64)


def _taps(offset: float) -> tuple[Vector, Vector]:
    """Weights of the pixels from -2 to 2 for the value and the slope at an offset of -1 to 1."""
    first = -1 if offset < 0 else 0
    powers = (offset - first) ** np.arange(4)
    value, slope = np.zeros((2, 2 * _NEIGHBOURS + 1))
    taps = slice(_NEIGHBOURS - 1 + first, _NEIGHBOURS + 3 + first)
    value[taps], slope[taps] = _CUBIC @ powers, _CUBIC_SLOPE @ powers
    return value, slope


def _argmax_yx(surface: Vector, reach: int) -> Vector:
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    return np.array([row - reach, col - reach], np.float64)
