"""Codes stand for a CRS only where they put the ground in the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rioxarray
import xarray as xr
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform
from test_cube import Pair, contract

from pancrafter import sharpen
from pancrafter.crs import crs_code
from pancrafter.cube import stage_scene
from pancrafter.errors import GridMismatchError
from pancrafter.types import PixelGrid, Scene
from pancrafter.vendor_files import read_header

GRID = from_origin(500_000, 5_600_000, 0.5, 0.5)
SHIFTED = "+proj=utm +zone=33 +ellps=intl +towgs84=-300,200,500,0,0,0,0 +units=m"
ESRI = (
    'PROJCS["WGS_1984_UTM_Zone_33N",GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,'
    '298.257223563]],PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["False_Easting",500000.0],PARAMETER["False_Northing",0.0],PARAMETER["Central_Meridian",15.0],'
    'PARAMETER["Scale_Factor",0.9996],PARAMETER["Latitude_Of_Origin",0.0],UNIT["Meter",1.0]]'
)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("EPSG:32633", "EPSG:32633"),
        ("EPSG:26715", "EPSG:26715"),
        ("ESRI:102003", "ESRI:102003"),
        (ESRI, "EPSG:32633"),
        ("+proj=utm +zone=33 +datum=WGS84", "EPSG:32633"),
        (SHIFTED, None),
        ("+proj=utm +zone=33 +ellps=intl +towgs84=-87,-98,-121", None),
        ("+proj=utm +zone=15 +ellps=clrk66 +towgs84=-10,158,187", None),
        ("+proj=tmerc +lat_0=0 +lon_0=11.3 +k=0.9996 +ellps=GRS80", None),
    ],
)
def test_a_code_is_taken_where_it_means_the_same_ground(named: str, expected: str | None) -> None:
    assert crs_code(CRS.from_user_input(named), GRID, (2000, 3000)) == expected


def test_a_known_crs_keeps_its_code_outside_its_domain() -> None:
    assert crs_code(CRS.from_epsg(32633), from_origin(1e9, 1e9, 1, 1), (10, 10)) == "EPSG:32633"
    assert crs_code(CRS.from_user_input(SHIFTED), from_origin(1e9, 1e9, 1, 1), (10, 10)) is None


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A pair in a CRS that resembles one with a code."""
    pair = Pair(np.full((64, 64), 5, np.uint16), np.full((3, 16, 16), 5, np.uint16), profile={"crs": SHIFTED})
    return pair.write(tmp_path)


def _staged(scene: Scene, tmp_path: Path) -> PixelGrid:
    return stage_scene(scene, contract(), str(tmp_path / "s.zarr"), block_px=64).grid.pan


def _ingested(scene: Scene, _: Path) -> PixelGrid:
    return read_header(Path(scene.pan.href), Path(scene.pan.href)).grid


@pytest.mark.parametrize("read", [_staged, _ingested])
def test_the_grid_lies_where_the_file_does(
    scene: Scene, tmp_path: Path, read: Callable[[Scene, Path], PixelGrid]
) -> None:
    corner = ([500_000.0], [4_000_000.0])
    true, found = (transform(crs, "EPSG:4326", *corner) for crs in (SHIFTED, read(scene, tmp_path).crs))
    assert np.abs(np.subtract(true, found)).max() < 1e-9


def test_arrays_in_a_similar_crs_are_not_taken_for_the_same(scene: Scene) -> None:
    pan, ms = (rioxarray.open_rasterio(href) for href in (scene.pan.href, scene.ms[0].href))
    assert isinstance(pan, xr.DataArray)
    assert isinstance(ms, xr.DataArray)
    assert sharpen(pan, ms).shape == (3, 64, 64)
    with pytest.raises(GridMismatchError, match="expected one CRS"):
        sharpen(pan, ms.rio.write_crs("EPSG:23033"))
