"""Relating the PAN and MS pixel grids of one scene by their georeference: affine arithmetic only, no files.

Where the pixel sizes are in the contract's ratio, MS stays as delivered and the relation is a phase. Where they nearly
are (3.997), MS has to be resampled once, to the grid that `aligned_ms_grid` describes. Array shapes never decide how
the grids lie on each other: USGS Landsat PAN has 2N - 1 pixels whose first centre coincides with the MS one, which a
plain "twice as many" would place half a PAN pixel off on every scene.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pancrafter.errors import GridMismatchError
from pancrafter.types import PairGrid, PixelGrid

MAX_DRIFT_PX = 0.05
"""How far, in PAN pixels, an inexact ratio may pull MS off its nominal place anywhere in the scene."""

MAX_RATIO_ERROR = 0.05
"""Relative deviation from the contract's ratio up to which MS is resampled; beyond it is another product."""

MAX_ROTATION_PX = 0.01
"""How far, in pixels, the rotation terms may move the far corner of a grid that still counts as north-up."""

_EDGE_TOLERANCE_PX = 1e-6
_SMALLEST_STEP, _FARTHEST = 1e-9, 1e9  # CRS units; damaged headers hold anything
_PHASE_DECIMALS = 7


class _AxisPairing(NamedTuple):
    """One axis of a pairing, in pixels: crops of both rasters and the phase between the cropped ones."""

    pan_offset: int
    pan_size: int
    ms_offset: int
    ms_size: int
    phase: float


def pair_grids(pan: PixelGrid, ms: PixelGrid, ratio: int) -> PairGrid:
    """How the pixels of PAN and MS relate where their footprints overlap.

    PAN is cropped to the pixels whose centre lies inside the MS footprint, MS to the pixels that hold such a centre.
    An inexact pixel ratio is accepted while it moves no MS pixel of the overlap by more than ``MAX_DRIFT_PX``; the
    phase then splits the difference between the two ends.

    Args:
        pan: The whole PAN raster.
        ms: The whole MS raster, in the same CRS.
        ratio: MS pixel size over PAN pixel size that the sensor contract promises.

    Raises:
        GridMismatchError: The CRS differ, a grid is rotated or flipped, the footprints do not overlap, or the pixel
            sizes are not in the expected ratio.
    """
    if pan.crs != ms.crs:
        raise GridMismatchError(
            f"PAN is in {_short(pan.crs)} and MS in {_short(ms.crs)}, expected one CRS; "
            "warp MS to the CRS of PAN at the MS pixel size, or deliver both in one projection"
        )
    require_north_up("PAN", pan)
    require_north_up("MS", ms)
    y = _pair_axis(pan, ms, ratio, axis=0)
    x = _pair_axis(pan, ms, ratio, axis=1)
    return PairGrid(
        pan=crop_grid(pan, (y.pan_offset, x.pan_offset), (y.pan_size, x.pan_size)),
        ms_shape_yx=(y.ms_size, x.ms_size),
        ratio=ratio,
        phase_yx=(y.phase, x.phase),
        pan_offset_yx=(y.pan_offset, x.pan_offset),
        ms_offset_yx=(y.ms_offset, x.ms_offset),
    )


def needs_resampling(pan: PixelGrid, ms: PixelGrid, ratio: int) -> bool:
    """Whether the pixel sizes are near the ratio, but too far from it for MS to be used as delivered.

    The grids must be north-up and in one CRS; everything else is left to `pair_grids` to judge.
    """
    if pan.crs != ms.crs or not all(_north_up(grid) for grid in (pan, ms)):
        return False
    errors = [abs(_step(ms, axis) / _step(pan, axis) - ratio) for axis in (0, 1)]
    drifts = [error * size for error, size in zip(errors, ms.shape_yx, strict=True)]
    return max(drifts) > MAX_DRIFT_PX and max(errors) <= MAX_RATIO_ERROR * ratio


