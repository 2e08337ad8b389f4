"""Round trips: points drawn on the map by the georeference of real products are found again on the staged grids.

PAN and MS are rendered from the same analytic blobs, each at its own pixel centres in map coordinates, so nothing but
georeference relates them. After staging, every blob must lie in both images where it was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.warp import transform as transform_points
from test_cube import BANDS, contract, make_scene, whole

from pancrafter.cube import stage_scene
from pancrafter.errors import GridMismatchError
from pancrafter.resample import upsample
from pancrafter.store import SceneStore
from pancrafter.types import StagedScene

UTM = "EPSG:32632"


@dataclass(frozen=True)
class Product:
    """Geometry of a real product, cut to a few hundred pixels: origins and pixel sizes as the producer has them."""

    ratio: int
    pan_gsd: float
    ms_gsd: float
    pan_shape: tuple[int, int]
    ms_shape: tuple[int, int]
    ms_offset_xy: tuple[float, float] = (0.0, 0.0)
    """MS corner minus PAN corner, CRS units."""
    origin: tuple[float, float] = (344_843.75, 3_800_156.25)
    crs: str = UTM
    ms_crs: str = UTM
    resampled: bool = False


PRODUCTS = {
    "maxar open data, exact 4:1": Product(4, 0.5601539434837621, 2.2406157739350485, (284, 284), (71, 71)),
    "perusat, exact 4:1 at 0.7 m": Product(4, 0.7, 2.8, (300, 280), (75, 70)),
    "landsat collection 2, 2N-1": Product(2, 15.0, 30.0, (361, 301), (181, 151), (-7.5, 7.5)),
    "dea landsat, 2N-1": Product(2, 15.0, 30.0, (301, 381), (151, 191), (-7.5, 7.5), (526_792.5, -3_077_092.5)),
    "pleiades, MS reaches 2 PAN px further": Product(4, 0.5, 2.0, (286, 283), (72, 71)),
    "gaofen, ratio 3.997": Product(4, 2.0, 2.0 * 18000 / 4503, (300, 300), (76, 76), resampled=True),
    "gaofen, ratio 3.9985": Product(4, 0.81, 0.81 * 27620 / 6907.5, (300, 300), (76, 76), resampled=True),
    "extents that overlap in part": Product(4, 0.5, 2.0, (280, 280), (80, 80), (37.0, 22.0)),
    "sub-pixel phase": Product(4, 0.55, 2.2, (280, 280), (70, 70), (0.31, -0.17)),
    "kanopus, ratio 5": Product(5, 2.1, 10.5, (300, 310), (60, 62)),
    "cbers-4 and skysat, 2:1 with common edges": Product(2, 5.0, 10.0, (300, 280), (150, 140)),
    "geographic, 4:1": Product(
        4, 4.5e-6, 1.8e-5, (280, 280), (70, 70), (0.0, 0.0), (119.85, 0.5), "EPSG:4326", "EPSG:4326"
    ),
    "MS in the next zone": Product(
        4, 0.5, 2.0, (300, 300), (90, 90), (0.0, 0.0), (800_000.0, 5_500_000.0), UTM, "EPSG:32633", resampled=True
    ),
}  # fmt: skip


def _axes(origin: tuple[float, float], gsd: float, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map coordinates (x, y) of every pixel centre, both (rows, cols)."""
    rows, cols = shape
    return np.meshgrid(origin[0] + (np.arange(cols) + 0.5) * gsd, origin[1] - (np.arange(rows) + 0.5) * gsd)


def _blobs(x: NDArray[Any], y: NDArray[Any], points: NDArray[Any], sigma: float) -> NDArray[Any]:
    image = np.full(x.shape, 100.0)
    for px, py in points:
        image += 1500 * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2)
    return np.rint(image).astype(np.uint16)


