"""How far each MS band really lies from its nominal place on the PAN grid, measured from the pixels.

PAN is blurred to MS sharpness, high-passed, sampled where the MS pixels would be under a trial displacement, and
compared with the high-passed bands: by the correlation over the whole image at all whole-pixel trials first, then by
Gauss-Newton steps on the best one. Those fit PAN to the band with a gain of its own in every small cell of the image,
because a border that is bright in PAN may be dark in near infrared: over vegetation such borders pull the maximum of
one correlation over the whole image aside by half a pixel. Reading files and applying the shifts is left to others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

from pancrafter.moments import mixtures, products
from pancrafter.resample import GENERIC_MTF_GAIN, mtf_sigma
from pancrafter.types import Record

Image = NDArray[np.float32]
Vector = NDArray[np.float64]

SIGNIFICANT_PX = 0.1
"""Shifts below this are left alone: the estimator is good to 0.02 to 0.05 PAN px. Below a correlation of 0.95 it
grows by half of what is missing: bands of Landsat 7, known to lie true within 0.1 px, measured up to 0.25 px."""

MAX_SHIFT_PX = 6
"""Largest displacement that is looked for along each axis, PAN pixels."""

MIN_BAND_CORRELATION = 0.6
"""Up to this correlation with PAN a band's own measurement counts for nothing, and the other bands decide."""

TRUSTED_BAND_CORRELATION = 0.75
"""From this correlation with PAN a band's own measurement is followed entirely."""

MAX_BAND_OFFSET_PX = 2.0
"""Bands of one real scene were measured up to 2 PAN px apart. More than that is not the sensor but what it sees:
clouds and aircraft, which each band meets at another time and angle, so the shift says nothing about the ground."""

MAX_PART_SPREAD_PX = 0.6
"""Largest median disagreement of the parts of one image; averaged over its nine parts that leaves about 0.2 px."""

MAX_WINDOW_SPREAD_PX = 0.35
"""Largest median disagreement of the windows of a scene that still counts as one shift."""

MAX_WINDOW_SPREAD_SHARE = 1 / 3
"""The same as a share of the shift: where a large one drifts within the scene, its median is better than nothing."""

SETTLED_SPREAD_PX = 0.1
"""Median disagreement of a few windows below which the others need not be asked."""

_HIGH_PASS_SIGMA_MS = 1.5
"""Detail that decides: structures larger than about this many MS pixels are removed before comparing."""

_CELL_MS = 5
"""MS pixels along each side of a cell, in which one gain leads from PAN to a band."""

_NOISE_SHARE = 0.03
"""Of a band's detail, what no cell is trusted to explain: keeps cells that fit by chance from deciding. With a third of
it, blobs on flat ground that are blurred otherwise than assumed were found 0.2 px aside."""

_GAIN_RIDGE = 0.001
"""Of PAN's mean detail in a cell, added to that of every cell, so that no gain is fitted to nothing."""