def aligned_ms_grid(pan: PixelGrid, bounds: tuple[float, float, float, float], ratio: int) -> PixelGrid:
    """The grid of pixels of exactly ``ratio`` x ``ratio`` PAN pixels on PAN's edges whose centres lie in ``bounds``.

    Args:
        pan: The whole PAN raster, north-up.
        bounds: Left, bottom, right, top of MS in the CRS of PAN.
        ratio: MS pixel size over PAN pixel size.

    Raises:
        GridMismatchError: PAN is rotated or flipped, or does not overlap the bounds.
    """
    require_north_up("PAN", pan)
    a, _, c, _, e, f = pan.transform
    left, bottom, right, top = bounds
    spans = (((top - f) / e, (bottom - f) / e), ((left - c) / a, (right - c) / a))  # PAN pixels from PAN's corner
    first, size = [], []
    for (start, stop), pan_size in zip(spans, pan.shape_yx, strict=True):
        low = max(0, math.ceil(start / ratio - 0.5 - _EDGE_TOLERANCE_PX))
        high = min(-(-pan_size // ratio), math.floor(stop / ratio - 0.5 + _EDGE_TOLERANCE_PX) + 1)
        first.append(low)
        size.append(high - low)
    if min(size) < 1:
        raise GridMismatchError(
            f"MS covers {left:.10g}..{right:.10g}, {bottom:.10g}..{top:.10g} in the CRS of PAN, which lies elsewhere; "
            "check that both assets belong to the same acquisition and tile"
        )
    transform = (a * ratio, 0.0, c + a * ratio * first[1], 0.0, e * ratio, f + e * ratio * first[0])
    return PixelGrid(crs=pan.crs, transform=transform, shape_yx=(size[0], size[1]))


def same_pixels(one: PixelGrid, other: PixelGrid) -> bool:
    """Whether two grids are one, but for the rounding of whoever wrote them: their corners lie within 1e-6 px."""
    if one.crs != other.crs or one.shape_yx != other.shape_yx:
        return False
    rows, cols = one.shape_yx
    tolerance = _EDGE_TOLERANCE_PX * math.hypot(one.transform[0], one.transform[3])
    return all(
        math.dist(_place(one, x, y), _place(other, x, y)) <= tolerance for x, y in ((0, 0), (cols, 0), (0, rows))
    )


def _place(grid: PixelGrid, x: float, y: float) -> tuple[float, float]:
    """Where a corner of a pixel lies, CRS units."""
    a, b, c, d, e, f = grid.transform
    return a * x + b * y + c, d * x + e * y + f


def grid_bounds(grid: PixelGrid) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a north-up grid in CRS units."""
    a, _, c, _, e, f = grid.transform
    rows, cols = grid.shape_yx
    return c, f + e * rows, c + a * cols, f


def crop_grid(grid: PixelGrid, offset_yx: tuple[int, int], shape_yx: tuple[int, int]) -> PixelGrid:
    """The part of a grid that begins ``offset_yx`` pixels after its first one."""
    a, b, c, d, e, f = grid.transform
    row, col = offset_yx
    return PixelGrid(
        crs=grid.crs, transform=(a, b, a * col + b * row + c, d, e, d * col + e * row + f), shape_yx=shape_yx
    )


def ms_grid(pair: PairGrid) -> PixelGrid:
    """The cropped MS grid, as the cropped PAN grid, ratio and phase imply it."""
    a, _, c, _, e, f = pair.pan.transform
    # Outer edge of MS pixel 0, counted in PAN pixels from the outer edge of PAN pixel 0.
    edge_y, edge_x = (phase + 0.5 - pair.ratio / 2 for phase in pair.phase_yx)
    transform = (a * pair.ratio, 0.0, c + a * edge_x, 0.0, e * pair.ratio, f + e * edge_y)
    return PixelGrid(crs=pair.pan.crs, transform=transform, shape_yx=pair.ms_shape_yx)


def pixel_centres(grid: PixelGrid) -> tuple[list[float], list[float]]:
    """Map coordinates of the row centres and of the column centres of a north-up grid, in CRS units."""
    a, _, c, _, e, f = grid.transform
    rows, cols = grid.shape_yx
    return [f + e * (row + 0.5) for row in range(rows)], [c + a * (col + 0.5) for col in range(cols)]


def _pair_axis(pan: PixelGrid, ms: PixelGrid, ratio: int, axis: int) -> _AxisPairing:
    pan_origin, pan_step = _origin_and_step(pan, axis)
    ms_origin, ms_step = _origin_and_step(ms, axis)
    true_ratio = ms_step / pan_step
    # From here on: PAN pixel indices, 0 = centre of the first pixel of the whole PAN raster.
    ms_start = (ms_origin - pan_origin) / pan_step - 0.5
    pan_first = max(0, math.ceil(ms_start - _EDGE_TOLERANCE_PX))
    ms_end = ms_start + true_ratio * ms.shape_yx[axis]
    pan_last = min(pan.shape_yx[axis] - 1, math.ceil(ms_end - _EDGE_TOLERANCE_PX) - 1)
    if pan_last < pan_first:
        raise GridMismatchError(_no_overlap(pan, ms, axis))
    ms_first = _holding_pixel(pan_first, ms_start, true_ratio, ms.shape_yx[axis])
    ms_last = _holding_pixel(pan_last, ms_start, true_ratio, ms.shape_yx[axis])
    ms_size = ms_last - ms_first + 1
    _require_ratio(true_ratio, ratio, ms_size, axis)
    middle = (ms_size - 1) / 2
    centre_of_middle = ms_start + true_ratio * (ms_first + middle + 0.5)
    phase = round(centre_of_middle - pan_first - ratio * middle, _PHASE_DECIMALS)
    return _AxisPairing(pan_first, pan_last - pan_first + 1, ms_first, ms_size, phase)


def _holding_pixel(pan_index: int, ms_start: float, true_ratio: float, n_ms: int) -> int:
    """MS pixel whose footprint holds the centre of a PAN pixel."""
    return min(max(math.floor((pan_index - ms_start + _EDGE_TOLERANCE_PX) / true_ratio), 0), n_ms - 1)


def _origin_and_step(grid: PixelGrid, axis: int) -> tuple[float, float]:
    a, _, c, _, e, f = grid.transform
    return (f, e) if axis == 0 else (c, a)


def _step(grid: PixelGrid, axis: int) -> float:
    return _origin_and_step(grid, axis)[1]


def _north_up(grid: PixelGrid) -> bool:
    try:
        require_north_up("", grid)
    except GridMismatchError:
        return False
    return True


def require_north_up(name: str, grid: PixelGrid) -> None:
    """Refuse a raster without pixels or with an impossible, rotated or flipped transform, by ``name``.

    Raises:
        GridMismatchError: It is one of these.
    """
    a, b, c, d, e, f = grid.transform
    sane = all(_SMALLEST_STEP <= abs(step) <= _FARTHEST for step in (a, e)) and max(abs(c), abs(f)) <= _FARTHEST
    if min(grid.shape_yx) < 1 or not sane:
        raise GridMismatchError(
            f"{name} has {grid.shape_yx[0]} x {grid.shape_yx[1]} pixels of size ({abs(e)}, {abs(a)}) at ({c}, {f}), "
            "expected a raster with a geotransform; restore its georeference"
        )
    moved = max(abs(b / a) * grid.shape_yx[0], abs(d / e) * grid.shape_yx[1])
    if moved > MAX_ROTATION_PX:
        raise GridMismatchError(
            f"{name} has a rotated geotransform {grid.transform} (its far corner is {moved:.2f} px off), expected a "
            "north-up one; resample PAN and MS to a north-up grid in the same projection"
        )
    if a < 0 or e > 0:
        raise GridMismatchError(
            f"{name} has a flipped geotransform {grid.transform}, expected rows that run south and columns that run "
            "east; rewrite it north-up, for example with gdalwarp"
        )


def _require_ratio(true_ratio: float, ratio: int, ms_size: int, axis: int) -> None:
    drift_px = abs(true_ratio - ratio) * ms_size
    if drift_px > MAX_DRIFT_PX:
        raise GridMismatchError(
            f"found an MS to PAN pixel ratio of {true_ratio:.6g} along {'yx'[axis]}, expected {ratio}: over the "
            f"{ms_size} MS pixels of the overlap that drifts by {drift_px:.3g} PAN px (allowed: {MAX_DRIFT_PX}); "
            "check the sensor contract, or resample MS to exactly the contract's ratio of the PAN pixel size"
        )


def _no_overlap(pan: PixelGrid, ms: PixelGrid, axis: int) -> str:
    extents = []
    for grid in (pan, ms):
        origin, step = _origin_and_step(grid, axis)
        low, high = sorted((origin, origin + step * grid.shape_yx[axis]))
        extents.append(f"{low:.10g}..{high:.10g}")
    return (
        f"PAN covers {'yx'[axis]} {extents[0]} and MS {extents[1]}, expected an overlap; "
        "check that both assets belong to the same acquisition and tile"
    )


def _short(crs: str) -> str:
    return crs if len(crs) <= 60 else f"{crs[:60]}..."
