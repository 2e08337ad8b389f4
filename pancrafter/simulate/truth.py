"""Procedural surface scenes: what lies on the ground, as reflectance, before any sensor looks at it.

A scene is drawn as layers: districts (fields, town, forest, desert, ...) in a rotated partition of the plane, then
water, through roads, trees and vehicles; each pixel gets a material, a second material it is mixed with, a tone, and a
share of direct sunlight. Only then the layers become reflectance, band by band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft, ndimage

from pancrafter.simulate.spectra import VARIANTS, Material, scene_library, smooth_curves

Floats = NDArray[np.float32]
Rng = np.random.Generator

_M = Material
_PLAIN_TONE = 128
_LEAST_CROWN_PX = 0.6

# ----------------------------------------------------------------------------------------------------------------------
# Material behaviour: what each is mixed with, how much, and how rough it looks.

_PARTNER: dict[Material, tuple[Material, float, float, float]] = {
    # material: (mixed with, mean share, spread of the share, texture amplitude)
    _M.GRASS: (_M.DRY_GRASS, 0.22, 0.25, 0.10),
    _M.DRY_GRASS: (_M.SOIL_BROWN, 0.30, 0.30, 0.10),
    _M.DECIDUOUS: (_M.CONIFER, 0.20, 0.25, 0.22),
    _M.CONIFER: (_M.SHRUB, 0.15, 0.20, 0.24),
    _M.SHRUB: (_M.SOIL_PALE, 0.30, 0.35, 0.18),
    _M.CROP_GREEN: (_M.SOIL_BROWN, 0.10, 0.12, 0.07),
    _M.CROP_YOUNG: (_M.SOIL_DARK, 0.30, 0.20, 0.08),
    _M.CROP_RIPE: (_M.SOIL_BROWN, 0.12, 0.14, 0.07),
    _M.RAPESEED: (_M.CROP_GREEN, 0.20, 0.20, 0.07),
    _M.SOIL_BROWN: (_M.SOIL_DARK, 0.30, 0.30, 0.08),
    _M.SOIL_RED: (_M.SOIL_PALE, 0.20, 0.25, 0.08),
    _M.SOIL_DARK: (_M.SOIL_BROWN, 0.20, 0.25, 0.08),
    _M.SOIL_PALE: (_M.ROCK, 0.25, 0.30, 0.08),
    _M.BURNT: (_M.SOIL_DARK, 0.35, 0.35, 0.12),
    _M.SAND_DRY: (_M.SOIL_PALE, 0.25, 0.25, 0.06),
    _M.SAND_WET: (_M.SAND_DRY, 0.15, 0.20, 0.05),
    _M.ROCK: (_M.SOIL_PALE, 0.30, 0.35, 0.18),
    _M.GRAVEL: (_M.SOIL_BROWN, 0.20, 0.25, 0.09),
    _M.ASPHALT_NEW: (_M.ASPHALT_OLD, 0.20, 0.20, 0.05),
    _M.ASPHALT_OLD: (_M.ASPHALT_NEW, 0.20, 0.25, 0.06),
    _M.CONCRETE: (_M.ASPHALT_OLD, 0.15, 0.20, 0.06),
    _M.PAVING: (_M.CONCRETE, 0.25, 0.25, 0.06),
    _M.ROOF_RED: (_M.ROOF_BROWN, 0.25, 0.25, 0.07),
    _M.ROOF_BROWN: (_M.ROOF_SLATE, 0.20, 0.20, 0.07),
    _M.ROOF_SLATE: (_M.ROOF_BROWN, 0.10, 0.15, 0.06),
    _M.ROOF_BLUE: (_M.ROOF_METAL, 0.12, 0.12, 0.04),
    _M.ROOF_GREEN: (_M.ROOF_METAL, 0.12, 0.12, 0.04),
    _M.ROOF_WHITE: (_M.CONCRETE, 0.15, 0.18, 0.04),
    _M.ROOF_METAL: (_M.ROOF_BROWN, 0.10, 0.15, 0.05),
    _M.BITUMEN: (_M.GRAVEL, 0.20, 0.22, 0.06),
    _M.SOLAR_PANEL: (_M.ROOF_METAL, 0.03, 0.03, 0.03),
    _M.PLASTIC_SHEET: (_M.CROP_GREEN, 0.10, 0.10, 0.05),
    _M.TRACK_RED: (_M.SOIL_RED, 0.10, 0.10, 0.03),
    _M.WATER_CLEAR: (_M.WATER_GREEN, 0.20, 0.20, 0.05),
    _M.WATER_TURBID: (_M.WATER_GREEN, 0.30, 0.30, 0.04),
    _M.WATER_GREEN: (_M.WATER_TURBID, 0.20, 0.25, 0.05),
    _M.POOL: (_M.PAVING, 0.02, 0.02, 0.03),
    _M.SNOW: (_M.ROCK, 0.02, 0.06, 0.03),
}
_UNMIXED = (0.0, 0.0, 0.04)

_CROPS = (_M.CROP_GREEN, _M.CROP_YOUNG, _M.CROP_RIPE, _M.RAPESEED, _M.SOIL_BROWN, _M.SOIL_DARK, _M.SOIL_RED,
          _M.DRY_GRASS, _M.GRASS, _M.SOIL_PALE, _M.PLASTIC_SHEET)  # fmt: skip
_HOUSE_ROOFS = (_M.ROOF_RED, _M.ROOF_RED, _M.ROOF_BROWN, _M.ROOF_SLATE, _M.ROOF_METAL, _M.BITUMEN)
_HALL_ROOFS = (_M.ROOF_WHITE, _M.ROOF_METAL, _M.ROOF_METAL, _M.ROOF_BLUE, _M.BITUMEN, _M.CONCRETE, _M.ROOF_GREEN,
               _M.GRAVEL)  # fmt: skip
_TOWER_ROOFS = (_M.CONCRETE, _M.GRAVEL, _M.BITUMEN, _M.ROOF_WHITE, _M.ROOF_METAL, _M.PAVING)
_CAR_PAINTS = (_M.ROOF_WHITE, _M.ROOF_WHITE, _M.ROOF_METAL, _M.BITUMEN, _M.BITUMEN, _M.PAINT_RED, _M.PAINT_BLUE,
               _M.ROOF_SLATE)  # fmt: skip
_WATERS = (_M.WATER_CLEAR, _M.WATER_TURBID, _M.WATER_GREEN, _M.POOL)
_NO_TREES = frozenset({_M.ASPHALT_NEW, _M.ASPHALT_OLD, _M.WATER_CLEAR, _M.WATER_TURBID, _M.WATER_GREEN, _M.POOL,
                       _M.ROOF_RED, _M.ROOF_BROWN, _M.ROOF_SLATE, _M.ROOF_METAL, _M.ROOF_WHITE, _M.ROOF_BLUE,
                       _M.ROOF_GREEN, _M.BITUMEN, _M.TRACK_RED, _M.TURF, _M.SOLAR_PANEL,
                       _M.CONCRETE, _M.GRAVEL})  # fmt: skip

_STYLES: dict[str, dict[str, float]] = {
    "city": {"housing": 4, "centre": 4, "works": 2, "park": 1.5, "fields": 0.3},
    "suburb": {"housing": 6, "centre": 1, "works": 1, "park": 2, "fields": 2, "forest": 1.5},
    "farmland": {"fields": 9, "housing": 1, "forest": 1.5, "park": 0.5, "orchard": 1, "works": 0.4},
    "coast": {"housing": 2, "park": 2, "fields": 2, "bare": 1.5, "works": 1, "forest": 1, "centre": 1},
    "forest": {"forest": 8, "fields": 1.5, "park": 1.5, "housing": 0.5, "bare": 0.7},
    "desert": {"bare": 8, "housing": 0.8, "orchard": 0.5, "works": 0.5, "fields": 0.6},
    "mountain": {"bare": 2, "forest": 4, "park": 3, "fields": 0.7, "housing": 0.3},
    "industry": {"works": 7, "housing": 1.5, "centre": 1, "bare": 1, "park": 1},
}


def _behaviour_tables() -> tuple[NDArray[np.uint8], Floats, Floats, Floats]:
    partner = np.arange(len(_M), dtype=np.uint8)
    share, spread, rough = (np.zeros(len(_M), dtype=np.float32) for _ in range(3))
    share[:], spread[:], rough[:] = _UNMIXED
    for material, (other, mean, deviation, texture) in _PARTNER.items():
        partner[material], share[material], spread[material], rough[material] = other, mean, deviation, texture
    return partner, share, spread, rough


# ----------------------------------------------------------------------------------------------------------------------
# Fields of noise.


def fractal(rng: Rng, shape_yx: tuple[int, int], exponent: float, smallest_px: float = 0.0) -> Floats:
    """Random field (y, x) of zero mean and unit deviation whose amplitude falls as frequency to ``-exponent``.

    ``smallest_px`` damps structures below that wavelength. Drawn on a padded grid, so opposite borders are unrelated.
    """
    padded = tuple(fft.next_fast_len(n + n // 4 + 8, real=True) for n in shape_yx)
    noise = rng.standard_normal(padded, dtype=np.float32)
    fy = np.fft.fftfreq(padded[0]).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(padded[1]).astype(np.float32)[None, :]
    squared = fy**2 + fx**2
    squared[0, 0] = np.inf
    gain = squared ** np.float32(-exponent / 2)
    if smallest_px > 0:
        gain *= np.exp(-squared * np.float32(smallest_px**2))
        gain[0, 0] = 0
    values = fft.irfft2(fft.rfft2(noise) * gain, s=padded)[: shape_yx[0], : shape_yx[1]]
    return np.asarray((values - values.mean()) / (values.std() + 1e-12), dtype=np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# The surface being drawn.


@dataclass(frozen=True)
class _Frame:
    """A rotated coordinate system (u, v) in pixels around the scene's centre."""

    centre_yx: tuple[float, float]
    angle: float

    def points(self, uv: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Pixel coordinates (x, y) of points given as (u, v)."""
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return [(self.centre_yx[1] + u * cos - v * sin, self.centre_yx[0] + u * sin + v * cos) for u, v in uv]


@dataclass(frozen=True)
class _Rect:
    """A rectangle in the coordinates of a frame."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        return self.u1 - self.u0, self.v1 - self.v0

    @property
    def centre(self) -> tuple[float, float]:
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    def inset(self, margin: float) -> _Rect:
        """The rectangle with a margin taken off on all sides."""
        return _Rect(self.u0 + margin, self.v0 + margin, self.u1 - margin, self.v1 - margin)

    def corners(self) -> list[tuple[float, float]]:
        return [(self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1)]


@dataclass
class _Canvas:
    """Layers under construction: entry of the library, tone, row pattern and shadow, each one byte a pixel."""

    rng: Rng
    shape_yx: tuple[int, int]
    gsd_m: float
    sun_azimuth: float
    shadow_per_height: float
    entry: Image.Image = field(init=False)
    tone: Image.Image = field(init=False)
    rows: Image.Image = field(init=False)
    shadow: Image.Image = field(init=False)
    row_table: list[tuple[float, float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0, 0.0)])
    trees: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = (self.shape_yx[1], self.shape_yx[0])
        self.entry = Image.new("L", size, _entry(_M.GRASS, 0))
        self.tone = Image.new("L", size, _PLAIN_TONE)
        self.rows = Image.new("L", size, 0)
        self.shadow = Image.new("L", size, 0)
        self._draws = [ImageDraw.Draw(image) for image in (self.entry, self.tone, self.rows, self.shadow)]

    def px(self, metres: float, least: float = 0.0) -> float:
        """Metres as pixels, never below ``least``."""
        return max(metres / self.gsd_m, least)

    def pick(self, options: Sequence[Material]) -> Material:
        return options[int(self.rng.random() * len(options))]

    def visible(self, points: Sequence[tuple[float, float]], margin: float = 0.0) -> bool:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        return (
            max(xs) > -margin
            and max(ys) > -margin
            and min(xs) < self.shape_yx[1] + margin
            and min(ys) < self.shape_yx[0] + margin
        )

    def paint(
        self,
        points: Sequence[tuple[float, float]],
        material: Material,
        *,
        variant: int | None = None,
        tone: float = 1.0,
        rows: int = 0,
    ) -> None:
        """Fill a polygon of pixel points (x, y) with a material; what lay there, shadow included, is covered."""
        chosen = int(self.rng.random() * VARIANTS) if variant is None else variant
        values = (_entry(material, chosen), int(np.clip(tone * _PLAIN_TONE, 1, 255)), rows, 0)
        for draw, value in zip(self._draws, values, strict=True):
            draw.polygon(points, fill=value)

    def disc(self, x: float, y: float, radius: float, material: Material, tone: float = 1.0) -> None:
        angles = np.linspace(0, 2 * np.pi, max(8, int(radius * 3)), endpoint=False)
        self.paint(
            list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)), material, tone=tone
        )

    def line(
        self, points: Sequence[tuple[float, float]], width_px: float, material: Material, *, tone: float = 1.0
    ) -> None:
        """Draw a polyline of pixel points as a ribbon with round joints (PIL's own joints leave spikes)."""
        values = (_entry(material, int(self.rng.random() * VARIANTS)), int(tone * _PLAIN_TONE), 0, 0)
        if width_px < 2.5:
            for draw, value in zip(self._draws, values, strict=True):
                draw.line(points, fill=value, width=max(1, round(width_px)))
            return
        radius = width_px / 2
        for (x0, y0), (x1, y1) in pairwise(points):
            length = float(np.hypot(x1 - x0, y1 - y0)) + 1e-9
            nx, ny = radius * (y0 - y1) / length, radius * (x1 - x0) / length
            quad = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
            joint = (x1 - radius, y1 - radius, x1 + radius, y1 + radius)
            for draw, value in zip(self._draws, values, strict=True):
                draw.polygon(quad, fill=value)
                if len(points) > 2:
                    draw.ellipse(joint, fill=value)

    def cast(self, points: Sequence[tuple[float, float]], height_m: float) -> None:
        """Darken where a prism over ``points`` throws its shadow."""
        length = self.px(height_m) * self.shadow_per_height
        dx, dy = -np.sin(self.sun_azimuth) * length, np.cos(self.sun_azimuth) * length
        moved = [(x + dx, y + dy) for x, y in points]
        draw = self._draws[3]
        draw.polygon(moved, fill=255)
        for a, b, c, d in zip(points, [*points[1:], points[0]], [*moved[1:], moved[0]], moved, strict=True):
            draw.polygon([a, b, c, d], fill=255)

    def row_pattern(self, angle: float, period_px: float, amplitude: float) -> int:
        """Register stripes (crop rows, tile courses) and return their number; 0 (none) when the table is full."""
        if period_px < 1.6 or len(self.row_table) > 250:
            return 0
        turn = 2 * np.pi / period_px
        self.row_table.append((-np.sin(angle) * turn, np.cos(angle) * turn, amplitude, self.rng.random() * 6.28))
        return len(self.row_table) - 1

    def plant(self, xyr: NDArray[np.float64]) -> None:
        """Add trees given as rows of (x, y, crown radius), pixels."""
        self.trees.append(xyr)


