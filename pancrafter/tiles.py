"""The parts of a scene that are sharpened one by one: deciding windows (integers), reading tiles, rounding results.

A tile is a block plus a halo that covers everything its pixels depend on, cut at multiples that keep PAN and MS in
step and filled beyond the scene by its mirror image. All tiles of a scene have one shape. So blocks come out as
the whole scene would, whatever their size and order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pancrafter.metrics import PhaseYX
from pancrafter.store import Block, PixelReader, Pixels, Window
from pancrafter.types import PairGrid, StagedScene, ValueRange

Floats = NDArray[np.float32]
Valid = NDArray[np.bool_]

NETWORK_STEP_PX = 4
"""The network halves its grid twice, so windows start and end at multiples of four PAN pixels."""


STRIP_ROWS = 64
"""Rows of a window that are fused or rounded at once: their bands stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Tile:
    """What a sharpener sees: filled DN of a window on both grids, and how they relate.

    ``pan`` (y, x) and ``ms`` (band, y / ratio, x / ratio) start at the same multiple of ``ratio``; ``phases_yx`` holds,
    per band, where MS pixel 0 of the tile really lies on its PAN grid (nominal phase plus band shift), PAN pixels.
    ``uncertainty`` is how far these and what is known of MTF may be off, and how noisy pixels may be: 1 as at full
    resolution; one scale down (``assess.reduce_tile``) pixels are larger, noise is averaged away and MTF is known.
    ``dn_max`` is the sensor's largest DN, if it is known.
    """

    pan: Floats
    ms: Floats
    ratio: int
    phases_yx: tuple[PhaseYX, ...]
    pan_range: ValueRange
    ms_ranges: tuple[ValueRange, ...]
    uncertainty: float = 1.0
    dn_max: float = math.inf


class ScenePixels(PixelReader, Protocol):
    """What the engine reads a scene through."""

    @property
    def staged(self) -> StagedScene:
        """The scene's constants."""

    @property
    def pan_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the PAN grid."""

    @property
    def ms_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the MS grid."""

    @property
    def block_px(self) -> int:
        """Edge of a block, PAN pixels."""

    @property
    def blocks_yx(self) -> tuple[int, int]:
        """Rows and columns of the block grid."""

    def block_window(self, block: Block) -> Window:
        """PAN pixels of a block."""


@dataclass(frozen=True)
class TilePlan:
    """Where a block's tile lies: integers only.

    ``window`` is the block on the PAN grid; the tile starts at ``start_yx`` (may be negative) and has ``shape_yx``.
    """

    window: Window
    start_yx: tuple[int, int]
    shape_yx: tuple[int, int]

    @property
    def core(self) -> Window:
        """The block inside the tile."""
        y, x = (
            slice(part.start - start, part.stop - start) for part, start in zip(self.window, self.start_yx, strict=True)
        )
        return y, x


def plan_tile(store: ScenePixels, block: Block, halo_px: int) -> TilePlan:
    """The tile of one block of the store; every block of a scene gets the same shape."""
    return plan_window(store, store.block_window(block), halo_px, store.block_px)


