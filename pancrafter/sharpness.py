"""How sharp a scene's bands are against its PAN, measured from the scene itself.

PAN, blurred and sampled at the MS pixels, resembles the mix of bands that explains it best when it is as blurred as
they are. So the blur is sought where their correlation is highest: no MTF of the sensor has to be known, and what
processing has done to a product counts too. Gaussians are tried first, then what falls more steeply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import minimum_filter

from pancrafter.metrics import PhaseYX, Pixels, common_phase
from pancrafter.moments import products
from pancrafter.resample import SHARPEST_GAIN, Mtf, apply_yx, degrading_matrix
from pancrafter.types import Record, StagedScene

Floats = NDArray[np.float64]

WIDTHS: Floats = np.arange(0.16, 0.841, 0.04)
"""Deviations of the Gaussians that are tried, in MS pixels: MTF at the MS Nyquist frequency of 0.88 down to 0.03."""

LEAST_EXPLAINED = 0.9
"""Share of PAN's variance that the bands must explain for a measurement to count."""

MARGIN_MS_PX = 5
"""MS pixels at a border, and around invalid ones, that are left out: more than five deviations of the widest."""

LEAST_PX = 400
"""MS pixels that must be left."""

SIDE_MS_PX = 256
"""Of a larger window the middle is looked at: its cost grows with its area, what it says hardly changes."""


SHAPES = (2.5, 3.5, 4.5, 6.0, 8.0)
"""Shapes of MTF that are tried beside that of a Gaussian, until one explains less than the one before."""

HALVES = (0.4, 2.4)
"""Least and largest half response (``resample.Mtf.half``) that is tried for these: about those of the Gaussians."""

HALF_STEP = 1.03
"""Factor between one and the next."""

WORTH_A_SHAPE = 0.98
"""Of what the best Gaussian leaves unexplained, a steeper MTF must leave at most this share, or it is not believed."""


class Sharpness(Record):
    """MTF between PAN and the bands, and the share of PAN's variance they explain."""

    mtf: Mtf
    explained: float

    @property
    def certain(self) -> bool:
        """Whether the bands explain PAN well enough, and not best where all is blurred that may be.

        As sharp as what was tried can be is a result: no misplacement of the bands looks like that.
        """
        widest = Mtf(gain_of_width(float(WIDTHS[-1])))
        return self.explained >= LEAST_EXPLAINED and self.mtf.half > widest.half


