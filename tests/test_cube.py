"""Staging of small GeoTIFF pairs made here: what is right, and every way the input can be wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rioxarray  # noqa: F401  registers the .rio accessor
import xarray as xr
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.transform import from_origin
from scipy import ndimage

from pancrafter.access import OPEN_TO_ALL
from pancrafter.cube import stage_scene
from pancrafter.errors import GridMismatchError, InvalidSceneError, TransientReadError
from pancrafter.headers import read_headers
from pancrafter.opening import read_failure
from pancrafter.reading import fill_invalid
from pancrafter.resample import degrade
from pancrafter.sensors import BandSpec, SensorContract
from pancrafter.store import SceneStore, open_scene
from pancrafter.types import AssetRef, Scene, StagedScene

BANDS = ("blue", "green", "red")


def contract(**changes: Any) -> SensorContract:
    bands = tuple(BandSpec(name=name, mtf=0.3, in_pan=True) for name in BANDS)
    values: dict[str, Any] = {
        "name": "test-sensor",
        "title": "Test",
        "platforms": ("test",),
        "ratio": 4,
        "dn_max": 2047,
        "nodata": None,
        "pan_asset_keys": ("pan",),
        "pan_mtf": 0.15,
        "bands": bands,
        "weights": "default",
        "source": "made up",
    }
    return SensorContract(**(values | changes))


@dataclass
class Pair:
    """Arrays and georeference of a pair before it is written; tests change what they are about."""

    pan: NDArray[Any]
    ms: NDArray[Any]
    ratio: int = 4
    gsd: float = 0.5
    pan_origin: tuple[float, float] = (500_000.0, 4_000_000.0)
    ms_origin: tuple[float, float] = (500_000.0, 4_000_000.0)
    ms_crs: str = "EPSG:32633"
    ms_gsd: float | None = None
    nodata: float | None = None
    profile: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Scene:
        ms_gsd = self.ms_gsd or self.gsd * self.ratio
        self._write(folder / "pan.tif", self.pan[None], "EPSG:32633", from_origin(*self.pan_origin, self.gsd, self.gsd))
        self._write(folder / "ms.tif", self.ms, self.ms_crs, from_origin(*self.ms_origin, ms_gsd, ms_gsd))
        return make_scene(folder)

    def _write(self, path: Path, image: NDArray[Any], crs: str, transform: Any) -> None:
        count, rows, cols = image.shape
        profile = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        profile |= {"count": count, "height": rows, "width": cols, "dtype": image.dtype.name, "crs": crs}
        profile |= {"transform": transform, "nodata": self.nodata} | self.profile
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(image)


def make_scene(folder: Path, **changes: Any) -> Scene:
    values: dict[str, Any] = {
        "collection": "tests",
        "item_id": "pair",
        "sensor": "test-sensor",
        "acquired": "2026-01-01T00:00:00Z",
        "pan": AssetRef(key="pan", href=str(folder / "pan.tif")),
        "ms": tuple(AssetRef(key="ms", href=str(folder / "ms.tif"), band=band) for band in (1, 2, 3)),
        "bands": BANDS,
        "fingerprint": "first",
        "source_href": "http://example.com/item.json",
        "geometry": {"type": "Point", "coordinates": [0, 0]},
    }
    return Scene(**(values | changes))


@pytest.fixture
def pair() -> Pair:
    """An odd-sized pair of random DN, every pixel its own value."""
    rng = np.random.default_rng(5)
    return Pair(
        pan=rng.integers(1, 2000, (149, 205)).astype(np.uint16), ms=rng.integers(1, 2000, (3, 37, 51)).astype(np.uint16)
    )


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[StagedScene, SceneStore]]:
    def run(pair: Pair, name: str = "scene.zarr", **options: Any) -> tuple[StagedScene, SceneStore]:
        changes = options.pop("contract", {})
        scene = pair.write(tmp_path)
        with dask.config.set(scheduler="threads", num_workers=2):
            settings = {"block_px": 64, "reach_px": 32} | options
            staged = stage_scene(scene, contract(**changes), str(tmp_path / name), **settings)
        return staged, SceneStore.open(staged.store_uri)

    return run


Stage = Callable[..., tuple[StagedScene, SceneStore]]


def whole(shape_yx: tuple[int, int]) -> tuple[slice, slice]:
    return slice(0, shape_yx[0]), slice(0, shape_yx[1])


@pytest.mark.parametrize("warp_ms", [False, True])
def test_pixels_arrive_unchanged_on_the_common_grid(pair: Pair, stage: Stage, *, warp_ms: bool) -> None:
    staged, store = stage(pair, contract={"warp_ms": warp_ms})
    assert staged.grid.phase_yx == (1.5, 1.5)
    # 149 x 205 PAN pixels reach one beyond 4 * 37 = 148 and 4 * 51 = 204.
    assert staged.grid.pan.shape_yx == (148, 204)
    assert np.array_equal(store.read_pan(whole((148, 204))), pair.pan[:148, :204])
    assert np.array_equal(store.read_ms(whole((37, 51))), pair.ms)
    assert staged.valid_share == 1.0
    assert staged.dtype == "uint16"
    assert not staged.ms_resampled
    assert staged.bytes_read == 2 * (148 * 204 + 3 * 37 * 51)
    assert store.staged == staged


def test_value_range_is_percentiles_of_valid_dn(pair: Pair, stage: Stage) -> None:
    staged, _ = stage(pair)
    low, high = np.percentile(pair.pan[:148, :204], (1, 99), method="inverted_cdf")
    assert (staged.pan_range.low, staged.pan_range.high) == (low, high)
    for band, found in zip(pair.ms, staged.ms_ranges, strict=True):
        assert (found.low, found.high) == tuple(np.percentile(band, (1, 99), method="inverted_cdf"))


def test_constant_channel_gets_a_range(pair: Pair, stage: Stage) -> None:
    pair.ms[1] = 300
    pair.ms[2, 0, 0], pair.ms[2].flat[1:] = 7, 0
    staged, _ = stage(pair)
    assert (staged.ms_ranges[1].low, staged.ms_ranges[1].high) == (299, 301)
    assert (staged.ms_ranges[2].low, staged.ms_ranges[2].high) == (0, 7)


def test_different_extents_pair_by_georeference(pair: Pair, stage: Stage) -> None:
    """PAN begins 6 m (12 px) east and 4 m (8 px) south of MS: whole MS pixels, so the phase stays 1.5."""
    pair.pan_origin = (500_006.0, 3_999_996.0)
    staged, store = stage(pair)
    assert staged.grid.ms_offset_yx == (2, 3)
    assert staged.grid.phase_yx == (1.5, 1.5)
    assert staged.grid.pan.shape_yx == (140, 192)
    assert np.array_equal(store.read_ms(whole((35, 48))), pair.ms[:, 2:, 3:])
    assert np.array_equal(store.read_pan(whole((140, 192))), pair.pan[:140, :192])


def test_landsat_like_pan_is_centre_aligned(stage: Stage) -> None:
    """The content of a 2N - 1 PAN agrees with MS at phase 0: staging must find no shift, edge phase would give 0.5."""
    rng = np.random.default_rng(2)
    pan = 1000 + 200 * ndimage.gaussian_filter(rng.normal(size=(257, 257)), 1.0) / 0.28
    ms = np.stack([degrade(pan, (129, 129), 2, (0.0, 0.0), 0.3) * weight for weight in (0.8, 1.0, 1.1)])
    pair = Pair(
        pan=np.rint(pan).astype(np.uint16),
        ms=np.rint(ms).astype(np.uint16),
        ratio=2,
        gsd=15.0,
        pan_origin=(500_007.5, 3_999_992.5),
    )
    staged, _ = stage(pair, contract={"ratio": 2})
    assert staged.grid.phase_yx == (0.0, 0.0)
    assert staged.grid.pan.shape_yx == (257, 257)
    assert staged.grid.ms_shape_yx == (129, 129)
    assert staged.band_shift_yx == ((0.0, 0.0),) * 3
    assert min(staged.shift_confidence) > 0.95


def test_real_displacement_is_measured_and_recorded(stage: Stage) -> None:
    rng = np.random.default_rng(3)
    pan = 1000 + 200 * ndimage.gaussian_filter(rng.normal(size=(400, 400)), 2.0) / 0.14
    ms = np.stack([degrade(pan, (100, 100), 4, (1.5 + dy, 1.5 - 0.7), 0.3) for dy in (2.3, 2.3, 1.2)])
    pair = Pair(pan=np.rint(pan).astype(np.uint16), ms=np.rint(ms).astype(np.uint16))
    staged, _ = stage(pair)
    for shift, dy in zip(staged.band_shift_yx, (2.3, 2.3, 1.2), strict=True):
        assert shift == pytest.approx((dy, -0.7), abs=0.05)


def _with_border(pair: Pair, nodata: float) -> None:
    rows, cols = np.indices(pair.ms.shape[1:])
    hole = (rows + cols < 20) | ((rows - 25) ** 2 + (cols - 30) ** 2 < 16)
    pair.ms[:, hole] = nodata
    pair.pan[:60, :17] = nodata
    pair.pan[100:105] = nodata


def test_nodata_becomes_mask_and_is_filled(pair: Pair, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)  # importing it would take longer than staging a small scene
    _with_border(pair, 0)
    pair.nodata = 0
    staged, store = stage(pair)
    pan_valid = pair.pan[:148, :204] != 0
    ms_valid = (pair.ms != 0).all(axis=0)
    assert np.array_equal(store.read_pan_valid(whole((148, 204))) != 0, pan_valid)
    assert np.array_equal(store.read_ms_valid(whole((37, 51))) != 0, ms_valid)
    both = pan_valid & np.kron(ms_valid, np.ones((4, 4), bool))
    assert staged.valid_share == pytest.approx(both.mean())
    assert staged.nodata == 0
    pan = store.read_pan(whole((148, 204)))
    assert np.array_equal(pan[pan_valid], pair.pan[:148, :204][pan_valid])
    assert (pan > 0).all()
    # Row 102 is the middle of a hole of five rows: 99 and 105 are equally near.
    expected = (pair.pan[99].astype(float) + pair.pan[105]) / 2
    assert np.abs(pan[102] - expected[:204]).max() <= 0.5


def test_zero_is_data_unless_something_says_otherwise(pair: Pair, stage: Stage) -> None:
    pair.pan[:20] = 0
    assert stage(pair)[0].valid_share == 1.0
    assert stage(pair, "other.zarr", contract={"nodata": 0})[0].valid_share == pytest.approx(128 / 148)


def test_header_nodata_outranks_contract(pair: Pair, stage: Stage) -> None:
    pair.pan[:20] = 0
    pair.nodata = 65535
    assert stage(pair, contract={"nodata": 0})[0].valid_share == 1.0


@pytest.mark.parametrize(
    ("header", "item", "of_contract", "holes"),
    [(None, 7, None, 7), (None, -9999, 7, 7), (7, 9, None, 7), (None, 0, 7, 0), (None, 65535, 7, 65535)],
)
def test_nodata_of_the_item_counts_where_the_header_has_none(
    pair: Pair, tmp_path: Path, header: float | None, item: float, of_contract: float | None, holes: int
) -> None:
    pair.ms[:, :, :10], pair.nodata = holes, header
    scene = pair.write(tmp_path)
    scene = scene.model_copy(update={"ms": tuple(ref.model_copy(update={"nodata": item}) for ref in scene.ms)})
    staged = stage_scene(scene, contract(nodata=of_contract), str(tmp_path / "c.zarr"), block_px=64)
    valid = SceneStore.open(staged.store_uri).read_ms_valid(whole((37, 51)))
    assert not valid[:, :10].any()
    assert valid[:, 10:].mean() > 0.95
    assert staged.nodata == holes


@pytest.mark.parametrize(
    ("of_header", "kept"), [((1.0, 0.0), (0.25, -2.0)), ((0.5, 0.0), (0.5, None)), ((1.0, -3.0), (None, -3.0))]
)
def test_scaling_of_the_item_is_carried_where_the_header_has_none(
    pair: Pair, tmp_path: Path, of_header: tuple[float, float], kept: tuple[float | None, float | None]
) -> None:
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / "ms.tif", "r+") as dataset:
        dataset.scales, dataset.offsets = ([value] * 3 for value in of_header)
    told = tuple(ref.model_copy(update={"scale": 0.25, "offset": -2.0}) for ref in scene.ms)
    staged = stage_scene(scene.model_copy(update={"ms": told}), contract(), str(tmp_path / "c.zarr"), block_px=64)
    assert (staged.scale, staged.offset) == tuple(value and (value,) * 3 for value in kept)


@pytest.mark.parametrize("said_by", ["mask", "alpha"])
def test_mask_and_alpha_outrank_contract(pair: Pair, tmp_path: Path, said_by: str) -> None:
    """What they call measured is data, zero too."""
    scene = pair.write(tmp_path)
    pair.pan[:74] = 0
    said = np.full(pair.pan.shape, 255, np.uint16)
    said[:37] = 0
    profile = _profile(scene.pan.href) | {"count": 2 if said_by == "alpha" else 1}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(scene.pan.href, "w", **profile) as target:
        if said_by == "alpha":
            target.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            target.write(said, 2)
        else:
            target.write_mask(said.astype(np.uint8))
        target.write(pair.pan, 1)
    staged = stage_scene(scene, contract(nodata=0), str(tmp_path / "a.zarr"), block_px=64)
    assert staged.valid_share == pytest.approx(111 / 148)


def test_staging_does_not_depend_on_block_size(pair: Pair, stage: Stage) -> None:
    _with_border(pair, 0)
    pair.nodata = 0
    stores = [stage(pair, f"{block_px}.zarr", block_px=block_px)[1] for block_px in (40, 100, 256)]
    for read, shape in (("read_pan", (148, 204)), ("read_ms", (37, 51)), ("read_ms_valid", (37, 51))):
        first, *others = [getattr(store, read)(whole(shape)) for store in stores]
        for other in others:
            assert np.array_equal(first, other)
    first, *others = [store.staged.model_copy(update={"store_uri": "", "bytes_read": 0}) for store in stores]
    for other in others:
        assert other == first


def test_alpha_band_masks(pair: Pair, tmp_path: Path, stage: Stage) -> None:
    alpha = np.full((1, *pair.ms.shape[1:]), 65535, np.uint16)
    alpha[0, :10] = 0
    ms = pair.ms
    pair.ms = np.concatenate([ms, alpha])
    pair.profile = {"photometric": "RGB", "alpha": "YES"}
    scene = pair.write(tmp_path)
    with rasterio.open(scene.ms[0].href) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    staged = stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64)
    assert staged.valid_share == pytest.approx(27 / 37)


@pytest.mark.parametrize("resampled", [False, True])
def test_alpha_masks_wherever_gdal_sees_none(pair: Pair, tmp_path: Path, *, resampled: bool) -> None:
    """GDAL makes a mask of alpha only in files of two or four bands; here are five, and PAN with two of three."""
    alpha = np.full((1, *pair.ms.shape[1:]), 65535, np.uint16)
    alpha[0, :10] = 0
    pair.ms = np.concatenate([pair.ms, pair.ms[:1], alpha])
    pair.ms_gsd = 1.995 if resampled else None
    scene = pair.write(tmp_path)
    with rasterio.open(scene.ms[0].href, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3, ColorInterp.alpha]
        assert dataset.dataset_mask().all()
    staged = stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64)
    assert staged.ms_resampled == resampled
    assert staged.valid_share == pytest.approx(27 / 37, abs=0.01 if resampled else 1e-6)


def test_nan_declared_for_every_band_is_one_nodata_value(pair: Pair, tmp_path: Path) -> None:
    pair.ms = np.full((3, 37, 51), 500, np.float32)
    pair.ms[:, :5] = pair.ms[1, 10:15] = np.nan  # the latter in one band only
    pair.ms_gsd = 1.995
    scene = pair.write(tmp_path)
    with rasterio.open(scene.ms[0].href, "r+") as dataset:
        dataset.nodata = np.nan
    staged = stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64)
    store = SceneStore.open(staged.store_uri)
    assert store.read_ms_valid(whole((37, 51)))[[2, 7, 12], 25].tolist() == [0, 1, 0]
    assert (store.read_ms(whole((37, 51))) == 500).all()


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), *((dtype, value) for dtype in ("int16", "float32") for value in (None, 0, -9999))],
)
def test_what_interpolation_adds_is_no_fault_of_the_file(
    pair: Pair, tmp_path: Path, dtype: str, nodata: float | None
) -> None:
    """Beside a bright field it gives negative values, and fractions of floats; holes are the same in every type."""
    pair.ms[:] = 5
    pair.ms[:, 20:30, 20:30] = 200
    pair.ms_gsd = 1.995
    stores = []
    for name, declared in (("uint16", 65535 if nodata else nodata), (dtype, nodata)):
        image = pair.ms.astype(name)
        image[:, :5, :5] = image[1, 8:13, 8:13] = 5 if declared is None else declared
        scene = replace(pair, ms=image).write(tmp_path)
        with rasterio.open(scene.ms[0].href, "r+") as dataset:
            dataset.nodata = declared
        staged = stage_scene(scene, contract(), str(tmp_path / f"{name}.zarr"), block_px=64)
        stores.append(SceneStore.open(staged.store_uri))
    one, other = stores
    window = whole(one.ms_shape_yx)
    assert np.array_equal(one.read_ms_valid(window), other.read_ms_valid(window))
    assert one.read_ms_valid(window)[10, 10] == (nodata is None)  # of one band only
    assert np.abs(one.read_ms(window).astype(int) - other.read_ms(window)).max() <= 1


def test_fractions_of_the_file_are_refused_where_it_is_resampled_too(pair: Pair, tmp_path: Path) -> None:
    pair.ms = pair.ms / np.float32(2000)
    pair.ms_gsd = 1.995
    with pytest.raises(InvalidSceneError, match="fractional float32 values, expected whole DN"):
        stage_scene(pair.write(tmp_path), contract(), str(tmp_path / "a.zarr"), block_px=64)


def test_alpha_of_pan_masks(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    alpha = np.full(pair.pan.shape, 255, np.uint16)
    alpha[:37] = 0
    with rasterio.open(scene.pan.href, "w", **(_profile(scene.pan.href) | {"count": 2})) as target:
        target.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        target.write(np.stack([pair.pan, alpha]))
    staged = stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64)
    assert staged.valid_share == pytest.approx(111 / 148)


def test_a_band_of_the_scene_is_no_alpha_whatever_its_header_says(pair: Pair, tmp_path: Path) -> None:
    """As GDAL calls the fourth band of bytes, which is near infrared."""
    pair.ms = np.concatenate([pair.ms, pair.ms[:1]]).astype(np.uint8)
    pair.ms[3, :10] = 0
    scene = pair.write(tmp_path)
    with rasterio.open(scene.ms[0].href) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    bands = (*BANDS, "nir")
    specs = tuple(BandSpec(name=name, mtf=0.3, in_pan=True) for name in bands)
    refs = tuple(AssetRef(key="ms", href=scene.ms[0].href, band=band) for band in (1, 2, 3, 4))
    four = scene.model_copy(update={"ms": refs, "bands": bands})
    staged = stage_scene(four, contract(bands=specs), str(tmp_path / "a.zarr"), block_px=64)
    assert staged.valid_share == 1.0
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms)
    pair.ms_gsd = 1.995
    pair.write(tmp_path)
    with pytest.raises(
        InvalidSceneError, match=r"asset ms: MS must be resampled, but the header calls its band 4 alpha"
    ):
        stage_scene(four, contract(bands=specs), str(tmp_path / "b.zarr"), block_px=64)


def test_a_palette_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.pan = (pair.pan // 8).astype(np.uint8)
    scene = pair.write(tmp_path)
    with rasterio.open(scene.pan.href, "r+") as dataset:
        dataset.write_colormap(1, {value: (value, 0, 255 - value) for value in range(256)})
    with pytest.raises(InvalidSceneError, match=r"asset pan: its pixels are places in a palette.*-expand rgb"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"))


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64"])
def test_complex_pixels_are_refused(pair: Pair, tmp_path: Path, dtype: str) -> None:
    scene = pair.write(tmp_path)
    profile = _profile(scene.pan.href)
    with rasterio.open(scene.pan.href, "w", **(profile | {"dtype": dtype})):
        pass
    with pytest.raises(InvalidSceneError, match=rf"asset pan: pixel types are \['{dtype}'\], expected one real"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"))


def test_integral_floats_are_dn_and_nan_is_invalid(pair: Pair, stage: Stage) -> None:
    pair.pan, pair.ms = pair.pan.astype(np.float32), pair.ms.astype(np.float32)
    pair.ms[1, :, :3] = np.nan
    staged, store = stage(pair)
    assert staged.dtype == "uint16"
    assert staged.valid_share == pytest.approx(48 / 51)
    assert np.array_equal(store.read_ms((slice(0, 37), slice(3, 51))), pair.ms[:, :, 3:].astype(np.uint16))


def test_negative_nodata_of_signed_type(pair: Pair, stage: Stage) -> None:
    pair.pan, pair.ms = pair.pan.astype(np.int16), pair.ms.astype(np.int16)
    pair.ms[:, :5], pair.nodata = -9999, -9999
    staged, _ = stage(pair)
    assert staged.valid_share == pytest.approx(32 / 37)
    assert staged.nodata is None  # uint16 output has no -9999


def test_bytes_keep_their_type_and_ceiling(pair: Pair, stage: Stage) -> None:
    pair.pan, pair.ms = (pair.pan // 8).astype(np.uint8), (pair.ms // 8).astype(np.uint8)
    staged, _ = stage(pair)
    assert (staged.dtype, staged.dn_max) == ("uint8", 255)


def test_bytes_beside_pan_of_a_wider_type_have_its_ceiling(pair: Pair, tmp_path: Path) -> None:
    """Or what of PAN is above 255 would count as saturated."""
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / "ms.tif", "w", **(_profile(scene.ms[0].href) | {"dtype": "uint8"})) as target:
        target.write((pair.ms // 8).astype(np.uint8))
    staged = stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64)
    assert (staged.dtype, staged.dn_max) == ("uint16", 2047)


def test_ceiling_is_that_of_the_assets_own_scaling_once_that_shows(pair: Pair, tmp_path: Path) -> None:
    scaled = contract(dn_max_by_key={"*_analytic": 65535})
    for factor, expected in ((1, 2047), (4, 65535)):
        replace(pair, ms=pair.ms * factor).write(tmp_path)
        ms = tuple(AssetRef(key="ms_analytic", href=str(tmp_path / "ms.tif"), band=band) for band in (1, 2, 3))
        staged = stage_scene(make_scene(tmp_path, ms=ms), scaled, str(tmp_path / f"{factor}.zarr"), block_px=64)
        assert staged.dn_max == expected


def test_one_file_per_band_and_scale_of_the_header(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    for band, name in enumerate(BANDS):
        with rasterio.open(scene.ms[0].href) as source:
            profile = source.profile | {"count": 1}
            with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(band + 1), 1)
                target.scales, target.offsets = (0.01 * (band + 1),), (-0.1,)
    assets = tuple(AssetRef(key=name, href=str(tmp_path / f"{name}.tif")) for name in BANDS)
    staged = stage_scene(scene.model_copy(update={"ms": assets}), contract(), str(tmp_path / "b.zarr"), block_px=64)
    assert staged.scale == (0.01, 0.02, 0.03)
    assert staged.offset == (-0.1,) * 3
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms)


def test_files_whose_bands_alternate_keep_the_scenes_order(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / "green.tif", "w", **(_profile(scene.ms[0].href) | {"count": 1})) as target:
        target.write(pair.ms[1], 1)
        target.scales = (0.5,)
    ms = (scene.ms[0], AssetRef(key="green", href=str(tmp_path / "green.tif")), scene.ms[2])
    staged = stage_scene(scene.model_copy(update={"ms": ms}), contract(), str(tmp_path / "b.zarr"), block_px=64)
    assert staged.scale == (1, 0.5, 1)
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms)


def test_band_order_is_the_scenes(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    scene = scene.model_copy(update={"ms": scene.ms[::-1], "bands": BANDS[::-1]})
    staged = stage_scene(scene, contract(), str(tmp_path / "c.zarr"), block_px=64)
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms[::-1])


@pytest.mark.parametrize(
    ("assumed", "described", "order"),
    [
        (True, ("Red", "green", "blue"), [2, 1, 0]),
        (False, ("Red", "green", "blue"), [0, 1, 2]),
        (True, ("Red", "green", ""), [0, 1, 2]),
        (True, ("red", "red", "blue"), [0, 1, 2]),
    ],
)
def test_a_header_that_names_all_bands_decides_where_the_item_names_none(
    pair: Pair, tmp_path: Path, described: tuple[str, ...], order: list[int], *, assumed: bool
) -> None:
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / "ms.tif", "r+") as dataset:
        dataset.descriptions = described
    refs = (ref.model_copy(update={"assumed": assumed, "scale": 0.5 * ref.band}) for ref in scene.ms)
    scene = scene.model_copy(update={"ms": tuple(refs)})
    staged = stage_scene(scene, contract(), str(tmp_path / "c.zarr"), block_px=64)
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms[order])
    assert staged.assumed_order == (assumed and order == [0, 1, 2])
    assert staged.scale == tuple(0.5 * (index + 1) for index in order), "the item says these by number"


@pytest.mark.parametrize("name", ["pan", "ms"])
@pytest.mark.parametrize("kind", [ColorInterp.undefined, ColorInterp.alpha])
def test_more_bands_than_expected_are_refused_where_none_is_named(
    pair: Pair, tmp_path: Path, name: str, kind: ColorInterp
) -> None:
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / f"{name}.tif") as dataset:
        profile, image = dataset.profile, dataset.read()
    with rasterio.open(tmp_path / f"{name}.tif", "w", **profile | {"count": len(image) + 1}) as dataset:
        dataset.colorinterp = (*[ColorInterp.gray] * len(image), kind)
        dataset.write(np.concatenate([image, image[:1]]))
    unnamed = {"assumed": True}
    scene = scene.model_copy(
        update={
            "pan": scene.pan.model_copy(update=unnamed),
            "ms": tuple(ref.model_copy(update=unnamed) for ref in scene.ms),
        }
    )
    refused = pytest.raises(InvalidSceneError, match=f"asset {name}: it has .* bands, .* expected {len(image)}; name")
    with refused if kind == ColorInterp.undefined else nullcontext():
        read_headers(scene, contract(), OPEN_TO_ALL)


def test_complete_store_is_returned_and_others_are_rebuilt(pair: Pair, tmp_path: Path) -> None:
    scene, uri = pair.write(tmp_path), str(tmp_path / "d.zarr")
    first = stage_scene(scene, contract(), uri, block_px=64)
    (tmp_path / "pan.tif").unlink()
    assert stage_scene(scene, contract(), uri, block_px=64) == first
    changed = scene.model_copy(update={"fingerprint": "second"})
    with pytest.raises(InvalidSceneError, match="pan"):
        stage_scene(changed, contract(), uri, block_px=64)
    pair.pan[:] = 9
    pair.write(tmp_path)
    again = stage_scene(changed, contract(), uri, block_px=64)
    assert again.pan_range.high == 10


def test_interrupted_staging_goes_on(pair: Pair, tmp_path: Path) -> None:
    """What was staged before the interruption is kept: the second run reads nothing of the PAN file again."""
    scene, uri = pair.write(tmp_path), str(tmp_path / "e.zarr")
    good = (tmp_path / "ms.tif").read_bytes()
    (tmp_path / "ms.tif").write_bytes(good[: len(good) * 2 // 3])
    for _ in range(20):  # Dask may start with the window that fails; what any attempt staged is kept
        with dask.config.set(scheduler="synchronous"), pytest.raises(InvalidSceneError, match="asset ms"):
            stage_scene(scene, contract(), uri, block_px=64)
        assert not SceneStore.open(uri).complete
        if begun := (SceneStore.open(uri).read_pan_valid(whole((148, 204))) == 1).any():
            break
    assert begun
    (tmp_path / "ms.tif").write_bytes(good)
    staged = stage_scene(scene, contract(), uri, block_px=64)
    assert np.array_equal(SceneStore.open(uri).read_ms(whole((37, 51))), pair.ms)
    assert np.array_equal(SceneStore.open(uri).read_pan(whole((148, 204))), pair.pan[:148, :204])
    whole_run = stage_scene(scene, contract(), str(tmp_path / "f.zarr"), block_px=64)
    same = {"store_uri": uri, "bytes_read": staged.bytes_read}
    assert whole_run.model_copy(update=same) == staged
    assert staged.bytes_read < whole_run.bytes_read


def test_staging_of_something_else_starts_over(pair: Pair, tmp_path: Path) -> None:
    scene, uri = pair.write(tmp_path), str(tmp_path / "e.zarr")
    _truncate(tmp_path, "ms.tif")
    with pytest.raises(InvalidSceneError, match="asset ms"):
        stage_scene(scene, contract(), uri, block_px=64)
    pair.pan += 1
    changed = pair.write(tmp_path).model_copy(update={"fingerprint": "second"})
    stage_scene(changed, contract(), uri, block_px=64)
    assert np.array_equal(SceneStore.open(uri).read_pan(whole((148, 204))), pair.pan[:148, :204])


def test_a_flipped_bit_fails_its_reader(pair: Pair, stage: Stage) -> None:
    staged, store = stage(pair)
    shard = Path(staged.store_uri) / "pan" / "c" / "0" / "0"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shard.write_bytes(bytes(damaged))
    with pytest.raises(InvalidSceneError, match=r"pan.* is damaged"):
        store.read_pan(whole(staged.grid.pan.shape_yx))


def test_the_staged_scene_is_an_xarray_dataset(pair: Pair, stage: Stage) -> None:
    staged, store = stage(pair)
    with open_scene(staged.store_uri) as cube:
        assert isinstance(cube, xr.Dataset)
        assert cube["pan"].chunks == ((64, 64, 20), (64, 64, 64, 12))
        assert cube["ms"].chunks == ((3,), (16, 16, 5), (16, 16, 16, 3))
        assert cube["pan"].dims == ("y", "x")
        assert cube["ms"].dims == ("band", "ym", "xm")
        assert cube.rio.crs.to_epsg() == 32633
        assert tuple(cube["pan"].rio.transform())[:6] == pytest.approx(staged.grid.pan.transform)
        ms = cube["ms"].rio.set_spatial_dims("xm", "ym")
        assert tuple(ms.rio.transform())[:6] == pytest.approx((2.0, 0, 500_000.0, 0, -2.0, 4_000_000.0))
        assert np.array_equal(cube["ms"].values, store.read_ms(whole((37, 51))))


# --- bad input ------------------------------------------------------------------------------------------------------


def _truncate(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize("name", ["pan.tif", "ms.tif"])
def test_truncated_file_names_asset_and_window(pair: Pair, tmp_path: Path, name: str) -> None:
    scene = pair.write(tmp_path)
    _truncate(tmp_path, name)
    message = rf"scene tests/pair asset {name[:-4]}: window rows \d+\.\.\d+, columns .* truncated or damaged"
    with pytest.raises(InvalidSceneError, match=message):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)


def test_not_a_tiff(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    (tmp_path / "pan.tif").write_text("<html>login required</html>")
    with pytest.raises(InvalidSceneError, match=r"asset pan: its header .* expected a GeoTIFF"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"))


def test_missing_file(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    (tmp_path / "ms.tif").unlink()
    with pytest.raises(InvalidSceneError, match=r"asset ms: its header .*No such file.*check the asset's href"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"))


def test_a_file_that_may_not_be_read_is_not_called_damaged() -> None:
    said = read_failure(RasterioIOError("/data/ms.tif: Permission denied"), "scene", "ms", "/data/ms.tif", what="it")
    assert str(said).endswith("Permission denied; check the asset's href and permissions")


def test_unreachable_server_may_be_tried_again(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    asset = AssetRef(key="pan", href="http://127.0.0.1:9/pan.tif")
    with pytest.raises(TransientReadError, match="asset pan: its header cannot be read"):
        stage_scene(scene.model_copy(update={"pan": asset}), contract(), str(tmp_path / "x.zarr"))


def _negative(pair: Pair) -> None:
    pair.ms = pair.ms.astype(np.int16)
    pair.ms[2, 5, 5] = -3


def _fractional(pair: Pair) -> None:
    pair.pan = pair.pan.astype(np.float32) / 3


def _all_nodata(pair: Pair) -> None:
    pair.nodata = 0
    pair.ms[:] = 0


def _one_band_nodata(pair: Pair) -> None:
    pair.nodata = 0
    pair.ms[2] = 0


def _bands_never_together(pair: Pair) -> None:
    pair.nodata = 0
    pair.ms[0, :20] = pair.ms[1, 20:] = 0


def _disjoint_valid(pair: Pair) -> None:
    pair.nodata = 0
    pair.ms[:, :20] = 0
    pair.pan[80:] = 0


def _too_bright(pair: Pair) -> None:
    pair.ms[0, :, 0] = 9000


def _elsewhere(pair: Pair) -> None:
    pair.ms_origin = (600_000.0, 4_000_000.0)


def _other_crs(pair: Pair) -> None:
    pair.ms_crs = "EPSG:32634"


def _other_ratio(pair: Pair) -> None:
    pair.ms_gsd = 1.5


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (_negative, InvalidSceneError, r"asset ms: rows .* hold DN from -3 .* expected 0 to 65535; declare the nodata"),
        (_fractional, InvalidSceneError, "asset pan: .*fractional float32 values, expected whole DN"),
        (_all_nodata, InvalidSceneError, "asset ms: blue has no valid pixel"),
        (_one_band_nodata, InvalidSceneError, "asset ms: red has no valid pixel"),
        (_bands_never_together, InvalidSceneError, "asset ms: no pixel is valid in all bands at once"),
        (_disjoint_valid, InvalidSceneError, "asset pan and ms: no pixel is valid in PAN and MS at once"),
        (_too_bright, InvalidSceneError, r"asset ms: blue holds DN up to 9000 .* expected at most 2047"),
        (_elsewhere, GridMismatchError, "asset pan and ms: PAN covers x .* expected an overlap"),
        (_other_crs, GridMismatchError, "PAN is in EPSG:32633 and MS in EPSG:32634, expected one CRS"),
        (_other_ratio, GridMismatchError, "found an MS to PAN pixel ratio of 3 along y, expected 4"),
    ],
)
def test_bad_pixels_and_grids_are_refused(
    pair: Pair, tmp_path: Path, spoil: Callable[[Pair], None], error: type[Exception], match: str
) -> None:
    spoil(pair)
    scene = pair.write(tmp_path)
    with pytest.raises(error, match=match):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)


def test_bands_of_different_nodata_are_not_resampled(pair: Pair, tmp_path: Path) -> None:
    pair.ms_gsd = 1.995
    scene = pair.write(tmp_path)
    refs = tuple(ref.model_copy(update={"nodata": ref.band % 2}) for ref in scene.ms)
    with pytest.raises(InvalidSceneError, match=r"asset ms: MS must be resampled, .* nodata values \(1, 0, 1\)"):
        stage_scene(scene.model_copy(update={"ms": refs}), contract(), str(tmp_path / "x.zarr"))


def test_missing_band(pair: Pair, tmp_path: Path) -> None:
    pair.ms = pair.ms[:2]
    with pytest.raises(InvalidSceneError, match="asset ms: band 3 was expected, the file has 2"):
        stage_scene(pair.write(tmp_path), contract(), str(tmp_path / "x.zarr"))


def test_bands_on_different_grids(pair: Pair, tmp_path: Path) -> None:
    scene = pair.write(tmp_path)
    with rasterio.open(tmp_path / "odd.tif", "w", **(_profile(scene.ms[0].href) | {"width": 50, "count": 1})) as target:
        target.write(pair.ms[2, :, :50], 1)
    odd = (*scene.ms[:2], AssetRef(key="odd", href=str(tmp_path / "odd.tif")))
    with pytest.raises(InvalidSceneError, match=r"asset odd: its grid is 37 x 50 px .*expected one grid for all MS"):
        stage_scene(scene.model_copy(update={"ms": odd}), contract(), str(tmp_path / "x.zarr"))


@pytest.mark.parametrize(("off_m", "same"), [(1e-9, True), (1e-3, False)])
def test_bands_whose_origins_are_rounded_differently(pair: Pair, tmp_path: Path, off_m: float, *, same: bool) -> None:
    scene = pair.write(tmp_path)
    x, y = pair.ms_origin
    place = {"transform": from_origin(x + off_m, y, 2, 2), "count": 1}
    with rasterio.open(tmp_path / "odd.tif", "w", **(_profile(scene.ms[0].href) | place)) as target:
        target.write(pair.ms[2], 1)
    odd = (*scene.ms[:2], AssetRef(key="odd", href=str(tmp_path / "odd.tif")))
    spread = scene.model_copy(update={"ms": odd})
    if same:
        staged = stage_scene(spread, contract(), str(tmp_path / "x.zarr"), block_px=64)
        assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms)
    else:
        with pytest.raises(InvalidSceneError, match=r"asset odd: its grid is .*expected one grid for all MS"):
            stage_scene(spread, contract(), str(tmp_path / "x.zarr"))


@pytest.mark.parametrize("missing", ["crs", "transform"])
def test_no_georeference(pair: Pair, tmp_path: Path, missing: str) -> None:
    """And no warning of rasterio's, which would say the same without a name."""
    scene = pair.write(tmp_path)
    profile = _profile(scene.pan.href) | {missing: None}
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(tmp_path / "pan.tif", "w", **profile) as target,
    ):
        target.write(pair.pan, 1)
    with pytest.raises(GridMismatchError, match=r"asset pan: the header has no CRS .* orthorectify"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"))


def test_a_small_file_may_hold_next_to_nothing(pair: Pair, tmp_path: Path) -> None:
    """32 MiB in some kilobytes, as where all is nodata."""
    scene = pair.write(tmp_path)
    empty = _profile(scene.pan.href) | {"width": 4096, "height": 4096, "sparse_ok": True, "blockxsize": 512}
    with rasterio.open(scene.pan.href, "w", **empty | {"blockysize": 512}):
        pass
    assert Path(scene.pan.href).stat().st_size < 10_000
    assert read_headers(scene, contract(), OPEN_TO_ALL).pan.grid.shape_yx == (4096, 4096)


@pytest.mark.parametrize("kind", ["vrt", "img"])
def test_pixels_in_other_files_are_not_missed(pair: Pair, tmp_path: Path, kind: str) -> None:
    """Of 551 MiB, which a VRT takes from the file it names, and an .img keeps in an .ige beside it."""
    scene, side, given = pair.write(tmp_path), 17_000, tmp_path / f"large.{kind}"
    profile = {"width": side, "height": side, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    profile |= {"transform": from_origin(*pair.pan_origin, 0.5, 0.5)}
    if kind == "vrt":
        with rasterio.open(tmp_path / "large.tif", "w", **profile, tiled=True, sparse_ok=True):
            pass
        rasterio.shutil.copy(tmp_path / "large.tif", given, driver="VRT")
    else:
        with rasterio.open(given, "w", **profile, USE_SPILL=True):
            pass
    assert given.stat().st_size < 10_000
    large = scene.model_copy(update={"pan": AssetRef(key="pan", href=str(given))})
    assert read_headers(large, contract(), OPEN_TO_ALL).pan.grid.shape_yx == (side, side)


def _profile(href: str) -> dict[str, Any]:
    with rasterio.open(href) as source:
        return dict(source.profile)


# --- filling --------------------------------------------------------------------------------------------------------


def test_fill_agrees_with_a_search_over_all_pixels() -> None:
    """Wherever a single pixel is nearest in city-block distance, its value is taken; beyond reach there is zero."""
    rng = np.random.default_rng(8)
    valid = rng.random((24, 31)) < 0.03
    pixels = rng.integers(1, 60000, (2, 24, 31)).astype(np.uint16)
    filled, reached = fill_invalid(pixels, valid, 6)
    y, x = np.nonzero(valid)
    checked = 0
    for row, col in np.argwhere(~valid):
        distance = np.abs(y - row) + np.abs(x - col)
        nearest = np.flatnonzero(distance == distance.min())
        assert reached[row, col] == (distance.min() <= 6)
        if distance.min() > 6:
            assert (filled[:, row, col] == 0).all()
        elif len(nearest) == 1:
            assert np.array_equal(filled[:, row, col], pixels[:, y[nearest[0]], x[nearest[0]]])
            checked += 1
    assert checked > 100
    assert np.array_equal(filled[:, valid], pixels[:, valid])


def test_fill_of_a_window_with_margin_equals_fill_of_the_whole() -> None:
    rng = np.random.default_rng(9)
    valid = ndimage.gaussian_filter(rng.normal(size=(60, 70)), 3) > 0.05
    pixels = rng.integers(0, 60000, (1, 60, 70)).astype(np.uint16)
    whole_image, _ = fill_invalid(pixels, valid, 7)
    part, _ = fill_invalid(pixels[:, 13:47, 8:51], valid[13:47, 8:51], 7)
    assert np.array_equal(part[:, 7:-7, 7:-7], whole_image[:, 20:40, 15:44])


def test_specks_and_wide_holes_are_filled_alike(pair: Pair, stage: Stage) -> None:
    """Staging looks near first; what it fills must be what a wide search would have filled."""
    pair.nodata = 0
    pair.pan[20, 30] = pair.pan[90:93, 100] = 0
    pair.pan[100:149, 150:205] = 0
    staged, store = stage(pair)
    wanted, _ = fill_invalid(pair.pan[None, : 4 * 37, : 4 * 51], pair.pan[: 4 * 37, : 4 * 51] != 0, 32)
    assert np.array_equal(store.read_pan(whole(staged.grid.pan.shape_yx)), wanted[0])


# --- other schedulers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_in_other_processes_stage_the_same_pixels(pair: Pair, tmp_path: Path) -> None:
    """A Dask cluster ships store and reader by reference; errors come back with scene and asset."""
    distributed = pytest.importorskip("distributed")
    scene = pair.write(tmp_path)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        staged = stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)
        _truncate(tmp_path, "ms.tif")
        with pytest.raises(InvalidSceneError, match="asset ms: window rows") as caught:
            stage_scene(scene, contract(), str(tmp_path / "y.zarr"), block_px=64)
    assert caught.value.asset == "ms"
    assert np.array_equal(SceneStore.open(staged.store_uri).read_ms(whole((37, 51))), pair.ms)