def _write(path: Path, image: NDArray[Any], crs: str, origin: tuple[float, float], gsd: float, **profile: Any) -> None:
    transform = rasterio.transform.from_origin(*origin, gsd, gsd)
    profile = {"driver": "GTiff", "dtype": image.dtype, "crs": crs, "transform": transform} | profile
    with rasterio.open(path, "w", count=len(image), height=image.shape[1], width=image.shape[2], **profile) as target:
        target.write(image)


def _points(product: Product, rng: np.random.Generator) -> NDArray[Any]:
    """Nine places well inside the overlap of both images, in the CRS of PAN."""
    rows, cols = product.pan_shape
    x0, y0 = product.origin
    dx, dy = product.ms_offset_xy
    left, top = max(x0, x0 + dx), min(y0, y0 + dy)
    width, height = cols * product.pan_gsd - abs(dx), rows * product.pan_gsd - abs(dy)
    steps = np.array([0.2, 0.5, 0.8])
    grid = [(left + width * u, top - height * v) for u in steps for v in steps]
    return np.array(grid) + rng.uniform(-2, 2, (9, 2)) * product.pan_gsd


def _render(product: Product, folder: Path, points: NDArray[Any]) -> None:
    sigma = 0.9 * product.pan_gsd * product.ratio
    pan = _blobs(*_axes(product.origin, product.pan_gsd, product.pan_shape), points, sigma)
    _write(folder / "pan.tif", pan[None], product.crs, product.origin, product.pan_gsd)
    if product.crs == product.ms_crs:
        ms_origin = (product.origin[0] + product.ms_offset_xy[0], product.origin[1] + product.ms_offset_xy[1])
        x, y = _axes(ms_origin, product.ms_gsd, product.ms_shape)
    else:
        corner = transform_points(product.crs, product.ms_crs, [product.origin[0]], [product.origin[1]])
        ms_origin = (corner[0][0] - 20.0, corner[1][0] + 12.0)
        there = _axes(ms_origin, product.ms_gsd, product.ms_shape)
        flat = transform_points(product.ms_crs, product.crs, there[0].ravel().tolist(), there[1].ravel().tolist())
        x, y = (np.reshape(values, there[0].shape) for values in flat)
    ms = np.stack([_blobs(x, y, points, sigma)] * 3)
    _write(folder / "ms.tif", ms, product.ms_crs, ms_origin, product.ms_gsd)


def _staged(product: Product, folder: Path) -> tuple[StagedScene, SceneStore]:
    with dask.config.set(scheduler="synchronous"):
        options = {"ratio": product.ratio, "warp_ms": product.crs != product.ms_crs}
        staged = stage_scene(make_scene(folder), contract(**options), str(folder / "s.zarr"), block_px=64, reach_px=32)
    return staged, SceneStore.open(staged.store_uri)


def _centroid(image: NDArray[Any], near: tuple[float, float], radius: int) -> tuple[float, float]:
    """Centre of mass (row, col) of what rises above the background around ``near``, re-centred until it stays."""
    row, col = near
    for _ in range(20):
        r0, c0 = round(row), round(col)
        rows, cols = np.mgrid[max(0, r0 - radius) : r0 + radius + 1, max(0, c0 - radius) : c0 + radius + 1]
        rows, cols = rows.clip(0, image.shape[0] - 1), cols.clip(0, image.shape[1] - 1)
        weight = np.clip(image[rows, cols].astype(float) - 100.0, 0, None)
        weight *= np.exp(-0.5 * ((rows - row) ** 2 + (cols - col) ** 2) / (radius / 2) ** 2)
        row, col = float((weight * rows).sum() / weight.sum()), float((weight * cols).sum() / weight.sum())
    return row, col


def _expected(staged: StagedScene, point: NDArray[Any]) -> tuple[float, float]:
    """PAN row and column (0 = centre of the first cropped pixel) of a map coordinate."""
    a, _, c, _, e, f = staged.grid.pan.transform
    return (point[1] - f) / e - 0.5, (point[0] - c) / a - 0.5


