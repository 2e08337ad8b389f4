"""What lies over the districts of a simulated scene: terrain, water, through roads, trees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pancrafter.simulate.districts import CAR_PAINTS
from pancrafter.simulate.spectra import VARIANTS, Material
from pancrafter.simulate.surface import PLAIN_TONE, Canvas, Floats, Frame, Rect, curve, entry_of, fractal

_M = Material
_NO_TREES = frozenset({_M.ASPHALT_NEW, _M.ASPHALT_OLD, _M.WATER_CLEAR, _M.WATER_TURBID, _M.WATER_GREEN, _M.POOL,
                       _M.ROOF_RED, _M.ROOF_BROWN, _M.ROOF_SLATE, _M.ROOF_METAL, _M.ROOF_WHITE, _M.ROOF_BLUE,
                       _M.ROOF_GREEN, _M.BITUMEN, _M.TRACK_RED, _M.TURF, _M.SOLAR_PANEL,
                       _M.CONCRETE, _M.GRAVEL})  # fmt: skip


def _through_line(canvas: Canvas, wobble: float) -> list[tuple[float, float]]:
    """A smooth line that crosses the scene from border to border."""
    rng = canvas.rng
    height, width = canvas.shape_yx
    angle, offset = rng.random() * np.pi, 0.35 * min(canvas.shape_yx) * rng.uniform(-1, 1)
    reach = 0.75 * float(np.hypot(height, width))
    along = np.linspace(-reach, reach, 9)
    aside = offset + wobble * min(canvas.shape_yx) * rng.standard_normal(9)
    cos, sin = np.cos(angle), np.sin(angle)
    return curve(
        [(width / 2 + a * cos - b * sin, height / 2 + a * sin + b * cos) for a, b in zip(along, aside, strict=True)],
        240,
    )


def _mirrored(index: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Indices folded back at both borders into 0..size-1."""
    return np.asarray(np.clip(size - 1 - np.abs(size - 1 - np.abs(index)), 0, size - 1))


def bend(canvas: Canvas, amplitude_px: float) -> None:
    """Displace everything drawn so far along a fractal field, so that natural borders are not straight."""
    fields = [fractal(canvas.rng, canvas.shape_yx, 2.1) for _ in range(2)]
    dy, dx = (np.rint(amplitude_px * field).astype(int) for field in fields)
    rows = _mirrored(np.arange(canvas.shape_yx[0])[:, None] + dy, canvas.shape_yx[0])
    columns = _mirrored(np.arange(canvas.shape_yx[1])[None, :] + dx, canvas.shape_yx[1])
    for image in (canvas.entry, canvas.tone, canvas.rows, canvas.shadow):
        image.paste(Image.fromarray(np.asarray(image)[rows, columns]))
    for group in canvas.trees:
        row = np.clip(np.rint(group[:, 1]).astype(int), 0, canvas.shape_yx[0] - 1)
        column = np.clip(np.rint(group[:, 0]).astype(int), 0, canvas.shape_yx[1] - 1)
        group[:, 0] -= dx[row, column]
        group[:, 1] -= dy[row, column]


def _overwrite(canvas: Canvas, mask: NDArray[np.bool_], material: Material, variant: int = 0) -> None:
    """Give a material to every pixel of a mask."""
    stencil = Image.fromarray(mask)
    for image, value in ((canvas.entry, entry_of(material, variant)), (canvas.tone, PLAIN_TONE), (canvas.rows, 0)):
        image.paste(value, mask=stencil)
    canvas.shadow.paste(0, mask=stencil)


def lay_sea(canvas: Canvas) -> None:
    """A coast with beach, wet sand and surf, along a fractal line."""
    rng = canvas.rng
    height, width = canvas.shape_yx
    angle = rng.random() * 2 * np.pi
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = ((xx - width / 2) * np.cos(angle) + (yy - height / 2) * np.sin(angle)) / min(canvas.shape_yx)
    level = slope + 0.12 * fractal(rng, canvas.shape_yx, 1.9) + rng.uniform(-0.1, 0.25)
    depth = level * min(canvas.shape_yx)
    beach = canvas.px(8 + 30 * rng.random(), 1.5)
    water = canvas.pick((_M.WATER_CLEAR, _M.WATER_TURBID, _M.WATER_GREEN))
    _overwrite(canvas, depth > -beach, canvas.pick((_M.SAND_DRY, _M.SAND_DRY, _M.ROCK)))
    _overwrite(canvas, depth > -0.25 * beach, _M.SAND_WET)
    _overwrite(canvas, depth > 0, _M.WATER_TURBID)
    foam = (depth > 0) & (depth < 1.2 * beach) & (np.sin(depth / canvas.px(4, 0.8)) > 0.75)
    _overwrite(canvas, foam & (fractal(rng, canvas.shape_yx, 1.2) > -0.2), _M.ROOF_WHITE, 1)
    _overwrite(canvas, depth > 1.3 * beach, water)
    for _ in range(int(rng.integers(0, 10))):
        _boat(canvas, depth)


