"""Where the bands of a scene lie on its PAN, and how sharp they are against it: measured on a few windows of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pancrafter import sharpness
from pancrafter.alignment import NO_SHIFT, BandShift, agree, combine_windows, estimate_band_shifts
from pancrafter.compute import each
from pancrafter.resample import Mtf
from pancrafter.sharpness import Sharpness
from pancrafter.store import PixelReader, Window
from pancrafter.types import PairGrid

WINDOW_MS_PX = 256
FIRST_WINDOWS = 4
MOST_WINDOWS = 9
"""Windows that are asked at most; if the most textured first ones agree, only those."""

_CANDIDATES_PER_AXIS = 5
_MIN_VALID = 0.3
_PAD_PX = 16


class MeasuredPixels(PixelReader, Protocol):
    """What the bands are measured on."""

    @property
    def band_count(self) -> int:
        """How many MS bands there are."""


@dataclass(frozen=True)
class MeasuredBands:
    """Where the bands lie on PAN, and how sharp they are against it (``StagedScene.measured_mtf``)."""

    shifts: tuple[BandShift, ...]
    mtf: Mtf | None

    def described(self) -> dict[str, Any]:
        """As fields of a ``StagedScene``."""
        return {
            "band_shift_yx": tuple(shift.applied_yx for shift in self.shifts),
            "shift_confidence": tuple(shift.correlation for shift in self.shifts),
            **({} if self.mtf is None else {"measured_mtf": self.mtf.gain, "mtf_shape": self.mtf.shape}),
        }


def measure_bands(store: MeasuredPixels, pair: PairGrid, *, gain: float, scheduler: str | None = None) -> MeasuredBands:
    """Shift and sharpness of the MS bands from a bounded number of textured windows of the staged pixels.

    Args:
        store: Holds the staged pixels; need not be complete.
        pair: Its grids.
        gain: Mean MTF gain of the bands at the MS Nyquist frequency.
        scheduler: Dask scheduler that looks at the windows, by name; by default the active one. Inside a Dask task
            ``synchronous``, or it would wait for itself.
    """
    candidates = _candidates(pair.ms_shape_yx)
    textures = each(_texture, ((store, window) for window in candidates), scheduler=scheduler)
    ranked = sorted(zip(textures, range(len(candidates)), strict=True), key=lambda entry: (-entry[0], entry[1]))
    chosen = [candidates[index] for texture, index in ranked[:MOST_WINDOWS] if texture > 0]
    if not chosen:
        return MeasuredBands((NO_SHIFT,) * store.band_count, None)
    shifts: tuple[tuple[BandShift, ...], ...] = ()
    widths: tuple[Sharpness | None, ...] = ()
    for part in (chosen[:FIRST_WINDOWS], chosen[FIRST_WINDOWS:]):
        if shifts and agree(shifts):
            break
        found = each(_measure_window, ((store, pair, window, gain) for window in part), scheduler=scheduler)
        shifts, widths = shifts + tuple(a for a, _ in found), widths + tuple(b for _, b in found)
    return MeasuredBands(combine_windows(shifts), sharpness.combine(widths))


def _candidates(ms_shape_yx: tuple[int, int]) -> list[Window]:
    rows, cols = (_starts(size) for size in ms_shape_yx)
    return [(y, x) for y in rows for x in cols]


def _starts(size: int) -> list[slice]:
    """Evenly spread windows along one axis; the whole axis if it holds less than one and a half."""
    edge = WINDOW_MS_PX
    if 2 * size < 3 * edge:
        return [slice(0, size)]
    count = min(_CANDIDATES_PER_AXIS, -(-size // edge))
    return [slice(int(start), int(start) + edge) for start in np.linspace(0, size - edge, count)]


def _texture(store: MeasuredPixels, window: Window) -> float:
    """Mean step of neighbouring MS pixels relative to their mean, in the middle of a window; 0 if little is valid."""
    window = (_middle(window[0]), _middle(window[1]))
    valid = store.read_ms_valid(window) != 0
    if valid.mean() < _MIN_VALID:
        return 0.0
    image = store.read_ms(window).mean(axis=0)
    both = valid[:, 1:] & valid[:, :-1]
    steps = np.abs(np.diff(image, axis=1))[both]
    return float(steps.mean() / (image[valid].mean() + 1)) if steps.size else 0.0


def _middle(part: slice) -> slice:
    """The half of a range in its middle."""
    quarter = (part.stop - part.start) // 4
    return slice(part.start + quarter, part.stop - quarter)


def _measure_window(
    store: MeasuredPixels, pair: PairGrid, window: Window, gain: float
) -> tuple[tuple[BandShift, ...], Sharpness | None]:
    beneath = [
        _pan_beneath(part, pair.ratio, phase, size)
        for part, phase, size in zip(window, pair.phase_yx, pair.pan.shape_yx, strict=True)
    ]
    pan_window = (beneath[0], beneath[1])
    phase_y, phase_x = (
        pair.ratio * part.start + phase - pan.start
        for part, phase, pan in zip(window, pair.phase_yx, pan_window, strict=True)
    )
    rows, cols = (
        np.clip(np.rint(pair.ratio * np.arange(part.stop - part.start) + phase), 0, pan.stop - pan.start - 1).astype(
            int
        )
        for part, phase, pan in zip(window, (phase_y, phase_x), pan_window, strict=True)
    )
    valid = (store.read_ms_valid(window) & store.read_pan_valid(pan_window)[np.ix_(rows, cols)]) != 0
    pan, ms = store.read_pan(pan_window), store.read_ms(window)
    shifts = estimate_band_shifts(pan, ms, pair.ratio, (phase_y, phase_x), valid=valid, gain=gain)
    phases = [(phase_y + dy, phase_x + dx) for dy, dx in (shift.applied_yx for shift in shifts)]
    return shifts, sharpness.sharpness(pan, ms, pair.ratio, phases, valid)


def _pan_beneath(part: slice, ratio: int, phase: float, size: int) -> slice:
    """PAN pixels under a range of MS pixels, and some around."""
    start = math.floor(ratio * (part.start - 0.5) + phase) - _PAD_PX
    stop = math.ceil(ratio * (part.stop - 0.5) + phase) + _PAD_PX
    return slice(max(0, start), min(size, stop))
