"""How sharp a scene's bands are against its PAN, measured from the scene itself.

PAN, blurred by a Gaussian and sampled at the MS pixels, resembles the mix of bands that explains it best when it is as
blurred as they are. So the blur is sought where their correlation is highest: no MTF of the sensor has to be known, and
what processing has done to a product counts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import minimum_filter

from pancrafter.metrics import PhaseYX, Pixels
from pancrafter.moments import products
from pancrafter.resample import SHARPEST_GAIN, apply_yx, gaussian_matrix
from pancrafter.types import Record

Floats = NDArray[np.float64]

WIDTHS: Floats = np.arange(0.16, 0.841, 0.04)
"""Deviations of the Gaussians that are tried, in MS pixels: MTF at the MS Nyquist frequency of 0.88 down to 0.03."""

LEAST_EXPLAINED = 0.9
"""Share of PAN's variance that the bands must explain for a measurement to count."""

MARGIN_MS_PX = 5
"""MS pixels at a border, and around invalid ones, that are left out: more than five deviations of the widest."""

LEAST_PX = 400
"""MS pixels that must be left."""


class Sharpness(Record):
    """MTF at the MS Nyquist frequency between PAN and the bands, and the share of PAN's variance they explain."""

    gain: float
    explained: float

    @property
    def certain(self) -> bool:
        """Whether the bands explain PAN well enough, and not best where all is blurred that may be.

        As sharp as what was tried can be is a result: no misplacement of the bands looks like that.
        """
        return self.explained >= LEAST_EXPLAINED and self.gain > gain_of_width(float(WIDTHS[-1]))


@overload
def gain_of_width(width: float) -> float: ...


@overload
def gain_of_width(width: Floats) -> Floats: ...


def gain_of_width(width: float | Floats) -> float | Floats:
    """MTF at the MS Nyquist frequency of a Gaussian whose deviation is ``width`` MS pixels: exp(-(pi width)^2 / 2)."""
    gain: float | Floats = np.exp(-0.5 * (np.pi * width) ** 2)
    return gain


def sharpness(
    pan: Pixels, ms: Pixels, ratio: int, phases_yx: Sequence[PhaseYX], valid: ArrayLike | None = None
) -> Sharpness | None:
    """Measure how sharp the bands of a window are against its PAN.

    Args:
        pan: (y, x) DN.
        ms: (band, y', x') DN of the same ground.
        ratio: PAN pixels per MS pixel.
        phases_yx: Per band, where MS pixel 0 lies on the PAN grid, measured shift included, PAN pixels.
        valid: (y', x') true where MS, and PAN at its place, were measured; by default everywhere.

    Returns:
        None where too few pixels are left or PAN is flat.
    """
    shape_yx = (ms.shape[1], ms.shape[2])
    keep = np.ones(shape_yx, np.bool_) if valid is None else np.array(valid, np.bool_)
    keep = minimum_filter(keep, 2 * MARGIN_MS_PX + 1, mode="constant", cval=0)
    if keep.sum() < LEAST_PX:
        return None
    y, x = np.median(np.array(phases_yx), axis=0)
    values = np.empty((len(ms) + len(WIDTHS), int(keep.sum())))
    values[: len(ms)] = ms[:, keep]
    for row, width in zip(values[len(ms) :], WIDTHS * ratio, strict=True):
        rows, cols = (
            gaussian_matrix(n_ms, n_pan, float(ratio), float(phase), float(width), MARGIN_MS_PX * ratio)
            for n_ms, n_pan, phase in zip(shape_yx, pan.shape, (y, x), strict=True)
        )
        row[:] = apply_yx(rows, cols, pan.astype(np.float64))[keep]
    values -= values.mean(axis=1, keepdims=True)
    moments = products(values, values)
    return _fitted(moments[: len(ms), : len(ms)], moments[: len(ms), len(ms) :], np.diag(moments)[len(ms) :])


def _fitted(bands: Floats, with_pan: Floats, pan: Floats) -> Sharpness | None:
    """The blur at which most of PAN's variance is explained: a parabola through the best of ``WIDTHS`` and its two.

    ``bands`` are the moments of the bands with each other, ``with_pan`` with PAN of every width, ``pan`` its own.
    """
    if pan.min() <= 0:
        return None
    ridge = 1e-6 * np.trace(bands) / len(bands) + 1e-9
    weights = np.linalg.solve(bands + ridge * np.eye(len(bands)), with_pan)
    explained = (with_pan * weights).sum(axis=0) / pan
    best = int(np.argmax(explained))
    width = float(WIDTHS[best])
    if 0 < best < len(WIDTHS) - 1:
        before, at, after = explained[best - 1 : best + 2]
        width += float((WIDTHS[1] - WIDTHS[0]) * 0.5 * (before - after) / (before - 2 * at + after))
    return Sharpness(gain=float(gain_of_width(width)), explained=float(explained[best]))


def combine(windows: Sequence[Sharpness | None]) -> float | None:
    """The median gain of the windows where it is certain; None where it is in none."""
    gains = [window.gain for window in windows if window is not None and window.certain]
    return float(np.median(gains)) if gains else None


def band_gains(nominal: Sequence[float], measured: float | None, pan_gain: float, ratio: int) -> tuple[float, ...]:
    """MTF of the bands at the MS Nyquist frequency: as a sensor's contract has it, brought to the mean measured.

    Args:
        nominal: Per band, from the contract.
        measured: Mean of the bands relative to PAN, from ``sharpness``; None leaves the nominal ones.
        pan_gain: MTF of PAN at its own Nyquist frequency, where it keeps ``pan_gain ** (1 / ratio**2)`` at that of MS.
        ratio: PAN pixels per MS pixel.
    """
    if measured is None:
        return tuple(nominal)
    scale = measured * pan_gain ** (1 / ratio**2) / float(np.mean(nominal))
    return tuple(min(gain * scale, SHARPEST_GAIN) for gain in nominal)