def gain_of_width(width: float) -> float:
    """MTF at the MS Nyquist frequency of a Gaussian whose deviation is ``width`` MS pixels: exp(-(pi width)^2 / 2)."""
    return math.exp(-0.5 * (math.pi * width) ** 2)


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
        None where too few pixels are left.
    """
    phase = common_phase(phases_yx)
    on_ms, on_pan = zip(*(_middle(n, ratio, p) for n, p in zip(ms.shape[1:], phase, strict=True)), strict=True)
    keep = np.ones(ms.shape[1:], np.bool_) if valid is None else np.array(valid, np.bool_)
    keep = minimum_filter(keep[on_ms], 2 * MARGIN_MS_PX + 1, mode="constant", cval=0)
    if keep.sum() < LEAST_PX:
        return None
    sought = _Sought(pan[on_pan].astype(np.float32), ms[:, *on_ms][:, keep].astype(np.float64), ratio, phase, keep)
    gaussian = _best_gaussian(sought)
    steeper = _best_steeper(sought, gaussian.mtf.half)
    left, still_left = 1 - gaussian.explained, 1 - steeper.explained
    return steeper if still_left < WORTH_A_SHAPE * left else gaussian


def _best_gaussian(sought: _Sought) -> Sharpness:
    """The Gaussian, between those that are tried, with which the bands explain most."""

    def explained(index: int) -> float:
        return sought.explained(Mtf(gain_of_width(float(WIDTHS[index]))))

    best = max(range(0, len(WIDTHS), 4), key=explained)
    for step in (2, 1):
        best = max((i for i in (best - step, best, best + step) if 0 <= i < len(WIDTHS)), key=explained)
    width, at = float(WIDTHS[best]), explained(best)
    if 0 < best < len(WIDTHS) - 1:
        width += float(WIDTHS[1] - WIDTHS[0]) * _top(explained(best - 1), at, explained(best + 1))
    return Sharpness(mtf=Mtf(gain_of_width(width)), explained=at)


def _best_steeper(sought: _Sought, half: float) -> Sharpness:
    """The best MTF of the shapes that are tried, each climbed up to from where the one before was best."""
    found, step = None, 0
    for shape in SHAPES:

        def at(step: float, shape: float = shape) -> Mtf:
            return Mtf.of_half(float(np.clip(half * HALF_STEP**step, *HALVES)), shape)

        def explained(step: int, at: Callable[[float], Mtf] = at) -> float:
            return sought.explained(at(step))

        while (nearby := max((step, step - 1, step + 1), key=explained)) != step:
            step = nearby
        if found is not None and explained(step) <= found.explained:
            break
        top = step + _top(explained(step - 1), explained(step), explained(step + 1))
        found = Sharpness(mtf=at(top), explained=explained(step))
    assert found is not None
    return found


def _top(before: float, at: float, after: float) -> float:
    """Where the parabola through three neighbours is highest, in steps from the middle one."""
    curvature = 2 * at - before - after  # 0 where nothing is explained at all
    return 0.5 * (after - before) / curvature if curvature > 0 else 0.0


def _middle(size: int, ratio: int, phase: float) -> tuple[slice, slice]:
    """At most ``SIDE_MS_PX`` MS pixels of an axis, and the PAN pixels beneath: ``ratio`` times as far along."""
    count = min(size, SIDE_MS_PX)
    start = (size - count) // 2
    return slice(start, start + count), slice(ratio * start, ratio * (start + count + 1) + math.ceil(abs(phase)))


class _Sought:
    """One window: how much of PAN's variance its bands explain, by the blur between them."""

    def __init__(
        self, pan: NDArray[np.float32], bands: Floats, ratio: int, phase_yx: PhaseYX, keep: NDArray[np.bool_]
    ) -> None:
        """``bands`` (band, kept pixel); the others as in ``sharpness``."""
        self._pan, self._ratio, self._phase_yx, self._keep = pan, ratio, phase_yx, keep
        self._bands = bands - bands.mean(axis=1, keepdims=True)
        moments = products(self._bands, self._bands)
        ridge = 1e-6 * np.trace(moments) / len(moments) + 1e-9
        self._inverse = np.linalg.inv(moments + ridge * np.eye(len(moments)))
        self._found: dict[Mtf, float] = {}

    def explained(self, mtf: Mtf) -> float:
        """Share of the variance of PAN, blurred by ``mtf``, that the best mix of bands explains."""
        if mtf not in self._found:
            rows, cols = (
                degrading_matrix(n_ms, n_pan, self._ratio, phase, mtf).astype(np.float32)
                for n_ms, n_pan, phase in zip(self._keep.shape, self._pan.shape, self._phase_yx, strict=True)
            )
            pan = apply_yx(rows, cols, self._pan)[self._keep].astype(np.float64)
            pan -= pan.mean()
            across, energy = products(self._bands, pan[None])[:, 0], float(products(pan[None], pan[None])[0, 0])
            self._found[mtf] = float(across @ self._inverse @ across / max(energy, 1e-9))
        return self._found[mtf]


def combine(windows: Sequence[Sharpness | None]) -> Mtf | None:
    """The MTF of the median half response and shape of the windows where it is certain; None where it is in none."""
    certain = [window.mtf for window in windows if window is not None and window.certain]
    if not certain:
        return None
    return Mtf.of_half(
        float(np.median([mtf.half for mtf in certain])), float(np.median([mtf.shape for mtf in certain]))
    )


def measured_mtf(staged: StagedScene) -> Mtf | None:
    """What was measured of a staged scene, if anything."""
    return None if staged.measured_mtf is None else Mtf(staged.measured_mtf, staged.mtf_shape)


def band_mtfs(nominal: Sequence[float], measured: Mtf | None, pan_gain: float, ratio: int) -> tuple[Mtf, ...]:
    """MTF of the bands: as a sensor's contract has it, brought to the mean measured.

    Args:
        nominal: Per band, gain of the contract's Gaussian at the MS Nyquist frequency.
        measured: Mean of the bands relative to PAN, from ``sharpness``; None leaves the nominal ones.
        pan_gain: MTF of PAN at its own Nyquist frequency, where it keeps ``pan_gain ** (1 / ratio**2)`` at that of MS.
        ratio: PAN pixels per MS pixel.
    """
    if measured is None:
        return tuple(map(Mtf, nominal))
    scale = measured.gain * pan_gain ** (1 / ratio**2) / float(np.mean(nominal))
    return tuple(Mtf(min(gain * scale, SHARPEST_GAIN), measured.shape) for gain in nominal)