def _entry(material: Material, variant: int) -> int:
    return int(material) * VARIANTS + variant


def _partition(rng: Rng, rect: _Rect, target: float, *, spread: float = 0.5) -> Iterator[_Rect]:
    """Cut a rectangle again and again across its longer side until its parts are about ``target`` pixels wide."""
    stack = [rect]
    while stack:
        part = stack.pop()
        width, height = part.size
        limit = target * (1 + spread * rng.random())
        if max(width, height) < 1.5 * limit or (min(width, height) < 0.6 * limit and max(width, height) < 2.5 * limit):
            yield part
            continue
        cut = 0.35 + 0.3 * rng.random()
        if width > height:
            middle = part.u0 + cut * width
            stack += [_Rect(part.u0, part.v0, middle, part.v1), _Rect(middle, part.v0, part.u1, part.v1)]
        else:
            middle = part.v0 + cut * height
            stack += [_Rect(part.u0, part.v0, part.u1, middle), _Rect(part.u0, middle, part.u1, part.v1)]


# ----------------------------------------------------------------------------------------------------------------------
# Things that stand in districts.


def _house(canvas: _Canvas, frame: _Frame, rect: _Rect, height_m: float, roof: Material) -> None:
    """A building with shadow and either a ridged or a flat roof."""
    points = frame.points(rect.corners())
    if not canvas.visible(points, 20):
        return
    canvas.cast(points, height_m)
    width, depth = rect.size
    variant = int(canvas.rng.random() * VARIANTS)
    flat = height_m > 9 or roof in _HALL_ROOFS[3:] or min(width, depth) < 3
    if flat:
        _flat_roof(canvas, frame, rect, roof, variant)
        return
    middle_u, middle_v = rect.centre
    halves = (
        (_Rect(rect.u0, rect.v0, rect.u1, middle_v), -np.pi / 2),
        (_Rect(rect.u0, middle_v, rect.u1, rect.v1), np.pi / 2),
    ) if width >= depth else (
        (_Rect(rect.u0, rect.v0, middle_u, rect.v1), np.pi),
        (_Rect(middle_u, rect.v0, rect.u1, rect.v1), 0.0),
    )  # fmt: skip
    for half, facing in halves:
        direction = frame.angle + facing
        lit = np.cos(direction) * np.sin(canvas.sun_azimuth) - np.sin(direction) * np.cos(canvas.sun_azimuth)
        canvas.paint(frame.points(half.corners()), roof, variant=variant, tone=1.0 + 0.33 * float(lit))