_MIN_SLOPE_SHARE = 0.01
"""Least detail in a direction, as a share of that in another, that says where along it a band lies. Parallel lines with
little beside them have less, and noise put bands up to 8 px along them; crops of real pairs (48 MS px) never have."""

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

    MS pixel ``i`` shows what PAN shows at ``ratio * i + phase + shift``. ``correlation``, 0 to 1, is that of the fine
    detail there with a gain of its own in every cell: its square is the share that PAN explains in a typical cell of
    the half with the most detail.
    ``spread_px`` is the median distance of the shifts of the image's parts from ``shift_yx``; None: not measurable, or
    the image is of parallel lines, and the shift what they tell, across them.
    ``certain`` says that the shift is trustworthy, ``significant`` that it is also large enough to be worth applying.
    """

    shift_yx: tuple[float, float]
    correlation: float
    certain: bool
    significant: bool
    spread_px: float | None = None

    @property
    def applied_yx(self) -> tuple[float, float]:
        """The shift to correct by: (0, 0) unless it is significant."""
        return self.shift_yx if self.significant else (0.0, 0.0)


NO_SHIFT = BandShift(shift_yx=(0.0, 0.0), correlation=0.0, certain=False, significant=False)
"""What is known where nothing could be measured."""


def estimate_band_shifts(
    pan: ArrayLike,
    ms: ArrayLike,
    ratio: int,
    phase_yx: tuple[float, float],
    *,
    valid: ArrayLike | None = None,
    gain: float = GENERIC_MTF_GAIN,
) -> tuple[BandShift, ...]:
    """Measure the displacement of every MS band against PAN.

    A band that resembles PAN too little for a measurement of its own takes the mean shift of those that do.

    Args:
        pan: ``(y, x)`` PAN DN, without holes.
        ms: ``(band, y, x)`` MS DN of the same area, without holes.
        ratio: MS pixel size over PAN pixel size.
        phase_yx: MS pixel ``i`` is nominally centred at PAN index ``ratio * i + phase``.
        valid: ``(y, x)`` on the MS grid, true where MS and the PAN beneath it were measured; None: everywhere.
        gain: MTF gain of the bands at the MS Nyquist frequency.

    Returns:
        One entry per band; (0, 0) with ``certain`` false where there is too little to go by.
    """
    pan_image, ms_image = np.asarray(pan, np.float32), np.asarray(ms, np.float32)
    usable = _usable(ms_image.shape[1:], valid, ratio)
    matcher = _prepare(pan_image, ms_image, ratio, phase_yx=phase_yx, usable=usable, gain=gain)
    if matcher is None:
        return (NO_SHIFT,) * len(ms_image)
    mix_start, starts = matcher.coarse()
    bands = _led_along_lines([matcher.measure(band, [start, mix_start]) for band, start in enumerate(starts)])
    if _contradict(bands):
        return tuple(_doubted(band) for band in bands)
    return _with_the_others(bands)


def combine_windows(windows: Sequence[Sequence[BandShift]]) -> tuple[BandShift, ...]:
    """One shift per band for a scene: the median over its windows, certain where most windows agree.

    Windows in which a band's own measurement is trusted decide for it; where there is none, those in which it is not,
    or is not entire: of parallel lines.

    Args:
        windows: Per window, one entry per band; windows of little texture may hold uncertain entries.
    """
    if len(windows) == 1:
        return tuple(windows[0])
    return tuple(_combine(entries) for entries in zip(*windows, strict=True))


def agree(windows: Sequence[Sequence[BandShift]]) -> bool:
    """Whether more windows would not help: each band is certain in all and trusted in one, and they say the same."""
    return all(
        all(entry.certain for entry in entries)
        and any(_decides(entry) for entry in entries)
        and (spread := _combine(entries).spread_px) is not None
        and spread <= SETTLED_SPREAD_PX
        for entries in zip(*windows, strict=True)
    )


def _combine(entries: Sequence[BandShift]) -> BandShift:
    certain = [entry for entry in entries if entry.certain]
    if not certain:
        return _doubted(max(entries, key=lambda entry: entry.correlation))
    chosen = [entry for entry in certain if _decides(entry)] or certain
    shifts = np.array([entry.shift_yx for entry in chosen])
    median = np.median(shifts, axis=0)
    spread = float(np.median(np.hypot(*(shifts - median).T)))
    tolerated = max(MAX_WINDOW_SPREAD_PX, MAX_WINDOW_SPREAD_SHARE * math.hypot(*median))
    agreed = spread <= tolerated and 2 * len(certain) >= len(entries)
    correlation = float(np.median([entry.correlation for entry in chosen]))
    return _band_shift(median, correlation, certain=agreed, spread_px=spread)


def _contradict(bands: Sequence[BandShift]) -> bool:
    """Whether bands that each match PAN well do so at places no sensor's bands are apart."""
    trusted = np.array([band.shift_yx for band in bands if _trust(band) == 1])
    if len(trusted) == 0:
        return False
    return bool(np.hypot(*(trusted - np.median(trusted, axis=0)).T).max() > MAX_BAND_OFFSET_PX)


def _doubted(shift: BandShift) -> BandShift:
    return shift.model_copy(update={"certain": False, "significant": False})


def _trust(band: BandShift) -> float:
    """How far a band's own measurement is followed, 0 to 1."""
    if not band.certain:
        return 0.0
    span = TRUSTED_BAND_CORRELATION - MIN_BAND_CORRELATION
    return min(max((band.correlation - MIN_BAND_CORRELATION) / span, 0.0), 1.0)


def _decides(band: BandShift) -> bool:
    """Whether a window's word on a band counts before that of windows that know less of it."""
    return _trust(band) == 1 and band.spread_px is not None