@pytest.mark.parametrize("name", PRODUCTS)
def test_points_are_found_where_they_were_drawn(name: str, tmp_path: Path) -> None:
    product = PRODUCTS[name]
    points = _points(product, np.random.default_rng(7))
    _render(product, tmp_path, points)
    staged, store = _staged(product, tmp_path)
    pan = store.read_pan(whole(staged.grid.pan.shape_yx))
    ms = store.read_ms(whole(staged.grid.ms_shape_yx))[0].astype(float)
    on_pan = upsample(ms, staged.grid.pan.shape_yx, staged.grid.ratio, staged.grid.phase_yx)
    radius = 2 * product.ratio
    for point in points:
        wanted = _expected(staged, point)
        assert np.hypot(*np.subtract(_centroid(pan, wanted, radius), wanted)) < 0.05, (name, "PAN")
        assert np.hypot(*np.subtract(_centroid(on_pan, wanted, radius), wanted)) < 0.1, (name, "MS")
    assert staged.band_shift_yx == ((0.0, 0.0),) * len(BANDS)
    assert staged.ms_resampled == product.resampled
    if product.resampled:
        assert staged.grid.phase_yx == ((product.ratio - 1) / 2,) * 2
    else:
        assert staged.valid_share == 1.0


def test_without_the_georeference_landsat_would_be_half_a_pan_pixel_off(tmp_path: Path) -> None:
    """What staging is spared: reading a 2N-1 PAN as twice the MS misplaces everything by 7.5 m on both axes."""
    product = PRODUCTS["landsat collection 2, 2N-1"]
    points = _points(product, np.random.default_rng(7))
    _render(product, tmp_path, points)
    staged, store = _staged(product, tmp_path)
    assert staged.grid.phase_yx == (0.0, 0.0)
    ms = store.read_ms(whole(staged.grid.ms_shape_yx))[0].astype(float)
    offsets = {}
    for phase in (0.0, 0.5):
        on_pan = upsample(ms, staged.grid.pan.shape_yx, 2, (phase, phase))
        wanted = [_expected(staged, point) for point in points]
        offsets[phase] = 15.0 * np.mean([np.subtract(_centroid(on_pan, at, 4), at) for at in wanted], axis=0)
    assert np.abs(offsets[0.0]).max() < 0.3  # metres
    assert offsets[0.5] == pytest.approx((7.5, 7.5), abs=0.3)


def test_holes_stay_holes_when_ms_is_resampled(tmp_path: Path) -> None:
    product = PRODUCTS["gaofen, ratio 3.997"]
    _render(product, tmp_path, _points(product, np.random.default_rng(7)))
    with rasterio.open(tmp_path / "ms.tif") as source:
        image, profile = source.read(), source.profile
    image[:, 30:36, 40:44] = 0
    with rasterio.open(tmp_path / "ms.tif", "w", **profile | {"nodata": 0}) as target:
        target.write(image)
    staged, store = _staged(product, tmp_path)
    valid = store.read_ms_valid(whole(staged.grid.ms_shape_yx))
    assert np.count_nonzero(valid[28:38, 38:46] == 0) == pytest.approx(24, abs=6)
    assert np.count_nonzero(valid == 0) < 40
    assert store.read_ms(whole(staged.grid.ms_shape_yx)).min() > 50  # nothing of the hole was mixed in