def _flat_roof(canvas: _Canvas, frame: _Frame, rect: _Rect, roof: Material, variant: int) -> None:
    """A flat roof with a parapet and, when large, machines, skylights, or solar panels."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), roof, variant=variant, tone=0.85)
    inner = rect.inset(canvas.px(0.5, 0.6))
    if min(inner.size) < 2:
        return
    stripes = 0
    if rng.random() < 0.35:
        stripes = canvas.row_pattern(frame.angle + (np.pi / 2 if rng.random() < 0.5 else 0), canvas.px(2.2), 0.12)
    canvas.paint(frame.points(inner.corners()), roof, variant=variant, tone=0.95 + 0.2 * rng.random(), rows=stripes)
    width, depth = inner.size
    for _ in range(min(30, int(width * depth * canvas.gsd_m**2 / 120 * rng.random()))):
        side = canvas.px(1.5 + 2.5 * rng.random())
        if side < 0.8:
            break
        u, v = inner.u0 + rng.random() * (width - side), inner.v0 + rng.random() * (depth - side)
        box = frame.points(_Rect(u, v, u + side, v + side * (0.5 + rng.random())).corners())
        canvas.cast(box, 1.5)
        canvas.paint(box, canvas.pick((_M.ROOF_METAL, _M.CONCRETE, _M.SOLAR_PANEL, _M.BITUMEN)))


def _cars(canvas: _Canvas, frame: _Frame, rect: _Rect, share: float, *, along_u: bool) -> None:
    """Rows of parked or driving cars in a rectangle; left out where they would be far below a pixel."""
    if canvas.gsd_m > 1.5:
        return
    rng = canvas.rng
    length, width = canvas.px(4.4), canvas.px(1.8, 1.0)
    step_u, step_v = (length * 1.35, width * 1.6) if along_u else (width * 1.5, length * 2.3)
    for v in np.arange(rect.v0, rect.v1 - (width if along_u else length), step_v):
        for u in np.arange(rect.u0, rect.u1 - (length if along_u else width), step_u):
            if rng.random() > share:
                continue
            size = (length, width) if along_u else (width, length)
            jitter = 0.15 * width * rng.standard_normal()
            box = frame.points(_Rect(u, v + jitter, u + size[0], v + jitter + size[1]).corners())
            if canvas.visible(box):
                canvas.cast(box, 1.3)
                canvas.paint(box, canvas.pick(_CAR_PAINTS))


def _scatter_trees(canvas: _Canvas, frame: _Frame, rect: _Rect, per_hectare: float, radius_m: float) -> None:
    """Trees at random places of a rectangle, radii spread around ``radius_m``."""
    rng = canvas.rng
    width, height = rect.size
    if width <= 0 or height <= 0:
        return
    thinned = min(1.0, radius_m / canvas.gsd_m / _LEAST_CROWN_PX) ** 2  # one crown pixel stands for many small trees
    count = rng.poisson(min(4000.0, thinned * per_hectare * width * height * canvas.gsd_m**2 / 1e4))
    radius = np.maximum(radius_m / canvas.gsd_m * rng.lognormal(0, 0.35, count), _LEAST_CROWN_PX)
    u, v = rect.u0 + rng.random(count) * width, rect.v0 + rng.random(count) * height
    canvas.plant(np.column_stack([np.array(frame.points(list(zip(u, v, strict=True)))).reshape(-1, 2), radius]))


# ----------------------------------------------------------------------------------------------------------------------
# Districts.


def _fields(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Agricultural plots with sharp borders, rows, tracks and hedges."""
    rng = canvas.rng
    turned = _Frame(frame.centre_yx, frame.angle + rng.normal(0, 0.02))
    palette = [canvas.pick(_CROPS) for _ in range(4)]
    plots = canvas.px(30 + 90 * rng.random(), 12)
    for plot in _partition(rng, rect, plots, spread=1.5):
        border = canvas.px(0.5 + 2.5 * rng.random(), 0.3)
        points = turned.points(plot.inset(border).corners())
        if not canvas.visible(points):
            continue
        angle = turned.angle + (np.pi / 2 if rng.random() < 0.4 else 0)
        rows = canvas.row_pattern(angle, canvas.px(1.0 + 3.5 * rng.random() ** 2), 0.04 + 0.14 * rng.random())
        canvas.paint(points, canvas.pick(palette), tone=0.85 + 0.3 * rng.random(), rows=rows)
        _tramlines(canvas, turned, plot, across=angle != turned.angle)
        if rng.random() < 0.35:
            edge = _Rect(plot.u0 - border, plot.v0, plot.u0 + border, plot.v1)
            _scatter_trees(canvas, turned, edge.inset(-0.5), 250, 2.2)


