"""The surface of a simulated scene while it is drawn: layers of one byte a pixel, and shapes to draw on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft

from pancrafter.simulate.spectra import VARIANTS, Material

Floats = NDArray[np.float32]
Rng = np.random.Generator

PLAIN_TONE = 128
"""Byte of the tone layer that stands for 1."""


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


@dataclass(frozen=True)
class Frame:
    """A rotated coordinate system (u, v) in pixels around the scene's centre."""

    centre_yx: tuple[float, float]
    angle: float

    def points(self, uv: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Pixel coordinates (x, y) of points given as (u, v)."""
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return [(self.centre_yx[1] + u * cos - v * sin, self.centre_yx[0] + u * sin + v * cos) for u, v in uv]


@dataclass(frozen=True)
class Rect:
    """A rectangle in the coordinates of a frame."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        """Along u and v, pixels."""
        return self.u1 - self.u0, self.v1 - self.v0

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle (u, v)."""
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    def inset(self, margin: float) -> Rect:
        """The rectangle with a margin taken off on all sides."""
        return Rect(self.u0 + margin, self.v0 + margin, self.u1 - margin, self.v1 - margin)

    def corners(self) -> list[tuple[float, float]]:
        """Its four corners (u, v), in turn."""
        return [(self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1)]


@dataclass
class Canvas:
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
        self.entry = Image.new("L", size, entry_of(Material.GRASS, 0))
        self.tone = Image.new("L", size, PLAIN_TONE)
        self.rows = Image.new("L", size, 0)
        self.shadow = Image.new("L", size, 0)
        self._draws = [ImageDraw.Draw(image) for image in (self.entry, self.tone, self.rows, self.shadow)]

    def px(self, metres: float, least: float = 0.0) -> float:
        """Metres as pixels, never below ``least``."""
        return max(metres / self.gsd_m, least)

    def pick(self, options: Sequence[Material]) -> Material:
        """One of these at random, each as likely."""
        return options[int(self.rng.random() * len(options))]

    def visible(self, points: Sequence[tuple[float, float]], margin: float = 0.0) -> bool:
        """Whether the box around pixel points (x, y) comes within a margin of the scene."""
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
        values = (entry_of(material, chosen), int(np.clip(tone * PLAIN_TONE, 1, 255)), rows, 0)
        for draw, value in zip(self._draws, values, strict=True):
            draw.polygon(points, fill=value)

    def disc(self, x: float, y: float, radius: float, material: Material) -> None:
        """Fill a circle around a pixel point."""
        angles = np.linspace(0, 2 * np.pi, max(8, int(radius * 3)), endpoint=False)
        self.paint(list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)), material)

    def line(
        self, points: Sequence[tuple[float, float]], width_px: float, material: Material, *, tone: float = 1.0
    ) -> None:
        """Draw a polyline of pixel points as a ribbon with round joints (PIL's own joints leave spikes)."""
        values = (entry_of(material, int(self.rng.random() * VARIANTS)), int(tone * PLAIN_TONE), 0, 0)
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


def entry_of(material: Material, variant: int) -> int:
    """Number of a material's variant in the library of spectra."""
    return int(material) * VARIANTS + variant


def partition(rng: Rng, rect: Rect, target: float, *, spread: float = 0.5) -> Iterator[Rect]:
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
            stack += [Rect(part.u0, part.v0, middle, part.v1), Rect(middle, part.v0, part.u1, part.v1)]
        else:
            middle = part.v0 + cut * height
            stack += [Rect(part.u0, part.v0, part.u1, middle), Rect(part.u0, middle, part.u1, part.v1)]


def curve(points: Sequence[tuple[float, float]], samples: int = 60) -> list[tuple[float, float]]:
    """A smooth line through control points (uniform Catmull-Rom spline)."""
    p = np.array([points[0], *points, points[-1]], dtype=np.float64)
    t = np.linspace(0, len(points) - 1 - 1e-6, samples)
    k, s = t.astype(int), (t - t.astype(int))[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[np.minimum(k + 3, len(p) - 1)]
    xy = 0.5 * (2 * b + (c - a) * s + (2 * a - 5 * b + 4 * c - d) * s**2 + (3 * b - a - 3 * c + d) * s**3)
    return [(float(x), float(y)) for x, y in xy]
