"""Reflectance of surface materials between 0.4 and 2.4 um, and variants of them for one scene.

The curves are smooth stand-ins drawn after the well-known shapes (red edge of plants, iron slope of soils, dark near
infrared of water, ...); they carry no measured data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

VARIANTS = 6
"""How many spectral variants of each material one scene has; material and variant share one byte."""

ANCHORS_UM = (0.40, 0.44, 0.48, 0.52, 0.56, 0.60, 0.66, 0.70, 0.74, 0.80, 0.90, 1.00, 1.25, 1.60, 2.20, 2.40)


class Material(IntEnum):
    """Row number of each material in the tables of this module."""

    GRASS = 0
    DRY_GRASS = 1
    DECIDUOUS = 2
    CONIFER = 3
    SHRUB = 4
    CROP_GREEN = 5
    CROP_YOUNG = 6
    CROP_RIPE = 7
    RAPESEED = 8
    SOIL_BROWN = 9
    SOIL_RED = 10
    SOIL_DARK = 11
    SOIL_PALE = 12
    BURNT = 13
    SAND_DRY = 14
    SAND_WET = 15
    ROCK = 16
    GRAVEL = 17
    ASPHALT_NEW = 18
    ASPHALT_OLD = 19
    CONCRETE = 20
    PAVING = 21
    ROOF_RED = 22
    ROOF_BROWN = 23
    ROOF_SLATE = 24
    ROOF_BLUE = 25
    ROOF_GREEN = 26
    ROOF_WHITE = 27
    ROOF_METAL = 28
    BITUMEN = 29
    SOLAR_PANEL = 30
    PLASTIC_SHEET = 31
    PAINT_RED = 32
    PAINT_BLUE = 33
    TRACK_RED = 34
    TURF = 35
    WATER_CLEAR = 36
    WATER_TURBID = 37
    WATER_GREEN = 38
    POOL = 39
    SNOW = 40


_PERCENT: dict[str, str] = {
    # material         .40  .44  .48  .52  .56  .60  .66  .70  .74  .80  .90 1.00 1.25 1.60 2.20 2.40
    "GRASS":         "3.0  3.5  4.0  6.0  9.0  6.5  4.5 11.0 33.0 42.0 46.0 47.0 43.0 27.0 13.0  9.0",
    "DRY_GRASS":     "6.0  8.0 10.0 13.0 17.0 20.0 24.0 26.0 29.0 33.0 38.0 41.0 46.0 42.0 30.0 25.0",
    "DECIDUOUS":     "2.0  2.5  2.8  4.5  7.5  4.5  3.0  9.0 33.0 45.0 48.0 48.0 44.0 24.0 10.0  7.0",
    "CONIFER":       "1.5  2.0  2.2  3.0  4.5  3.3  2.5  5.5 18.0 25.0 27.0 28.0 24.0 12.0  5.0  4.0",
    "SHRUB":         "3.0  4.0  5.0  7.0  9.0  8.0  7.5 11.0 22.0 28.0 31.0 33.0 32.0 25.0 15.0 12.0",
    "CROP_GREEN":    "3.0  3.5  4.0  6.5 10.0  6.0  4.0 10.0 40.0 52.0 55.0 55.0 49.0 28.0 12.0  9.0",
    "CROP_YOUNG":    "5.0  6.0  7.0  9.5 12.5 12.0 12.0 16.0 28.0 34.0 37.0 39.0 40.0 32.0 22.0 18.0",
    "CROP_RIPE":     "6.0  8.0 11.0 16.0 22.0 27.0 31.0 34.0 37.0 41.0 45.0 48.0 50.0 44.0 32.0 27.0",
    "RAPESEED":      "4.0  5.0  6.0 17.0 28.0 27.0 20.0 28.0 42.0 50.0 53.0 53.0 47.0 29.0 14.0 10.0",
    "SOIL_BROWN":    "5.0  6.0  8.0 10.0 13.0 16.0 20.0 22.0 23.5 26.0 29.0 31.0 36.0 40.0 36.0 32.0",
    "SOIL_RED":      "4.0  5.0  6.0  8.0 12.0 20.0 26.0 28.0 30.0 32.0 34.0 37.0 45.0 48.0 44.0 40.0",
    "SOIL_DARK":     "3.0  3.5  4.0  5.0  6.0  7.0  8.5  9.0 10.0 11.5 13.5 15.0 18.0 20.0 17.0 15.0",
    "SOIL_PALE":     "14.0 17.0 21.0 25.0 29.0 33.0 37.0 39.0 40.0 42.0 45.0 47.0 51.0 52.0 46.0 42.0",
    "BURNT":         "3.0  3.5  4.0  4.2  4.5  5.0  5.5  6.0  6.5  7.5  9.0 10.0 14.0 18.0 18.0 17.0",
    "SAND_DRY":      "13.0 17.0 22.0 27.0 33.0 38.0 42.0 44.0 45.5 47.0 50.0 52.0 56.0 58.0 54.0 50.0",
    "SAND_WET":      "7.0  9.0 11.0 14.0 17.0 19.0 21.0 22.0 22.5 23.0 23.0 22.0 22.0 20.0 14.0 11.0",
    "ROCK":          "10.0 11.0 13.0 15.0 17.0 18.0 20.0 20.5 21.0 22.0 23.0 24.0 26.0 28.0 26.0 24.0",
    "GRAVEL":        "14.0 16.0 18.0 20.0 22.0 23.5 25.0 25.5 26.0 27.0 28.0 29.0 31.0 33.0 31.0 29.0",
    "ASPHALT_NEW":   "5.0  5.2  5.5  5.8  6.0  6.3  6.6  6.8  7.0  7.3  7.8  8.2  9.0 10.0 11.0 11.0",
    "ASPHALT_OLD":   "9.0 10.0 11.0 12.0 13.0 13.7 14.5 14.8 15.0 15.5 16.5 17.0 19.0 21.0 21.0 21.0",
    "CONCRETE":      "18.0 21.0 24.0 26.5 29.0 30.5 32.0 32.5 33.0 34.0 35.0 35.5 37.0 38.0 36.0 34.0",
    "PAVING":        "25.0 29.0 32.0 34.5 36.5 38.0 39.0 39.5 40.0 40.5 41.0 41.5 42.0 41.0 38.0 36.0",
    "ROOF_RED":      "5.0  5.5  6.0  7.5 11.5 20.0 27.0 29.0 30.0 31.0 32.0 34.0 40.0 46.0 44.0 42.0",
    "ROOF_BROWN":    "5.0  6.0  7.0  8.0 10.0 13.0 16.0 17.0 18.0 20.0 21.0 23.0 27.0 30.0 30.0 29.0",
    "ROOF_SLATE":    "7.0  7.5  8.0  8.5  9.0  9.2  9.5  9.7 10.0 10.5 11.0 11.5 13.0 14.5 14.0 14.0",
    "ROOF_BLUE":     "12.0 20.0 28.0 25.0 17.0 12.0 11.0 12.0 16.0 22.0 28.0 31.0 36.0 38.0 33.0 30.0",
    "ROOF_GREEN":    "5.0  7.0 10.0 16.0 17.0 12.0  9.0 10.0 13.0 18.0 22.0 25.0 30.0 32.0 30.0 28.0",
    "ROOF_WHITE":    "32.0 48.0 58.0 62.0 64.0 65.0 66.0 66.0 66.0 66.0 65.0 64.0 60.0 50.0 40.0 35.0",
    "ROOF_METAL":    "28.0 30.0 32.0 33.5 34.5 35.0 36.0 36.0 36.0 36.0 35.0 36.0 40.0 44.0 46.0 46.0",
    "BITUMEN":       "4.0  4.2  4.4  4.5  4.7  4.8  5.0  5.0  5.2  5.4  5.6  5.8  6.5  7.0  7.5  7.5",
    "SOLAR_PANEL":   "6.0  6.5  6.0  5.0  4.0  3.5  3.5  3.5  3.7  4.0  6.0 12.0 20.0 18.0 12.0 10.0",
    "PLASTIC_SHEET": "26.0 33.0 38.0 41.0 43.0 44.0 45.0 45.5 46.0 47.0 48.0 48.0 46.0 38.0 25.0 20.0",
    "PAINT_RED":     "5.0  5.0  5.0  5.0  6.0 15.0 40.0 45.0 48.0 50.0 52.0 52.0 52.0 48.0 40.0 36.0",
    "PAINT_BLUE":    "9.0 15.0 18.0 12.0  7.0  5.0  4.5  5.0  7.0 12.0 22.0 28.0 34.0 34.0 28.0 25.0",
    "TRACK_RED":     "6.0  6.5  7.0  8.5 13.0 25.0 34.0 37.0 40.0 43.0 45.0 46.0 47.0 46.0 42.0 38.0",
    "TURF":          "3.0  3.5  4.0  9.0 12.0  7.0  5.0  6.0 10.0 16.0 25.0 30.0 35.0 35.0 30.0 25.0",
    "WATER_CLEAR":   "5.0  5.0  4.8  4.0  2.8  1.5  1.0  0.8  0.6  0.5  0.3  0.2  0.1  0.1  0.1  0.1",
    "WATER_TURBID":  "7.0  8.0  9.5 12.0 14.0 13.0 10.0  8.0  5.5  4.5  2.5  1.5  0.4  0.2  0.1  0.1",
    "WATER_GREEN":   "3.0  3.5  4.0  6.0  8.5  5.0  3.5  5.0  4.0  3.0  2.0  1.0  0.3  0.2  0.1  0.1",
    "POOL":          "22.0 32.0 42.0 44.0 36.0 20.0 12.0  8.0  6.0  5.0  3.0  2.0  0.5  0.2  0.1  0.1",
    "SNOW":          "93.0 94.0 94.0 94.0 93.0 92.0 91.0 90.0 89.0 87.0 80.0 70.0 45.0 12.0  8.0  6.0",
}  # fmt: skip

Floats = NDArray[np.float32]


def reflectance(wavelengths_um: Sequence[float]) -> Floats:
    """Reflectance (material, band), 0 to 1, of every material at the given wavelengths (0.4 to 2.4 um)."""
    table = np.array([[float(x) for x in _PERCENT[material.name].split()] for material in Material]) / 100
    positions = np.clip(np.asarray(wavelengths_um, dtype=np.float64), ANCHORS_UM[0], ANCHORS_UM[-1])
    return np.asarray(PchipInterpolator(ANCHORS_UM, table, axis=1)(positions), dtype=np.float32)


def smooth_curves(rng: np.random.Generator, n_curves: int, wavelengths_um: Sequence[float]) -> Floats:
    """Random smooth functions of wavelength (curve, band), about zero mean and unit deviation.

    Four knots over log-wavelength give one or two bends between 0.4 and 2.4 um, as soil moisture, paint or leaf
    chemistry would.
    """
    knots = np.log(np.array([0.38, 0.50, 0.65, 0.80, 1.20, 2.45]))
    values = rng.standard_normal((n_curves, len(knots)))
    curves = PchipInterpolator(knots, values, axis=1)(np.log(np.asarray(wavelengths_um, dtype=np.float64)))
    return np.asarray(curves, dtype=np.float32)


def scene_library(rng: np.random.Generator, wavelengths_um: Sequence[float]) -> Floats:
    """Reflectance (entry, band) of one scene, where entry is ``material * VARIANTS + variant``.

    Each variant is the material's curve times a random brightness and a random smooth tilt, so two fields of the same
    crop differ in colour and not only in brightness.
    """
    base = np.repeat(reflectance(wavelengths_um), VARIANTS, axis=0)
    tilt = smooth_curves(rng, len(base), wavelengths_um)
    brightness = rng.normal(0.0, 0.16, (len(base), 1))
    varied = base * np.exp(brightness + 0.09 * tilt)
    return np.clip(varied, 0.001, 0.97).astype(np.float32)