def _tramlines(canvas: _Canvas, frame: _Frame, plot: _Rect, *, across: bool) -> None:
    """Wheel tracks of a tractor: thin darker lines at regular distance."""
    rng = canvas.rng
    if rng.random() < 0.5 or canvas.gsd_m > 1.5:
        return
    step = canvas.px(12 + 12 * rng.random())
    low, high = (plot.u0, plot.u1) if across else (plot.v0, plot.v1)
    for place in np.arange(low + step / 2, high, step):
        ends = [(place, plot.v0), (place, plot.v1)] if across else [(plot.u0, place), (plot.u1, place)]
        canvas.line(frame.points(ends), canvas.px(0.5), _M.SOIL_BROWN, tone=0.8)


def _orchard(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Trees on a regular grid over grass or soil."""
    rng = canvas.rng
    for plot in _partition(rng, rect, canvas.px(90, 24)):
        canvas.paint(
            frame.points(plot.inset(canvas.px(2)).corners()), canvas.pick((_M.GRASS, _M.SOIL_BROWN, _M.SOIL_PALE))
        )
        step_u, step_v = canvas.px(4 + 4 * rng.random(), 2.2), canvas.px(4 + 3 * rng.random(), 2.2)
        inner = plot.inset(canvas.px(4))
        u, v = np.meshgrid(np.arange(inner.u0, inner.u1, step_u), np.arange(inner.v0, inner.v1, step_v))
        if not u.size:
            continue
        keep = rng.random(u.size) < 0.95
        uv = np.column_stack([u.ravel(), v.ravel()])[keep] + rng.normal(0, 0.06 * step_u, (int(keep.sum()), 2))
        xy = np.array(frame.points([(a, b) for a, b in uv])).reshape(-1, 2)
        canvas.plant(np.column_stack([xy, rng.normal(0.36, 0.04, len(xy)).clip(0.2) * min(step_u, step_v)]))


def _housing(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Streets with houses, gardens, pools, parked cars and street trees."""
    rng = canvas.rng
    roofs = [canvas.pick(_HOUSE_ROOFS) for _ in range(3)]
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_OLD, _M.ASPHALT_NEW, _M.ASPHALT_OLD)))
    street, walk = canvas.px(6 + 3 * rng.random(), 1.0), canvas.px(1.6)
    lot = canvas.px(15 + 12 * rng.random(), 4.0)
    for block in _partition(rng, rect, canvas.px(55 + 40 * rng.random(), 10)):
        if not canvas.visible(frame.points(block.corners()), 10):
            continue
        outer = block.inset(street / 2)
        if min(outer.size) < 3:
            continue
        canvas.paint(frame.points(outer.corners()), _M.CONCRETE, tone=0.9)
        _cars(canvas, frame, _Rect(block.u0, outer.v0 - canvas.px(2), block.u1, outer.v0), 0.4, along_u=True)
        garden = outer.inset(walk)
        canvas.paint(frame.points(garden.corners()), canvas.pick((_M.GRASS, _M.GRASS, _M.DRY_GRASS, _M.SOIL_PALE)))
        for plot in _partition(rng, garden, lot, spread=0.2):
            _lot(canvas, frame, plot, roofs)
        _scatter_trees(canvas, frame, garden, 45 * rng.random(), 2.4)