def _boat(canvas: Canvas, depth: Floats) -> None:
    rng = canvas.rng
    y, x = int(rng.random() * canvas.shape_yx[0]), int(rng.random() * canvas.shape_yx[1])
    if depth[y, x] < canvas.px(25, 4):
        return
    frame = Frame((y, x), rng.random() * 2 * np.pi)
    long, wide = canvas.px(2.5 + 9 * rng.random() ** 3, 1.2), canvas.px(1 + 1.2 * rng.random(), 0.8)
    if rng.random() < 0.5:
        for side in (-0.12, 0.0, 0.12):
            canvas.line(frame.points([(-long, 0), (-9 * long, 9 * side * long)]), 0.4 * wide, _M.WATER_TURBID, tone=1.5)
    hull = [(-long, -wide), (0.4 * long, -wide), (long, 0), (0.4 * long, wide), (-long, wide)]
    canvas.paint(frame.points(hull), _M.ROOF_WHITE)


def lay_lakes(canvas: Canvas) -> None:
    """Standing water in the hollows of a fractal field, with a rim."""
    level = fractal(canvas.rng, canvas.shape_yx, 2.2, 8)
    threshold = float(np.quantile(level, canvas.rng.uniform(0.86, 0.97)))
    _overwrite(canvas, level > threshold - 0.05, canvas.pick((_M.SHRUB, _M.SAND_WET, _M.SOIL_DARK)))
    _overwrite(canvas, level > threshold, canvas.pick((_M.WATER_CLEAR, _M.WATER_GREEN, _M.WATER_TURBID)))


def lay_river(canvas: Canvas) -> None:
    """A river from border to border, with its banks."""
    path = _through_line(canvas, 0.07)
    width = canvas.px(10 + 40 * canvas.rng.random(), 2.0)
    canvas.line(path, width * 1.4, canvas.pick((_M.SHRUB, _M.GRASS, _M.GRAVEL, _M.SAND_WET)))
    canvas.line(path, width, canvas.pick((_M.WATER_TURBID, _M.WATER_GREEN, _M.WATER_CLEAR)))


def lay_roads(canvas: Canvas, count: int) -> None:
    """Roads from border to border, with verges, marks and traffic."""
    for _ in range(count):
        path = _through_line(canvas, 0.03)
        width = canvas.px(7 + 12 * canvas.rng.random(), 1.0)
        canvas.line(path, width + canvas.px(4), canvas.pick((_M.GRASS, _M.GRAVEL, _M.SOIL_PALE)))
        canvas.line(path, width, canvas.pick((_M.ASPHALT_OLD, _M.ASPHALT_NEW, _M.CONCRETE)))
        if canvas.px(0.3) > 0.3:
            for start in range(0, len(path) - 2, 3):
                canvas.line(path[start : start + 2], canvas.px(0.3), _M.ROOF_WHITE)
            _traffic(canvas, path, width)


def _traffic(canvas: Canvas, path: Sequence[tuple[float, float]], width: float) -> None:
    rng = canvas.rng
    long, wide = canvas.px(2.3), canvas.px(0.9, 0.6)
    for (x0, y0), (x1, y1) in pairwise(path):
        if rng.random() < 0.85:
            continue
        frame = Frame((y0, x0), float(np.arctan2(y1 - y0, x1 - x0)))
        side = (0.25 if rng.random() < 0.5 else -0.25) * width
        length = long * (3 if rng.random() < 0.15 else 1)
        box = frame.points(Rect(-length, side - wide, length, side + wide).corners())
        canvas.cast(box, 1.6)
        canvas.paint(box, canvas.pick(CAR_PAINTS))