def _with_the_others(bands: Sequence[BandShift]) -> tuple[BandShift, ...]:
    """Each band's own measurement as far as it is trusted, for the rest the mean of all, weighted by trust.

    One less than entirely trusted and too far from that mean counts for nothing, in the mean of the others neither.
    """
    trusts = np.array([_trust(band) for band in bands])
    own = np.array([band.shift_yx for band in bands])
    if trusts.any():
        far = np.hypot(*(own - trusts @ own / trusts.sum()).T) > MAX_BAND_OFFSET_PX
        trusts = np.where(far, trusts == 1, trusts)
    if not trusts.any():
        return tuple(_doubted(band) for band in bands)
    mean, followed = trusts @ own / trusts.sum(), trusts[:, None]
    return tuple(
        _band_shift(shift, band.correlation, certain=True, spread_px=band.spread_px)
        for shift, band in zip(followed * own + (1 - followed) * mean, bands, strict=True)
    )


def _band_shift(shift_yx: Vector, correlation: float, *, certain: bool, spread_px: float | None) -> BandShift:
    y, x = float(shift_yx[0]), float(shift_yx[1])
    return BandShift(
        shift_yx=(y, x),
        correlation=correlation,
        certain=certain,
        significant=certain and math.hypot(y, x) > SIGNIFICANT_PX + 0.5 * max(0.0, 0.95 - correlation),
        spread_px=spread_px,
    )