def _lot(canvas: _Canvas, frame: _Frame, plot: _Rect, roofs: Sequence[Material]) -> None:
    """One garden with its house."""
    rng = canvas.rng
    width, depth = plot.size
    canvas.paint(
        frame.points(plot.inset(canvas.px(0.4, 0.2)).corners()),
        canvas.pick((_M.GRASS, _M.GRASS, _M.GRASS, _M.DRY_GRASS, _M.PAVING, _M.GRAVEL, _M.SOIL_BROWN)),
        tone=0.8 + 0.4 * rng.random(),
    )
    house_w, house_d = width * (0.45 + 0.3 * rng.random()), depth * (0.4 + 0.25 * rng.random())
    u, v = plot.u0 + rng.random() * (width - house_w), plot.v0 + rng.random() * (depth - house_d)
    drive = canvas.px(2.8)
    if drive > 0.8 and rng.random() < 0.6:
        canvas.paint(frame.points(_Rect(u, plot.v0, u + drive, v + 1).corners()), canvas.pick((_M.PAVING, _M.CONCRETE)))
    if canvas.px(7) > 3 and rng.random() < 0.06:
        pool = _Rect(
            plot.u0 + 0.1 * width, plot.v1 - canvas.px(5), plot.u0 + 0.1 * width + canvas.px(8), plot.v1 - canvas.px(1)
        )
        canvas.paint(frame.points(pool.inset(-canvas.px(1)).corners()), _M.PAVING)
        canvas.paint(frame.points(pool.corners()), _M.POOL)
    house = _Rect(u, v, u + house_w, v + house_d)
    if rng.random() < 0.3:
        wing = _Rect(u, v, u + house_w * 0.45, min(v + house_d * 1.4, plot.v1))
        _house(canvas, frame, wing, 4, roofs[0])
    _house(canvas, frame, house, 4 + 4 * rng.random(), canvas.pick(roofs))


def _centre(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Dense blocks with tall buildings, squares and wide streets."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), _M.ASPHALT_NEW)
    street = canvas.px(12 + 6 * rng.random(), 1.2)
    for block in _partition(rng, rect, canvas.px(70 + 40 * rng.random(), 12)):
        outer = block.inset(street / 2)
        if min(outer.size) < 3 or not canvas.visible(frame.points(block.corners()), 60):
            continue
        _lane_marks(canvas, frame, block)
        _cars(canvas, frame, _Rect(block.u0, block.v0 + canvas.px(2), block.u1, outer.v0), 0.3, along_u=True)
        canvas.paint(frame.points(outer.corners()), canvas.pick((_M.PAVING, _M.CONCRETE, _M.CONCRETE, _M.GRASS)))
        if rng.random() < 0.12:
            _parking(canvas, frame, outer.inset(canvas.px(2)))
            continue
        for part in _partition(rng, outer.inset(canvas.px(2)), canvas.px(22 + 20 * rng.random(), 5)):
            if rng.random() < 0.88:
                gap = canvas.px(4 * rng.random(), 0.2)
                body = part.inset(gap)
                if min(body.size) > 1.5:
                    _house(canvas, frame, body, float(10 + 40 * rng.random() ** 2.5), canvas.pick(_TOWER_ROOFS))
        _scatter_trees(canvas, frame, outer, 20 * rng.random(), 2.0)


def _lane_marks(canvas: _Canvas, frame: _Frame, block: _Rect) -> None:
    """Dashed white line along the street at the block's lower side and a zebra crossing."""
    dash = canvas.px(3)
    if dash < 2:
        return
    for u in np.arange(block.u0, block.u1, 3 * dash):
        canvas.line(frame.points([(u, block.v0), (u + dash, block.v0)]), canvas.px(0.25), _M.ROOF_WHITE, tone=0.8)
    stripe = canvas.px(0.6)
    if stripe >= 1:
        for v in np.arange(block.v0 - 4 * stripe, block.v0 + 4 * stripe, 2 * stripe):
            u = block.u0 + canvas.px(8)
            canvas.line(frame.points([(u, v), (u + canvas.px(3), v)]), stripe, _M.ROOF_WHITE, tone=0.8)


def _parking(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """A car park with marked bays."""
    if min(rect.size) < 3:
        return
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_NEW, _M.ASPHALT_OLD, _M.CONCRETE)))
    bay = canvas.px(2.7)
    if bay > 2.5:
        for v in np.arange(rect.v0, rect.v1 - canvas.px(5), canvas.px(4.4) * 2.3):
            for u in np.arange(rect.u0, rect.u1, bay):
                canvas.line(frame.points([(u, v), (u, v + canvas.px(4.6))]), 1, _M.PAVING)
    _cars(canvas, frame, rect.inset(canvas.px(0.3)), 0.2 + 0.6 * canvas.rng.random(), along_u=False)


def _works(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Industry: halls, yards with containers, tanks, solar arrays, car parks."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_OLD, _M.CONCRETE, _M.GRAVEL)))
    for site in _partition(rng, rect, canvas.px(80 + 80 * rng.random(), 14)):
        yard = site.inset(canvas.px(5, 0.6))
        if min(yard.size) < 3 or not canvas.visible(frame.points(yard.corners()), 20):
            continue
        canvas.paint(
            frame.points(yard.corners()), canvas.pick((_M.CONCRETE, _M.ASPHALT_OLD, _M.GRAVEL, _M.GRASS, _M.SOIL_PALE))
        )
        kind = rng.random()
        if kind < 0.55:
            width, depth = yard.size
            hall = _Rect(yard.u0 + 0.1 * width, yard.v0 + 0.1 * depth, yard.u0 + (0.5 + 0.4 * rng.random()) * width,
                         yard.v0 + (0.5 + 0.4 * rng.random()) * depth)  # fmt: skip
            _house(canvas, frame, hall, 8 + 6 * rng.random(), canvas.pick(_HALL_ROOFS))
            if hall.v1 + canvas.px(12) < yard.v1:
                _parking(canvas, frame, _Rect(yard.u0, hall.v1 + canvas.px(3), yard.u1, yard.v1))
        elif kind < 0.7:
            _tanks(canvas, frame, yard)
        elif kind < 0.82:
            _containers(canvas, frame, yard)
        elif kind < 0.92:
            _solar_rows(canvas, frame, yard)
        else:
            _parking(canvas, frame, yard)


def _tanks(canvas: _Canvas, frame: _Frame, yard: _Rect) -> None:
    radius = canvas.px(5 + 10 * canvas.rng.random(), 1.5)
    for u in np.arange(yard.u0 + 1.3 * radius, yard.u1 - radius, 2.8 * radius):
        for v in np.arange(yard.v0 + 1.3 * radius, yard.v1 - radius, 2.8 * radius):
            x, y = frame.points([(u, v)])[0]
            angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            canvas.cast(list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)), 9)
            canvas.disc(x, y, radius, canvas.pick((_M.ROOF_WHITE, _M.ROOF_METAL)))
            canvas.disc(x, y, 0.15 * radius, _M.CONCRETE)


