"""Procedural surface scenes: what lies on the ground, as reflectance, before any sensor looks at it.

A scene is drawn as layers: districts (fields, town, forest, desert, ...) in a rotated partition of the plane, then
water, through roads, trees and vehicles; each pixel gets a material, a second material it is mixed with, a tone, and a
share of direct sunlight. Only then the layers become reflectance, band by band.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter.simulate.districts import DISTRICTS
from pancrafter.simulate.landscape import (
    bend,
    dunes,
    grow_trees,
    hillshade,
    lay_lakes,
    lay_mountains,
    lay_river,
    lay_roads,
    lay_sea,
)
from pancrafter.simulate.spectra import VARIANTS, Material, scene_library, smooth_curves
from pancrafter.simulate.surface import PLAIN_TONE, Canvas, Floats, Frame, Rect, Rng, fractal, partition

_M = Material
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
_WATERS = (_M.WATER_CLEAR, _M.WATER_TURBID, _M.WATER_GREEN, _M.POOL)
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


def _lay_districts(canvas: Canvas, style: str) -> None:
    rng = canvas.rng
    height, width = canvas.shape_yx
    frame = Frame((height / 2, width / 2), rng.random() * np.pi)
    reach = 0.72 * float(np.hypot(height, width))
    names, weights = zip(*_STYLES[style].items(), strict=True)
    shares = np.cumsum(np.array(weights) / np.sum(weights))
    target = float(np.clip(canvas.px(170), 0.2 * min(canvas.shape_yx), 0.6 * min(canvas.shape_yx)))
    for cell in partition(rng, Rect(-reach, -reach, reach, reach), target, spread=1.0):
        turned = Frame(frame.centre_yx, frame.angle + rng.normal(0, 0.015))
        if canvas.visible(turned.points(cell.corners()), 20):
            kind = names[int(np.searchsorted(shares, rng.random()))]
            DISTRICTS[kind](canvas, turned, cell.inset(canvas.px(2, 0.3)))


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
    canvas = Canvas(rng, shape_yx, gsd_m, np.deg2rad(rng.uniform(90, 270)), float(1 / np.tan(elevation)))
    shade = _compose(canvas, chosen)
    return _render(canvas, shade, scene_library(rng, wavelengths_um), wavelengths_um, elevation)


STYLES = tuple(_STYLES)
"""Kinds of scene that ``make_truth`` can draw."""


def _compose(canvas: Canvas, style: str) -> Floats:
    """Draw all layers of a scene and return the brightness of its terrain."""
    rng = canvas.rng
    _lay_districts(canvas, style)
    if canvas.gsd_m > 3 or style in {"forest", "desert", "mountain"}:
        bend(canvas, canvas.rng.uniform(0.3, 1.0) * 0.06 * min(canvas.shape_yx))
    relief = {"mountain": 0.55, "forest": 0.2, "desert": 0.25}.get(style, 0.03 + 0.05 * rng.random())
    height, shade = hillshade(canvas, relief)
    if style == "mountain":
        lay_mountains(canvas, height)
    if style == "desert" and rng.random() < 0.6:
        shade = shade * dunes(canvas)
    if rng.random() < 0.3:
        lay_lakes(canvas)
    if rng.random() < 0.35:
        lay_river(canvas)
    if style == "coast":
        lay_sea(canvas)
    lay_roads(canvas, int(rng.integers(0, 3)) + (canvas.gsd_m > 5) * 2)
    return shade


def _render(
    canvas: Canvas, shade: Floats, library: Floats, wavelengths_um: Sequence[float], elevation: float
) -> Floats:
    """Turn the layers into reflectance."""
    rng, shape_yx = canvas.rng, canvas.shape_yx
    partner, share, spread, rough = _behaviour_tables()
    sun = 1 - ndimage.gaussian_filter(np.asarray(canvas.shadow, dtype=np.float32) / 255, 0.5) * 0.95
    entry, tree_tone, sun = grow_trees(canvas, np.asarray(canvas.entry), sun)
    material = entry // VARIANTS
    patchy, fine = fractal(rng, shape_yx, 1.4), fractal(rng, shape_yx, 0.35)
    mixed = np.clip(share[material] + spread[material] * (0.75 * patchy + 0.35 * fine), 0, 1)
    second = partner[material] * VARIANTS + entry % VARIANTS
    level = np.isin(np.arange(len(_M)), [int(m) for m in _WATERS])[material]
    tone = np.asarray(canvas.tone, dtype=np.float32) / PLAIN_TONE * tree_tone * np.where(level, np.float32(1), shade)
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


def _stripes(canvas: Canvas) -> Floats:
    """Relative brightness of crop rows, roof courses and mowing bands."""
    table = np.array(canvas.row_table, dtype=np.float32)
    number = np.asarray(canvas.rows)
    yy, xx = (np.arange(n, dtype=np.float32) for n in canvas.shape_yx)
    kx, ky, amplitude, phase = (table[:, column][number] for column in range(4))
    return np.asarray(amplitude * np.sin(kx * xx[None, :] + ky * yy[:, None] + phase), dtype=np.float32)


def _haze(canvas: Canvas) -> Floats:
    """Share of light from thin cloud and haze, 0 to about 0.5; none in most scenes."""
    rng = canvas.rng
    if rng.random() < 0.7:
        return np.zeros(canvas.shape_yx, dtype=np.float32)
    cloud = fractal(rng, canvas.shape_yx, 1.9, 6)
    return np.asarray(np.clip((cloud - rng.uniform(0.8, 2.0)) * 0.25, 0, 0.5), dtype=np.float32)