def plan_window(store: ScenePixels, window: Window, halo_px: int, block_px: int) -> TilePlan:
    """The tile of a window that starts at multiples of ``block_px`` and is as large, or ends where the scene does."""
    step = math.lcm(NETWORK_STEP_PX, store.staged.grid.ratio)
    start_yx, shape_yx = [], []
    for part, size in zip(window, store.pan_shape_yx, strict=True):
        start_yx.append((part.start - halo_px) // step * step)
        core = min(block_px, size)
        slack = 0 if block_px % step == 0 and halo_px % step == 0 else step - 1
        shape_yx.append(-(-(core + 2 * halo_px + slack) // step) * step)
    return TilePlan(window, (start_yx[0], start_yx[1]), (shape_yx[0], shape_yx[1]))


def read_tile(store: ScenePixels, plan: TilePlan) -> Tile:
    """Read a tile's filled DN from a staged scene, mirrored at its border beyond the scene."""
    staged = store.staged
    ratio = staged.grid.ratio
    ms_start = (plan.start_yx[0] // ratio, plan.start_yx[1] // ratio)
    ms_shape = (plan.shape_yx[0] // ratio, plan.shape_yx[1] // ratio)
    pan_window, pan_pad = _inside(plan.start_yx, plan.shape_yx, store.pan_shape_yx)
    ms_window, ms_pad = _inside(ms_start, ms_shape, store.ms_shape_yx)
    return Tile(
        pan=mirrored(store.read_pan(pan_window).astype(np.float32), pan_pad),
        ms=mirrored(store.read_ms(ms_window).astype(np.float32), ms_pad),
        ratio=ratio,
        phases_yx=band_phases(staged),
        pan_range=staged.pan_range,
        ms_ranges=staged.ms_ranges,
        dn_max=staged.dn_max,
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """Which pixels of a window were measured, (y, x) on the PAN grid."""

    pan: Valid
    ms: Valid


def measured_window(store: ScenePixels, window: Window) -> Measured:
    """Where PAN was measured and where the MS pixel beneath was, each (y, x) on the PAN grid."""
    if not store.staged.has_holes:
        return Measured(*(np.ones([part.stop - part.start for part in window], np.bool_) for _ in range(2)))
    return Measured(store.read_pan_valid(window).astype(np.bool_), _ms_valid_beneath(store, store.staged.grid, window))


def common_area(pixels: PixelReader, grid: PairGrid, window: Window) -> Valid:
    """``valid_window`` of a scene of which it is not known yet whether it has holes."""
    valid: Valid = (pixels.read_pan_valid(window) == 1) & _ms_valid_beneath(pixels, grid, window)
    return valid


def _ms_valid_beneath(pixels: PixelReader, grid: PairGrid, window: Window) -> Valid:
    """Where the MS pixel beneath a PAN pixel was measured, (y, x) on the PAN grid."""
    rows, cols = (
        ms_index(part, grid.ratio, phase, size)
        for part, phase, size in zip(window, grid.phase_yx, grid.ms_shape_yx, strict=True)
    )
    beneath = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1))
    valid = pixels.read_ms_valid(beneath).astype(np.bool_)
    if valid.all():
        return np.ones((len(rows), len(cols)), np.bool_)
    return valid[np.ix_(rows - rows[0], cols - cols[0])]


def ms_window(window: Window, grid: PairGrid) -> Window:
    """The MS pixels of a PAN window that starts at multiples of the ratio, the first where it starts; at least one."""
    y, x = (
        slice(part.start // grid.ratio, max(part.start // grid.ratio + 1, min(size, -(-part.stop // grid.ratio))))
        for part, size in zip(window, grid.ms_shape_yx, strict=True)
    )
    return y, x


def ms_index(part: slice, ratio: int, phase: float, size: int) -> NDArray[np.int64]:
    """MS pixel nearest to each PAN pixel of a range, along one axis."""
    nearest = np.floor((np.arange(part.start, part.stop) - phase) / ratio + 0.5).astype(np.int64)
    return nearest.clip(0, size - 1)


def valid_window(store: ScenePixels, window: Window) -> Valid:
    """Where both PAN and MS were measured, (y, x) on the PAN grid."""
    measured = measured_window(store, window)
    return np.logical_and(measured.pan, measured.ms, out=measured.pan)


def band_phases(staged: StagedScene) -> tuple[PhaseYX, ...]:
    """Per band, where MS pixel 0 really lies on the PAN grid: nominal phase plus measured shift, PAN pixels."""
    (y, x) = staged.grid.phase_yx
    return tuple((y + dy, x + dx) for dy, dx in staged.band_shift_yx)


def quantise(sharpened: Floats, valid: Valid, staged: StagedScene) -> Pixels:
    """Round to DN within the sensor's range; invalid pixels become nodata (or 0), valid ones never do."""
    low, high = dn_limits(staged)
    dn = np.empty(sharpened.shape, np.uint16)
    for top in range(0, len(valid), STRIP_ROWS):
        strip = np.rint(sharpened[:, top : top + STRIP_ROWS])
        np.copyto(dn[:, top : top + STRIP_ROWS], np.clip(strip, low, high, out=strip), casting="unsafe")
    if staged.nodata is not None and low < staged.nodata < high:
        dn[dn == int(staged.nodata)] = int(staged.nodata) + 1
    if not valid.all():
        dn[:, ~valid] = 0 if staged.nodata is None else int(staged.nodata)
    return dn


def dn_limits(staged: StagedScene) -> tuple[int, int]:
    """Least and largest DN a valid output pixel may hold; nodata is not among them."""
    return int(staged.nodata == 0), staged.dn_max - int(staged.nodata == staged.dn_max)


def _inside(
    start_yx: Sequence[int], shape_yx: Sequence[int], limits_yx: Sequence[int]
) -> tuple[Window, tuple[tuple[int, int], tuple[int, int]]]:
    """The part of a window that lies in the scene, and how far each side must be padded."""
    windows, pads = [], []
    for start, size, limit in zip(start_yx, shape_yx, limits_yx, strict=True):
        first = min(max(start, 0), limit - 1)
        last = max(min(start + size, limit), first + 1)
        windows.append(slice(first, last))
        pads.append((first - start, start + size - last))
    return (windows[0], windows[1]), (pads[0], pads[1])


def mirrored(image: Floats, pads_yx: Sequence[tuple[int, int]]) -> Floats:
    """The image (..., y, x) continued beyond its border by its mirror image; itself where nothing is added.

    What lies beyond a scene is unknown, but likely as textured as what lies inside. PAN and MS are mirrored each at its
    own border, so shifts point the wrong way there; that costs less than the stripes of a repeated border.
    """
    if not any(map(any, pads_yx)):
        return image
    return np.pad(image, [(0, 0)] * (image.ndim - 2) + list(pads_yx), mode="symmetric")