def _containers(canvas: _Canvas, frame: _Frame, yard: _Rect) -> None:
    width, length = canvas.px(2.6, 1.0), canvas.px(12.2, 2.5)
    for u in np.arange(yard.u0, yard.u1 - length, 1.1 * length):
        for v in np.arange(yard.v0, yard.v1 - width, width * 1.05):
            if canvas.rng.random() < 0.7:
                box = frame.points(_Rect(u, v, u + length, v + width).corners())
                paint = canvas.pick(
                    (_M.PAINT_RED, _M.PAINT_BLUE, _M.ROOF_WHITE, _M.ROOF_GREEN, _M.ROOF_METAL, _M.ROOF_BROWN)
                )
                canvas.cast(box, 2.6)
                canvas.paint(box, paint)


def _solar_rows(canvas: _Canvas, frame: _Frame, yard: _Rect) -> None:
    canvas.paint(frame.points(yard.corners()), _M.GRASS)
    step = canvas.px(6, 2.0)
    for v in np.arange(yard.v0, yard.v1 - step, step):
        row = frame.points(_Rect(yard.u0, v, yard.u1, v + 0.55 * step).corners())
        canvas.cast(row, 1.5)
        canvas.paint(row, _M.SOLAR_PANEL)


def _park(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Lawns with paths, groups of trees, and sports grounds."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.GRASS, _M.GRASS, _M.DRY_GRASS)))
    width, height = rect.size
    for _ in range(3):
        ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(3)]
        canvas.line(frame.points(ends), canvas.px(2.5), canvas.pick((_M.GRAVEL, _M.PAVING, _M.ASPHALT_OLD)))
    if rng.random() < 0.5:
        _sports(canvas, frame, rect)
    for _ in range(4):
        u, v = rect.u0 + rng.random() * width, rect.v0 + rng.random() * height
        grove = _Rect(u, v, min(rect.u1, u + 0.35 * width), min(rect.v1, v + 0.35 * height))
        _scatter_trees(canvas, frame, grove, 60 + 250 * rng.random(), 3.0)