class _Cells(NamedTuple):
    """Samples of MS, ``(sample, cell)``: their rows and columns, and 1 where one was measured, 0 where not."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    counted: Image


class _Fit(NamedTuple):
    """How PAN displaced by some shift fits a band, with a gain of its own in every cell."""

    normal: Vector
    """(cell, 2, 2): products of the slopes along y and x, less what the gain takes, weighted."""
    wanted: Vector
    """(cell, 2): products of the slopes with what is left of the band, weighted."""
    correlation: float

    def step(self, chosen: NDArray[np.bool_] | slice = slice(None)) -> Vector:
        """Displacement (dy, dx) that would make the chosen cells fit better, as far as it shows."""
        normal, wanted = self.normal[chosen].sum(axis=0), self.wanted[chosen].sum(axis=0)
        return self.told(np.asarray(np.linalg.lstsq(normal, wanted, rcond=1e-10)[0], np.float64))

    def told(self, shift_yx: Vector) -> Vector:
        """The part of a displacement that shows: parallel lines look the same wherever along them they lie."""
        detail, directions = np.linalg.eigh(self.normal.sum(axis=0))
        shows = detail > _MIN_SLOPE_SHARE * detail[-1]
        return shift_yx if shows.all() else directions[:, shows] @ directions[:, shows].T @ shift_yx


def _led_along_lines(measured: Sequence[tuple[BandShift, _Fit]]) -> list[BandShift]:
    """The bands; those of parallel lines are placed along these as are the bands that tell all."""
    known = [band for band, _ in measured if _decides(band)]
    if not known:
        return [band for band, _ in measured]
    lead: Vector = np.mean([band.shift_yx for band in known], axis=0)
    return [
        band
        if band.spread_px is not None
        else _band_shift(
            band.shift_yx + lead - fit.told(lead),
            band.correlation,
            certain=band.certain,
            spread_px=known[0].spread_px,
        )
        for band, fit in measured
    ]


class _Matcher:
    """High-passed PAN that can be sampled at any displacement, and the high-passed bands to compare it with.

    Between whole pixels PAN is interpolated by a cubic of four by four neighbours, with the same weights at every
    sample; they are gathered once for every whole pixel that the search comes by.
    """

    def __init__(
        self,
        detail: Image,
        bands: Image,
        cells: _Cells,
        ratio: int,
        *,
        phase_yx: tuple[float, float],
    ) -> None:
        rows, cols, self._counted = cells
        self._per_cell = self._counted.sum(axis=0)
        self._bands = self._centred(bands[:, rows, cols])
        self._energy = np.einsum("bnc,bnc->bc", self._bands, self._bands) / self._per_cell
        down, along = (index[0] * _PARTS // size for index, size in zip((rows, cols), bands.shape[1:], strict=True))
        part = down * _PARTS + along
        self._parts = [
            chosen
            for chosen in (part == index for index in range(_PARTS**2))
            if self._per_cell[chosen].sum() >= _MIN_PART_SAMPLES
        ]
        self._limit_px = MAX_SHIFT_PX + 1
        margin = math.ceil(self._limit_px + 0.5) + _NEIGHBOURS  # a trial lies up to half a pixel from a whole one
        padded = np.pad(detail, margin, mode="edge")
        self._detail, self._row = padded.ravel(), padded.shape[1]
        # nearest PAN pixel to the nominal place of each sample, and how far beyond that place it is
        whole_yx = [round(phase) for phase in phase_yx]
        self._rounded_yx = np.subtract(whole_yx, phase_yx)
        y, x = (
            (ratio * index + whole).clip(0, size - 1) + margin
            for index, whole, size in zip((rows, cols), whole_yx, detail.shape, strict=True)
        )
        self._under = y * self._row + x
        self._known: dict[tuple[int, int], Image] = {}

    def coarse(self) -> tuple[Vector, list[Vector]]:
        """Best displacement of the mix of all bands, and of each band, to the nearest pixel of PAN.

        A part of the samples is enough for that; PAN is read at whole pixels, so that nothing is interpolated.
        """
        reach = MAX_SHIFT_PX
        counted = np.flatnonzero(self._counted)
        counted = counted[:: -(-len(counted) // _COARSE_SAMPLES)]
        under, bands = self._under.ravel()[counted], self._bands.reshape(len(self._bands), -1)[:, counted]
        gram = products(bands, bands)
        # A little ridge keeps the mix defined when bands are copies of each other.
        inverse = np.linalg.inv(gram + (1e-6 * np.trace(gram) / len(gram)) * np.eye(len(gram)))

        trials = np.arange(-reach, reach + 1)
        mix = np.empty((len(trials), len(trials)))
        each = np.empty((len(bands), len(trials), len(trials)))
        for row, shift_y in enumerate(trials):
            values = self._detail[under + (shift_y * self._row + trials)[:, None]]
            shared = products(bands, values)
            energy = np.einsum("kn,kn->k", values, values).astype(np.float64) + np.finfo(float).tiny
            each[:, row] = shared / np.sqrt(energy)
            mix[row] = np.einsum("bk,bc,ck->k", shared, inverse, shared) / energy
        return (
            _argmax_yx(mix, reach) + self._rounded_yx,
            [_argmax_yx(surface, reach) + self._rounded_yx for surface in each],
        )

    def measure(self, band: int, starts_yx: Sequence[Vector]) -> tuple[BandShift, _Fit]:
        """Sub-pixel shift of a band: the best of those that the search comes to from whole-pixel ones. And the fit."""
        found: list[tuple[Vector, _Fit]] = []
        for start in starts_yx:
            if all(np.abs(start - shift).max() > 1 for shift, _ in found):
                found.append(self._climb(band, start))
        place, fit = max(found, key=lambda entry: entry[1].correlation)
        shift = fit.told(place)
        # how far each part of the image alone would still go
        steps = [float(np.hypot(*fit.step(part))) for part in self._parts]
        spread = float(np.median(steps)) if len(steps) >= _MIN_PARTS else None
        inside = bool(np.all(np.abs(shift) <= MAX_SHIFT_PX + 0.5))
        agreed = spread is not None and spread <= MAX_PART_SPREAD_PX
        certain = inside and agreed and fit.correlation > MIN_BAND_CORRELATION
        return _band_shift(shift, fit.correlation, certain=certain, spread_px=spread if shift is place else None), fit

    def _climb(self, band: int, start_yx: Vector) -> tuple[Vector, _Fit]:
        """Where the search ends, and the fit there or a negligible step before it."""
        shift = start_yx.astype(np.float64)
        for _ in range(_NEWTON_STEPS):
            fit = self._fit(band, shift)
            step = np.clip(fit.step(), -1, 1)
            shift = np.clip(shift + step, -self._limit_px, self._limit_px)
            if np.abs(step).max() < _CONVERGED_PX:
                break
        return shift, fit

    def _fit(self, band: int, shift_yx: Vector) -> _Fit:
        """Gauss-Newton for what is left of the band, where a cell counts the more the less is left in it.

        With the gain g = <v, t> / <v, v> of a cell and r = t - g v, the sum over cells of n log <r, r> is made small.
        """
        offset = shift_yx - self._rounded_yx
        whole = np.rint(offset).astype(int)
        (at_y, slope_y), (at_x, slope_x) = (_taps(float(t)) for t in offset - whole)
        taps = np.stack([np.outer(at_y, at_x), np.outer(slope_y, at_x), np.outer(at_y, slope_x)]).reshape(3, -1)
        near = self._neighbours(int(whole[0]), int(whole[1]))
        samples = mixtures(taps.astype(np.float32), near.reshape(len(near), -1)).reshape(3, *near.shape[1:])
        target, energy = self._bands[band], self._energy[band]
        shared = np.einsum("inc,jnc->ijc", samples, samples)
        with_band = np.einsum("inc,nc->ic", samples, target)

        own = shared[0, 0] + _GAIN_RIDGE * shared[0, 0].mean() + np.finfo(np.float32).tiny
        gain = with_band[0] / own
        floor = _NOISE_SHARE * energy.mean() + np.finfo(np.float32).tiny
        left = np.maximum(energy - gain * with_band[0] / self._per_cell, 0) + floor
        weight = gain / left
        along = shared[0, 1:]  # what the gain takes of the slopes
        normal = weight * gain * (shared[1:, 1:] - along[:, None] * along / own)
        wanted = weight * (with_band[1:] - gain * along)
        busy = energy >= np.median(energy)
        unexplained = np.exp(np.average(np.log(left / (energy + floor))[busy], weights=self._per_cell[busy]))
        return _Fit(
            np.moveaxis(normal, -1, 0).astype(np.float64),
            wanted.T.astype(np.float64),
            math.sqrt(max(0.0, 1 - float(unexplained))),
        )

    def _neighbours(self, y: int, x: int) -> Image:
        """Five by five pixels of PAN around each sample displaced by whole ones, centred: (pixel, sample, cell)."""
        if (y, x) not in self._known:
            near = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
            offsets = ((y + near[:, None]) * self._row + x + near).ravel()
            self._known[y, x] = self._centred(self._detail[self._under + offsets[:, None, None]])
        return self._known[y, x]

    def _centred(self, values: Image) -> Image:
        """``(..., sample, cell)`` less the mean of each cell, 0 where nothing was measured."""
        values *= self._counted
        values -= values.sum(axis=-2, keepdims=True) / self._per_cell
        values *= self._counted
        return values


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
    cells = _cells(usable)
    bands = _detail(ms, 0.0, _HIGH_PASS_SIGMA_MS)
    detail = _detail(pan, mtf_sigma(gain, ratio), _HIGH_PASS_SIGMA_MS * ratio)
    if not detail.any() or not bands[:, usable].any() or not cells.counted.any():
        return None
    return _Matcher(detail, bands, cells, ratio, phase_yx=phase_yx)


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


def _usable(shape_yx: tuple[int, int], valid: ArrayLike | None, ratio: int) -> NDArray[np.bool_]:
    """MS pixels whose surroundings, as far as any trial reaches, are inside the image and were measured."""
    margin = min(math.ceil(MAX_SHIFT_PX / ratio) + 1, min(shape_yx) // 8)
    mask = np.ones(shape_yx, bool) if valid is None else np.asarray(valid, bool)
    return np.asarray(ndimage.minimum_filter(mask, 2 * margin + 1, mode="constant", cval=False))


def _cells(usable: NDArray[np.bool_]) -> _Cells:
    """Cells from the first usable pixel on, row by row; one counts where at least half of its samples do."""
    first_y, first_x = (int(np.argmax(usable.any(axis=axis))) for axis in (1, 0))
    inside = usable[first_y:, first_x:]
    blocks = np.pad(inside, [(0, -size % _CELL_MS) for size in inside.shape])

    def by_cell(values: NDArray[Any]) -> NDArray[Any]:
        down, along = (size // _CELL_MS for size in values.shape)
        return values.reshape(down, _CELL_MS, along, _CELL_MS).transpose(1, 3, 0, 2).reshape(_CELL_MS**2, -1)

    counted = by_cell(blocks)
    kept = 2 * counted.sum(axis=0) >= _CELL_MS**2
    rows, cols = (
        np.ascontiguousarray(np.minimum(by_cell(index)[:, kept] + first, size - 1))
        for index, first, size in zip([*np.indices(blocks.shape)], (first_y, first_x), usable.shape, strict=True)
    )
    return _Cells(rows, cols, np.ascontiguousarray(counted[:, kept], np.float32))


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