def grow_trees(canvas: Canvas, entry: NDArray[np.uint8], sun: Floats) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Put crowns with a lit and a shaded side on the scene, and their shadows beside them.

    Each pixel belongs to its nearest stem; inside that stem's radius it is crown. Returns the new entries, a tone
    factor and the share of direct sunlight.
    """
    tone = np.ones(canvas.shape_yx, dtype=np.float32)
    points = np.concatenate([np.empty((0, 3)), *canvas.trees])
    height, width = canvas.shape_yx
    column, row = np.rint(points[:, 0]).astype(int), np.rint(points[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    points, column, row = points[inside], column[inside], row[inside]
    barren = np.isin(entry[row, column] // VARIANTS, [int(m) for m in _NO_TREES])
    points, column, row = points[~barren], column[~barren], row[~barren]
    if not len(points):
        return entry, tone, sun
    stems = np.ones(canvas.shape_yx, dtype=bool)
    stems[row, column] = False
    number = np.zeros(canvas.shape_yx, dtype=np.int32)
    number[row, column] = np.arange(len(points))
    near_y, near_x = ndimage.distance_transform_edt(stems, return_distances=False, return_indices=True)
    nearest = number[near_y, near_x]
    lookup = points.astype(np.float32)
    yy, xx = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    radius = lookup[nearest, 2]
    dx, dy = (xx - lookup[nearest, 0]) / radius, (yy - lookup[nearest, 1]) / radius
    ragged = 1 + 0.18 * fractal(canvas.rng, canvas.shape_yx, 0.6)
    crown = (dx**2 + dy**2) < ragged
    toward_sun = dx * np.float32(np.sin(canvas.sun_azimuth)) - dy * np.float32(np.cos(canvas.sun_azimuth))
    kinds = np.where(canvas.rng.random(len(points)) < canvas.rng.random(), _M.DECIDUOUS, _M.CONIFER) * VARIANTS
    kinds = (kinds + canvas.rng.integers(0, VARIANTS, len(points))).astype(np.uint8)
    brightness = canvas.rng.lognormal(0, 0.16, len(points)).astype(np.float32)
    grown = np.where(crown, kinds[nearest], entry).astype(np.uint8)
    tone[crown] = (brightness[nearest] * (0.95 + 0.5 * toward_sun))[crown].clip(0.25, 1.8)
    shade = np.zeros(canvas.shape_yx, dtype=bool)
    length = 0.9 * float(np.median(points[:, 2])) * canvas.shadow_per_height * 1.3
    for step in np.linspace(0.3, 1.0, 4) * length:
        shift = (round(float(np.cos(canvas.sun_azimuth) * step)), round(float(-np.sin(canvas.sun_azimuth) * step)))
        shade |= _moved(crown, shift)
    lit = np.where(shade & ~crown, np.minimum(sun, 0.15), np.where(crown, 1.0, sun))
    return grown, tone, lit.astype(np.float32)


def _moved(mask: NDArray[np.bool_], shift_yx: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask moved by whole pixels, False coming in at the border."""
    result = np.zeros_like(mask)
    (dy, dx), (height, width) = shift_yx, mask.shape
    if abs(dy) < height and abs(dx) < width:
        result[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
            max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
        ]
    return result


def hillshade(canvas: Canvas, relief: float) -> tuple[Floats, Floats]:
    """Fractal terrain: normalised height, and how bright a slope is compared with flat ground."""
    height = fractal(canvas.rng, canvas.shape_yx, 2.0)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(height, 1.2) * min(canvas.shape_yx) * 0.12)
    toward_sun = -(slope_x * np.sin(canvas.sun_azimuth) - slope_y * np.cos(canvas.sun_azimuth))
    shade = 1 + relief * toward_sun / (np.abs(toward_sun).std() * 2.5 + 1e-6)
    return height, np.clip(shade, 0.25, 1.7).astype(np.float32)


def lay_mountains(canvas: Canvas, height: Floats) -> None:
    """Rock and snow above the tree line."""
    rough = height + 0.25 * fractal(canvas.rng, canvas.shape_yx, 1.0)
    line = canvas.rng.uniform(0.1, 0.9)
    _overwrite(canvas, rough > line, _M.SHRUB)
    _overwrite(canvas, rough > line + 0.25, _M.ROCK, int(canvas.rng.integers(VARIANTS)))
    _overwrite(canvas, rough > line + canvas.rng.uniform(0.5, 1.6), _M.SNOW)
    for number, group in enumerate(canvas.trees):
        column = np.clip(np.rint(group[:, 0]).astype(int), 0, canvas.shape_yx[1] - 1)
        row = np.clip(np.rint(group[:, 1]).astype(int), 0, canvas.shape_yx[0] - 1)
        canvas.trees[number] = group[rough[row, column] < line + 0.15]


def dunes(canvas: Canvas) -> Floats:
    """Brightness of dune slopes: warped ridges across the wind."""
    rng = canvas.rng
    angle = rng.random() * np.pi
    yy, xx = np.mgrid[0 : canvas.shape_yx[0], 0 : canvas.shape_yx[1]].astype(np.float32)
    period = canvas.px(25 + 60 * rng.random(), 8)
    phase = (xx * np.cos(angle) + yy * np.sin(angle)) / period + 1.3 * fractal(rng, canvas.shape_yx, 2.0)
    return np.asarray(1 + 0.12 * np.sin(2 * np.pi * phase) ** 3, dtype=np.float32)