@pytest.mark.parametrize("told_by", ["header", "contract"])
def test_a_hole_of_one_band_does_not_bleed_when_ms_is_resampled(tmp_path: Path, told_by: str) -> None:
    product = PRODUCTS["gaofen, ratio 3.997"]
    _render(product, tmp_path, _points(product, np.random.default_rng(2)))
    with rasterio.open(tmp_path / "ms.tif") as dataset:
        ms = np.random.default_rng(3).integers(500, 520, (3, *dataset.shape)).astype(np.uint16)
    ms[1, 30:40, 20:45] = 0
    header = {"nodata": 0} if told_by == "header" else {}
    _write(tmp_path / "ms.tif", ms, product.crs, product.origin, product.ms_gsd, **header)
    said = contract(nodata=0 if told_by == "contract" else None)
    with dask.config.set(scheduler="synchronous"):
        staged = stage_scene(make_scene(tmp_path), said, str(tmp_path / "s.zarr"), block_px=64, reach_px=32)
    store = SceneStore.open(staged.store_uri)
    pixels = store.read_ms(whole(staged.grid.ms_shape_yx))
    valid = store.read_ms_valid(whole(staged.grid.ms_shape_yx)) != 0
    assert staged.ms_resampled
    assert (~valid).sum() == pytest.approx(10 * 25, abs=40)
    assert pixels[:, valid].min() >= 495  # as far as cubic overshoots
    assert pixels[:, valid].max() <= 524


def test_resampling_does_not_depend_on_blocks(tmp_path: Path) -> None:
    product = PRODUCTS["gaofen, ratio 3.9985"]
    _render(product, tmp_path, _points(product, np.random.default_rng(3)))
    images = []
    for block in (32, 128):
        with dask.config.set(scheduler="synchronous"):
            staged = stage_scene(
                make_scene(tmp_path), contract(), str(tmp_path / f"{block}.zarr"), block_px=block, reach_px=32
            )
        images.append(SceneStore.open(staged.store_uri).read_ms(whole(staged.grid.ms_shape_yx)))
    assert np.array_equal(*images)


def test_another_crs_is_refused_unless_the_contract_warps(tmp_path: Path) -> None:
    product = PRODUCTS["MS in the next zone"]
    _render(product, tmp_path, _points(product, np.random.default_rng(7)))
    with pytest.raises(GridMismatchError, match="expected one CRS; warp MS"):
        stage_scene(make_scene(tmp_path), contract(), str(tmp_path / "s.zarr"), block_px=64)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("rpc", r"asset pan: .*RPCs only.* orthorectify"),
        ("gcp", r"asset pan: .*ground control points only.* orthorectify"),
        ("nothing", r"asset pan: .*no CRS or geotransform"),
        ("rotated", "asset pan and ms: PAN has a rotated geotransform"),
    ],
)
def test_sensor_geometry_is_refused_with_its_kind(tmp_path: Path, kind: str, match: str) -> None:
    product = PRODUCTS["perusat, exact 4:1 at 0.7 m"]
    _render(product, tmp_path, _points(product, np.random.default_rng(7)))
    with rasterio.open(tmp_path / "pan.tif") as source:
        image, profile = source.read(), source.profile
    extra: dict[str, Any] = {"crs": None, "transform": None}
    if kind == "gcp":
        corners = [(0, 0), (0, 280), (300, 0), (300, 280)]
        extra["gcps"] = [rasterio.control.GroundControlPoint(row=r, col=c, x=9 + c, y=50 - r) for r, c in corners]
        extra["crs"] = "EPSG:4326"
        del extra["transform"]
        profile.pop("transform")
    if kind == "rpc":
        unit = [0.0] * 20
        extra["rpcs"] = rasterio.rpc.RPC(
            height_off=0, height_scale=1, lat_off=50, lat_scale=1, long_off=9, long_scale=1, line_off=0, line_scale=1,
            samp_off=0, samp_scale=1, line_num_coeff=[1.0, *unit[1:]], line_den_coeff=[1.0, *unit[1:]],
            samp_num_coeff=[1.0, *unit[1:]], samp_den_coeff=[1.0, *unit[1:]],
        )  # fmt: skip
    if kind == "rotated":
        extra = {"transform": rasterio.Affine.rotation(3) @ profile["transform"]}
    profile = {name: value for name, value in (profile | extra).items() if value is not None}
    with rasterio.open(tmp_path / "pan.tif", "w", **profile) as out:
        out.write(image)
    with pytest.raises(GridMismatchError, match=match):
        stage_scene(make_scene(tmp_path), contract(), str(tmp_path / "s.zarr"), block_px=64)