def _sports(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """A pitch with white lines inside a running track."""
    u, v = rect.centre
    long, wide = canvas.px(52), canvas.px(34)
    if long < 8 or 2.4 * long > rect.size[0] or 2.8 * wide > rect.size[1]:
        return
    angles = np.linspace(0, 2 * np.pi, 48)
    for margin, material in ((1.3, _M.TRACK_RED), (1.12, _M.GRASS)):
        ring = [(u + margin * 1.25 * long * np.cos(a), v + margin * 1.15 * wide * np.sin(a)) for a in angles]
        canvas.paint(frame.points(ring), material)
    pitch = _Rect(u - long, v - 0.8 * wide, u + long, v + 0.8 * wide)
    canvas.paint(
        frame.points(pitch.corners()), _M.TURF, rows=canvas.row_pattern(frame.angle + np.pi / 2, canvas.px(11), 0.1)
    )
    corners = pitch.corners()
    canvas.line(frame.points([*corners, corners[0]]), 1, _M.ROOF_WHITE)
    canvas.line(frame.points([(u, pitch.v0), (u, pitch.v1)]), 1, _M.ROOF_WHITE)


def _forest(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Closed canopy with clearings and forest tracks."""
    rng = canvas.rng
    ground = canvas.pick((_M.CONIFER, _M.DECIDUOUS, _M.SHRUB))
    canvas.paint(frame.points(rect.corners()), ground, tone=0.6 if canvas.gsd_m < 3 else 1.1)
    for stand in _partition(rng, rect, canvas.px(120, 40), spread=1.0):
        if rng.random() < 0.15:
            canvas.paint(frame.points(stand.corners()), canvas.pick((_M.GRASS, _M.SHRUB, _M.SOIL_BROWN)))
            _scatter_trees(canvas, frame, stand, 60, 1.6)
        else:
            _scatter_trees(canvas, frame, stand, 150 + 600 * rng.random(), 2.2 + 2.0 * rng.random())
    width, height = rect.size
    ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(4)]
    canvas.line(_curve(frame.points(ends)), canvas.px(4), _M.GRAVEL)


def _bare(canvas: _Canvas, frame: _Frame, rect: _Rect) -> None:
    """Open ground: sand, soil or rock with shrubs and vehicle tracks."""
    rng = canvas.rng
    ground = canvas.pick((_M.SAND_DRY, _M.SOIL_PALE, _M.SOIL_RED, _M.ROCK, _M.SOIL_BROWN, _M.DRY_GRASS, _M.BURNT))
    canvas.paint(frame.points(rect.corners()), ground)
    width, height = rect.size
    for _ in range(3):
        ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(4)]
        track = _curve(frame.points(ends))
        canvas.line(track, canvas.px(2.5), canvas.pick((_M.SOIL_PALE, _M.SOIL_BROWN, _M.GRAVEL)), tone=1.1)
    _scatter_trees(canvas, frame, rect, 80 * rng.random(), 1.1)


_DISTRICTS: dict[str, Callable[[_Canvas, _Frame, _Rect], None]] = {
    "fields": _fields,
    "orchard": _orchard,
    "housing": _housing,
    "centre": _centre,
    "works": _works,
    "park": _park,
    "forest": _forest,
    "bare": _bare,
}


# ----------------------------------------------------------------------------------------------------------------------
# The whole layout.


def _curve(points: Sequence[tuple[float, float]], samples: int = 60) -> list[tuple[float, float]]:
    """A smooth line through control points (uniform Catmull-Rom spline)."""
    p = np.array([points[0], *points, points[-1]], dtype=np.float64)
    t = np.linspace(0, len(points) - 1 - 1e-6, samples)
    k, s = t.astype(int), (t - t.astype(int))[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[np.minimum(k + 3, len(p) - 1)]
    xy = 0.5 * (2 * b + (c - a) * s + (2 * a - 5 * b + 4 * c - d) * s**2 + (3 * b - a - 3 * c + d) * s**3)
    return [(float(x), float(y)) for x, y in xy]


def _through_line(canvas: _Canvas, wobble: float) -> list[tuple[float, float]]:
    """A smooth line that crosses the scene from border to border."""
    rng = canvas.rng
    height, width = canvas.shape_yx
    angle, offset = rng.random() * np.pi, 0.35 * min(canvas.shape_yx) * rng.uniform(-1, 1)
    reach = 0.75 * float(np.hypot(height, width))
    along = np.linspace(-reach, reach, 9)
    aside = offset + wobble * min(canvas.shape_yx) * rng.standard_normal(9)
    cos, sin = np.cos(angle), np.sin(angle)
    return _curve(
        [(width / 2 + a * cos - b * sin, height / 2 + a * sin + b * cos) for a, b in zip(along, aside, strict=True)],
        240,
    )


def _lay_districts(canvas: _Canvas, style: str) -> None:
    rng = canvas.rng
    height, width = canvas.shape_yx
    frame = _Frame((height / 2, width / 2), rng.random() * np.pi)
    reach = 0.72 * float(np.hypot(height, width))
    names, weights = zip(*_STYLES[style].items(), strict=True)
    shares = np.cumsum(np.array(weights) / np.sum(weights))
    target = float(np.clip(canvas.px(170), 0.2 * min(canvas.shape_yx), 0.6 * min(canvas.shape_yx)))
    for cell in _partition(rng, _Rect(-reach, -reach, reach, reach), target, spread=1.0):
        turned = _Frame(frame.centre_yx, frame.angle + rng.normal(0, 0.015))
        if canvas.visible(turned.points(cell.corners()), 20):
            kind = names[int(np.searchsorted(shares, rng.random()))]
            _DISTRICTS[kind](canvas, turned, cell.inset(canvas.px(2, 0.3)))


def _mirrored(index: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Indices folded back at both borders into 0..size-1."""
    return np.asarray(np.clip(size - 1 - np.abs(size - 1 - np.abs(index)), 0, size - 1))


def _bend(canvas: _Canvas, amplitude_px: float) -> None:
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


def _overwrite(canvas: _Canvas, mask: NDArray[np.bool_], material: Material, variant: int = 0) -> None:
    """Give a material to every pixel of a mask."""
    stencil = Image.fromarray(mask)
    for image, value in ((canvas.entry, _entry(material, variant)), (canvas.tone, _PLAIN_TONE), (canvas.rows, 0)):
        image.paste(value, mask=stencil)
    canvas.shadow.paste(0, mask=stencil)


def _sea(canvas: _Canvas) -> None:
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


def _boat(canvas: _Canvas, depth: Floats) -> None:
    rng = canvas.rng
    y, x = int(rng.random() * canvas.shape_yx[0]), int(rng.random() * canvas.shape_yx[1])
    if depth[y, x] < canvas.px(25, 4):
        return
    frame = _Frame((y, x), rng.random() * 2 * np.pi)
    long, wide = canvas.px(2.5 + 9 * rng.random() ** 3, 1.2), canvas.px(1 + 1.2 * rng.random(), 0.8)
    if rng.random() < 0.5:
        for side in (-0.12, 0.0, 0.12):
            canvas.line(frame.points([(-long, 0), (-9 * long, 9 * side * long)]), 0.4 * wide, _M.WATER_TURBID, tone=1.5)
    hull = [(-long, -wide), (0.4 * long, -wide), (long, 0), (0.4 * long, wide), (-long, wide)]
    canvas.paint(frame.points(hull), _M.ROOF_WHITE)


def _lakes(canvas: _Canvas) -> None:
    level = fractal(canvas.rng, canvas.shape_yx, 2.2, 8)
    threshold = float(np.quantile(level, canvas.rng.uniform(0.86, 0.97)))
    _overwrite(canvas, level > threshold - 0.05, canvas.pick((_M.SHRUB, _M.SAND_WET, _M.SOIL_DARK)))
    _overwrite(canvas, level > threshold, canvas.pick((_M.WATER_CLEAR, _M.WATER_GREEN, _M.WATER_TURBID)))


def _river(canvas: _Canvas) -> None:
    path = _through_line(canvas, 0.07)
    width = canvas.px(10 + 40 * canvas.rng.random(), 2.0)
    canvas.line(path, width * 1.4, canvas.pick((_M.SHRUB, _M.GRASS, _M.GRAVEL, _M.SAND_WET)))
    canvas.line(path, width, canvas.pick((_M.WATER_TURBID, _M.WATER_GREEN, _M.WATER_CLEAR)))


def _through_roads(canvas: _Canvas, count: int) -> None:
    for _ in range(count):
        path = _through_line(canvas, 0.03)
        width = canvas.px(7 + 12 * canvas.rng.random(), 1.0)
        canvas.line(path, width + canvas.px(4), canvas.pick((_M.GRASS, _M.GRAVEL, _M.SOIL_PALE)))
        canvas.line(path, width, canvas.pick((_M.ASPHALT_OLD, _M.ASPHALT_NEW, _M.CONCRETE)))
        if canvas.px(0.3) > 0.3:
            for start in range(0, len(path) - 2, 3):
                canvas.line(path[start : start + 2], canvas.px(0.3), _M.ROOF_WHITE)
            _traffic(canvas, path, width)


def _traffic(canvas: _Canvas, path: Sequence[tuple[float, float]], width: float) -> None:
    rng = canvas.rng
    long, wide = canvas.px(2.3), canvas.px(0.9, 0.6)
    for (x0, y0), (x1, y1) in pairwise(path):
        if rng.random() < 0.85:
            continue
        frame = _Frame((y0, x0), float(np.arctan2(y1 - y0, x1 - x0)))
        side = (0.25 if rng.random() < 0.5 else -0.25) * width
        length = long * (3 if rng.random() < 0.15 else 1)
        box = frame.points(_Rect(-length, side - wide, length, side + wide).corners())
        canvas.cast(box, 1.6)
        canvas.paint(box, canvas.pick(_CAR_PAINTS))


def _grow_trees(canvas: _Canvas, entry: NDArray[np.uint8], sun: Floats) -> tuple[NDArray[np.uint8], Floats, Floats]:
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


def _hillshade(canvas: _Canvas, relief: float) -> tuple[Floats, Floats]:
    """Fractal terrain: normalised height, and how bright a slope is compared with flat ground."""
    height = fractal(canvas.rng, canvas.shape_yx, 2.0)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(height, 1.2) * min(canvas.shape_yx) * 0.12)
    toward_sun = -(slope_x * np.sin(canvas.sun_azimuth) - slope_y * np.cos(canvas.sun_azimuth))
    shade = 1 + relief * toward_sun / (np.abs(toward_sun).std() * 2.5 + 1e-6)
    return height, np.clip(shade, 0.25, 1.7).astype(np.float32)


def _mountains(canvas: _Canvas, height: Floats) -> None:
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


def _dunes(canvas: _Canvas) -> Floats:
    """Brightness of dune slopes: warped ridges across the wind."""
    rng = canvas.rng
    angle = rng.random() * np.pi
    yy, xx = np.mgrid[0 : canvas.shape_yx[0], 0 : canvas.shape_yx[1]].astype(np.float32)
    period = canvas.px(25 + 60 * rng.random(), 8)
    phase = (xx * np.cos(angle) + yy * np.sin(angle)) / period + 1.3 * fractal(rng, canvas.shape_yx, 2.0)
    return np.asarray(1 + 0.12 * np.sin(2 * np.pi * phase) ** 3, dtype=np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# From layers to reflectance.


def make_truth(
    rng: Rng,
    shape_yx: tuple[int, int],
    wavelengths_um: Sequence[float],
    gsd_m: float,
    *,
    style: str | None = None,
) -> Floats:
    """Draw a surface scene.

    Args:
        rng: Source of all randomness; the same state gives the same scene.
        shape_yx: Pixels of the result.
        wavelengths_um: Centre of each band, 0.4 to 2.4 um.
        gsd_m: Pixel size on the ground; sizes of houses, roads and fields follow from it.
        style: One of ``STYLES``; drawn at random when None.

    Returns:
        Surface reflectance (band, y, x), 0 to 1, hard-edged: no sensor has blurred it yet.

    Raises:
        ValueError: Unknown style, or a shape smaller than 16 pixels.
    """
    if min(shape_yx) < 16:
        raise ValueError(f"scene of {shape_yx[0]} x {shape_yx[1]} px is too small to draw; at least 16 x 16 is needed")
    chosen = STYLES[int(rng.random() * len(STYLES))] if style is None else style
    if chosen not in _STYLES:
        raise ValueError(f"unknown scene style {chosen!r}; choose one of {', '.join(STYLES)}")
    elevation = np.deg2rad(rng.uniform(25, 65))
    canvas = _Canvas(rng, shape_yx, gsd_m, np.deg2rad(rng.uniform(90, 270)), float(1 / np.tan(elevation)))
    shade = _compose(canvas, chosen)
    return _render(canvas, shade, scene_library(rng, wavelengths_um), wavelengths_um, elevation)


STYLES = tuple(_STYLES)
"""Kinds of scene that ``make_truth`` can draw."""


def _compose(canvas: _Canvas, style: str) -> Floats:
    """Draw all layers of a scene and return the brightness of its terrain."""
    rng = canvas.rng
    _lay_districts(canvas, style)
    if canvas.gsd_m > 3 or style in {"forest", "desert", "mountain"}:
        _bend(canvas, canvas.rng.uniform(0.3, 1.0) * 0.06 * min(canvas.shape_yx))
    relief = {"mountain": 0.55, "forest": 0.2, "desert": 0.25}.get(style, 0.03 + 0.05 * rng.random())
    height, shade = _hillshade(canvas, relief)
    if style == "mountain":
        _mountains(canvas, height)
    if style == "desert" and rng.random() < 0.6:
        shade = shade * _dunes(canvas)
    if rng.random() < 0.3:
        _lakes(canvas)
    if rng.random() < 0.35:
        _river(canvas)
    if style == "coast":
        _sea(canvas)
    _through_roads(canvas, int(rng.integers(0, 3)) + (canvas.gsd_m > 5) * 2)
    return shade


def _render(
    canvas: _Canvas, shade: Floats, library: Floats, wavelengths_um: Sequence[float], elevation: float
) -> Floats:
    """Turn the layers into reflectance."""
    rng, shape_yx = canvas.rng, canvas.shape_yx
    partner, share, spread, rough = _behaviour_tables()
    sun = 1 - ndimage.gaussian_filter(np.asarray(canvas.shadow, dtype=np.float32) / 255, 0.5) * 0.95
    entry, tree_tone, sun = _grow_trees(canvas, np.asarray(canvas.entry), sun)
    material = entry // VARIANTS
    patchy, fine = fractal(rng, shape_yx, 1.4), fractal(rng, shape_yx, 0.35)
    mixed = np.clip(share[material] + spread[material] * (0.75 * patchy + 0.35 * fine), 0, 1)
    second = partner[material] * VARIANTS + entry % VARIANTS
    level = np.isin(np.arange(len(_M)), [int(m) for m in _WATERS])[material]
    tone = np.asarray(canvas.tone, dtype=np.float32) / _PLAIN_TONE * tree_tone * np.where(level, np.float32(1), shade)
    tone *= 1 + rough[material] * (0.8 * fine + 0.5 * patchy)
    tone *= 1 + _stripes(canvas)
    textures = [fractal(rng, shape_yx, exponent) for exponent in (0.3, 1.0, 1.5)]
    loadings = 0.035 * smooth_curves(rng, len(textures), wavelengths_um)
    skylight = 0.30 * (np.asarray(wavelengths_um) / 0.45) ** -1.3 * (0.7 + 0.3 / np.tan(elevation))
    haze = _haze(canvas)
    scene = np.empty((len(wavelengths_um), *shape_yx), dtype=np.float32)
    for band, wavelength in enumerate(wavelengths_um):
        pure, other = library[:, band][entry], library[:, band][second]
        light = sun + (1 - sun) * np.float32(min(skylight[band], 0.6))
        own = sum((load * texture for load, texture in zip(loadings[:, band], textures, strict=True)), np.float32(0))
        ground = (pure + mixed * (other - pure)) * tone * light * (1 + own)
        veil = haze * np.float32((wavelength / 0.45) ** -0.6)
        scene[band] = ground * (1 - veil) + 0.75 * veil
    return np.clip(scene, 0, 1, out=scene)


def _stripes(canvas: _Canvas) -> Floats:
    """Relative brightness of crop rows, roof courses and mowing bands."""
    table = np.array(canvas.row_table, dtype=np.float32)
    number = np.asarray(canvas.rows)
    yy, xx = (np.arange(n, dtype=np.float32) for n in canvas.shape_yx)
    kx, ky, amplitude, phase = (table[:, column][number] for column in range(4))
    return np.asarray(amplitude * np.sin(kx * xx[None, :] + ky * yy[:, None] + phase), dtype=np.float32)


def _haze(canvas: _Canvas) -> Floats:
    """Share of light from thin cloud and haze, 0 to about 0.5; none in most scenes."""
    rng = canvas.rng
    if rng.random() < 0.7:
        return np.zeros(canvas.shape_yx, dtype=np.float32)
    cloud = fractal(rng, canvas.shape_yx, 1.9, 6)
    return np.asarray(np.clip((cloud - rng.uniform(0.8, 2.0)) * 0.25, 0, 0.5), dtype=np.float32)
