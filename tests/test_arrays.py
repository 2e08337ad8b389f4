"""``pancrafter.sharpen``: lazy, georeferenced, and the very pixels of the command on the same files."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
import yaml
from affine import Affine
from distributed import Client
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from staged_scenes import observed, overlap

import pancrafter
from pancrafter.errors import ContractError, GridMismatchError, InvalidSceneError, WeightsError
from pancrafter.model.devices import DeviceError, resolve_device
from pancrafter.pair import sharpen_pair
from pancrafter.sensors import get_contract
from pancrafter.settings import Settings

METHODS = ["pan-crafter", "mtf-glp-fs", "gsa", "brovey", "exp"]


def write_tif(path: Path, values: NDArray[Any], pixel: float, x: float, y: float, nodata: float | None) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, count=len(values), height=values.shape[1],
        width=values.shape[2], crs="EPSG:32633", transform=rasterio.transform.from_origin(x, y, pixel, pixel),
        nodata=nodata, tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(values)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pair whose PAN begins two pixels inside MS, with a hole in each."""
    folder = tmp_path_factory.mktemp("pair")
    grid = overlap((190, 230), 4)
    pan, ms = observed(grid, 3, seed=3)
    pan[60:90, 100:131] = 0
    ms[:, 30:36, 4:9] = 0
    return (
        write_tif(folder / "pan.tif", pan[None][:, 2:, 2:], 0.5, 5e5 + 1, 4e6 - 1, 0),
        write_tif(folder / "ms.tif", ms, 2, 5e5, 4e6, 0),
    )


def opened(pair: tuple[Path, Path], **options: object) -> tuple[xr.DataArray, xr.DataArray]:
    chunks = {"x": 64, "y": 64}
    return tuple(rioxarray.open_rasterio(path, chunks=chunks, lock=False, **options) for path in pair)  # type: ignore[return-value]


@pytest.mark.parametrize("method", METHODS)
def test_same_pixels_as_the_command(pair: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    out = tmp_path / "out.tif"
    sharpen_pair(pair[0], [pair[1]], out, Settings(threads=1), sensor="generic", method=method)  # type: ignore[arg-type]
    lazy = pancrafter.sharpen(*opened(pair), method=method, chunk_px=128)
    with rasterio.open(out) as file:
        expected = file.read()
        assert (lazy.rio.crs, lazy.rio.transform(), lazy.rio.nodata) == (file.crs, file.transform, file.nodata)
        assert lazy.attrs["long_name"] == file.descriptions
    with dask.config.set(scheduler="synchronous"):
        found = lazy.compute()
    assert found.dtype == expected.dtype == np.uint16
    assert (expected == 0).any()
    difference = np.abs(found.to_numpy().astype(int) - expected)
    assert ((found == 0).to_numpy() == (expected == 0)).all()
    assert difference.max() <= 1  # other windows round otherwise
    assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize("where", ["long_name", "band", "long_name beside labels"])
def test_a_band_that_is_called_alpha_is_a_mask_as_for_the_command(tmp_path: Path, where: str) -> None:
    pan, ms = observed(overlap((128, 128), 4), 3, seed=3)
    alpha = np.full((1, 32, 32), 255, ms.dtype)
    alpha[:, :6] = 0
    fine, coarse = (tmp_path / name for name in ("pan.tif", "ms.tif"))
    write_tif(fine, pan[None], 0.5, 5e5, 4e6, None)
    write_tif(coarse, np.concatenate([ms, alpha]), 2, 5e5, 4e6, None)
    with rasterio.open(coarse, "r+") as file:
        file.colorinterp = [*[ColorInterp.undefined] * 3, ColorInterp.alpha]
    sharpen_pair(fine, [coarse], tmp_path / "out.tif", Settings(threads=1), method="exp")
    with rasterio.open(tmp_path / "out.tif") as file:
        expected = file.read()
    images = opened((fine, coarse))
    only_alpha = images[1].assign_coords(band=[None, None, None, "Alpha"])  # as rasterio has descriptions
    assert pancrafter.sharpen(images[0], only_alpha, method="exp").sizes["band"] == 3
    images[1].attrs["scales"] = (0.1, 0.2, 0.3, 1.0)
    called = ("blue", "green", "red", "Alpha")
    named = images[1] if where == "band" else images[1].assign_attrs(long_name=called)
    if where != "long_name":
        named = named.assign_coords(band=list(called if where == "band" else ("B2", "B3", "B4", "B5")))
    found = pancrafter.sharpen(images[0], named, method="exp")
    assert (found.rio.nodata, found.attrs["scales"]) == (0, (0.1, 0.2, 0.3))
    kept = found.attrs["long_name"] if where == "long_name" else found.band.to_numpy()
    assert tuple(kept) == (called[:3] if where != "long_name beside labels" else ("B2", "B3", "B4"))
    with dask.config.set(scheduler="synchronous"):
        pixels = found.to_numpy()
    assert (pixels[:, :24] == 0).all()
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    for nodata in (0, 255):  # masking makes NaN of these in the alpha band too
        masked = named.where(named != nodata).assign_attrs(named.attrs)
        masked.rio.write_nodata(nodata, encoded=True, inplace=True)
        same = pancrafter.sharpen(images[0], masked, method="exp")
        with dask.config.set(scheduler="synchronous"):
            assert ((same == same.rio.nodata).all("band").to_numpy() == (pixels == 0).all(axis=0)).all()


def test_chunks_do_not_decide_what_constants_are_fitted_on(tmp_path: Path) -> None:
    """The scene has more chunks than are looked at, and its bands explain PAN otherwise on its left."""
    pan, ms = observed(overlap((192, 192), 4), 3, seed=3)
    ms[2, :, :12] //= 2
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, None),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, None),
    )
    whole, small = (pancrafter.sharpen(*opened(files), method="gsa", chunk_px=edge) for edge in (192, 32))
    with dask.config.set(scheduler="synchronous"):
        found, expected = (image[:, :32, :32].to_numpy().astype(int) for image in (small, whole))
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("method", ["mtf-glp-fs", "gsa"])
def test_large_chunks_are_read_as_a_whole(tmp_path: Path, method: str) -> None:
    """Where it can be: what an array is computed from would be computed once for each part of it."""
    pan, ms = observed(overlap((1040, 1040), 4), 3, seed=3)
    fine, coarse = opened(
        (
            write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, None),
            write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, None),
        )
    )
    times: dict[int, int] = {}
    for edge in (1040, 512):
        computed: list[None] = []

        def spy(block: NDArray[np.uint16], computed: list[None] = computed) -> NDArray[np.uint16]:
            computed.append(None)
            return block

        whole = fine.data.rechunk(-1).map_blocks(spy, dtype=fine.dtype, meta=fine.data._meta)
        lazy = pancrafter.sharpen(fine.copy(data=whole), coarse, method=method, chunk_px=edge)
        with dask.config.set(scheduler="synchronous"):
            lazy[:, :32, :32].compute()
        times[edge] = len(computed)
    assert times[1040] < times[512] / 1.5


def test_the_result_and_pan_can_be_computed_with(tmp_path: Path) -> None:
    """Coordinates that are computed anew, here from 0.3 m, differ in their last bits: xarray would drop those rows."""
    pan, ms = observed(overlap((64, 64), 4), 2, seed=3)
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.3, 654321.1, 5123456.7, None),
        write_tif(tmp_path / "ms.tif", ms[:, 2:, 3:], 1.2, 654321.1 + 3.6, 5123456.7 - 2.4, None),
    )
    fine, coarse = opened(files)
    difference = pancrafter.sharpen(fine, coarse, method="exp") - fine[0]
    assert difference.shape == (2, 56, 52)
    without = pancrafter.sharpen(fine.drop_vars(["x", "y"]), coarse)
    assert np.abs(without.x - difference.x.to_numpy()).max() < 1e-6


def test_nothing_is_read_before_it_is_needed_and_then_only_what_is(pair: tuple[Path, Path]) -> None:
    pan, ms = opened(pair)
    rows: list[int] = []

    def spy(block: NDArray[np.uint16], block_info: dict | None = None) -> NDArray[np.uint16]:
        if block_info:
            rows.append(block_info[0]["array-location"][1][0])
        return block

    watched = pan.copy(data=pan.data.map_blocks(spy, dtype=pan.dtype, meta=pan.data._meta))
    lazy = pancrafter.sharpen(watched, ms, method="exp", chunk_px=64)
    assert rows == []
    assert lazy.chunks is not None
    assert lazy.sizes == {"band": 3, "y": 188, "x": 228}
    with dask.config.set(scheduler="synchronous"):
        whole = lazy.compute()
        part = lazy[:, 100:130, 70:90].compute()
    assert rows
    assert np.array_equal(part, whole[:, 100:130, 70:90])


def test_a_chunk_more_is_a_task_more(pair: tuple[Path, Path]) -> None:
    """And no layer of the graph, or large scenes take longer to describe than small ones to sharpen."""
    few, many = (pancrafter.sharpen(*opened(pair), chunk_px=edge).data for edge in (256, 8))
    assert len(many.__dask_graph__().layers) == len(few.__dask_graph__().layers)
    assert len(many.__dask_graph__()) - len(few.__dask_graph__()) == many.npartitions - few.npartitions


def test_tasks_leave_the_scheduler_to_others(pair: tuple[Path, Path]) -> None:
    """Dask's settings are those of all threads, and a task that asks the scheduler for more may wait for itself."""
    asked: list[int] = []
    seen: list[object] = []

    def four_threads(graph: Any, keys: Any, **options: Any) -> Any:  # Any: as Dask calls it
        asked.append(threading.get_ident())
        return dask.threaded.get(graph, keys, **options, num_workers=4)

    def spy(block: NDArray[np.uint16]) -> NDArray[np.uint16]:
        seen.append(dask.config.get("scheduler", None))
        return block

    watched = (image.copy(data=image.data.map_blocks(spy, meta=image.data._meta)) for image in opened(pair))
    lazy = pancrafter.sharpen(*watched, method="exp", chunk_px=32)
    with dask.config.set(scheduler=four_threads):
        lazy.compute()
        assert dask.config.get("scheduler") is four_threads
    assert set(seen) == {four_threads}
    assert asked == [threading.get_ident()]


def test_what_a_cluster_holds_is_refused_before_anything_is_computed(pair: tuple[Path, Path]) -> None:
    """Tasks read inputs by themselves, without the scheduler; they would miss what stands for persisted pixels."""
    pan, ms = opened(pair)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0"):
        with pytest.raises(InvalidSceneError, match=r"ms was persisted on a Dask cluster, .* or write them with"):
            pancrafter.sharpen(pan, ms.persist())
        expected = pancrafter.sharpen(pan, ms, method="exp").compute(scheduler="synchronous")
        assert np.array_equal(pancrafter.sharpen(pan, ms.persist().load(), method="exp"), expected)


def test_masked_floats_are_whole_dn_with_holes(pair: tuple[Path, Path]) -> None:
    """``masked=True`` turns nodata into NaN: the same pixels, whatever stands for missing."""
    with dask.config.set(scheduler="synchronous"):
        plain = pancrafter.sharpen(*opened(pair), method="brovey").compute()
        masked = pancrafter.sharpen(*opened(pair, masked=True), method="brovey").compute()
    assert masked.dtype == np.uint16
    assert np.array_equal(plain, masked)


@pytest.mark.parametrize("chunks", [None, 16])
def test_masked_bytes_stay_bytes(tmp_path: Path, chunks: int | None) -> None:
    pan, ms = (image // 8 for image in observed(overlap((64, 64), 4), 2, 1))
    pan[20:40, 20:40] = 255  # sharpened pixels beside the edge go beyond what a byte holds
    files = (
        write_tif(tmp_path / "pan.tif", pan[None].astype(np.uint8), 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", ms.astype(np.uint8), 2, 5e5, 4e6, 0),
    )
    plain, masked = (
        pancrafter.sharpen(
            *(rioxarray.open_rasterio(path, masked=masked, chunks=chunks) for path in files), method="gsa"
        ).compute(scheduler="synchronous")
        for masked in (False, True)
    )
    assert plain.dtype == masked.dtype == np.uint8
    assert np.array_equal(plain, masked)
    sharpen_pair(files[0], [files[1]], tmp_path / "out.tif", Settings(threads=1), method="gsa")
    with rasterio.open(tmp_path / "out.tif") as made:
        assert np.abs(plain.to_numpy().astype(int) - made.read()).max() <= 1


def test_bytes_that_xarray_decoded_stay_bytes(pair: tuple[Path, Path]) -> None:
    images = [(image // 8).astype(np.float32) for image in opened(pair)]
    assert pancrafter.sharpen(*images).dtype == np.uint16
    for image in images:
        image.encoding["dtype"] = np.dtype(np.uint8)  # as xarray.open_zarr and open_dataset note it
    assert pancrafter.sharpen(*images).dtype == np.uint8
    widened = [image.copy(data=image.data.astype(np.uint16)) for image in images]  # which keeps the note
    assert pancrafter.sharpen(*widened).dtype == np.uint16
    brighter = [image.copy(data=image.data * 8) for image in images]
    for sensor in (None, "worldview-3"):
        with pytest.raises(InvalidSceneError, match=r"PAN holds DN up to \d+ .* expected at most 255"):
            pancrafter.sharpen(*brighter, sensor=sensor).compute(scheduler="synchronous")


@pytest.mark.parametrize("holes_in", ["pan", "ms"])
def test_holes_of_one_input_are_holes_of_the_result(tmp_path: Path, holes_in: str) -> None:
    pan, ms = observed(overlap((160, 192), 4), 2, 1)
    expected = np.zeros(pan.shape, bool)
    expected[40:80, 100:120] = True
    if holes_in == "pan":
        pan[expected] = 0
    else:
        ms[:, 10:20, 25:30] = 0
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, 0),
    )
    with dask.config.set(scheduler="synchronous"):
        result = pancrafter.sharpen(*opened(files), method="brovey").compute()
    np.testing.assert_array_equal((result == 0).any("band"), expected)


@pytest.mark.parametrize("missing", ["-9999", "mask"])
def test_holes_are_declared_where_no_nodata_of_the_inputs_can_be(tmp_path: Path, missing: str) -> None:
    pan, ms = observed(overlap((160, 192), 4), 2, 1)
    ms[:, 25:35, 5:12] = 0  # measured: as dark as can be
    pan[110:120, 90:100] = 0
    hole = (slice(10, 20), slice(25, 30))
    expected = np.zeros(pan.shape, bool)
    expected[40:80, 100:120] = True
    pan_path, ms_path = tmp_path / "pan.tif", tmp_path / "ms.tif"
    write_tif(pan_path, pan[None], 0.5, 5e5, 4e6, None)
    if missing == "-9999":
        signed = ms.astype(np.int16)
        signed[:, *hole] = -9999
        write_tif(ms_path, signed, 2, 5e5, 4e6, -9999)
    else:
        write_tif(ms_path, ms, 2, 5e5, 4e6, None)
        measured = np.full(ms.shape[1:], 255, np.uint8)
        measured[hole] = 0
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(ms_path, "r+") as file:
            file.write_mask(measured)
    masked = missing == "mask"
    result = pancrafter.sharpen(*opened((pan_path, ms_path), masked=masked), method="brovey")
    assert result.rio.nodata == 0
    holes = (result.compute(scheduler="synchronous") == 0).to_numpy()
    np.testing.assert_array_equal(holes, np.broadcast_to(expected, holes.shape))


@pytest.mark.parametrize("masked", [False, True])
def test_nodata_of_the_contract_counts_where_the_files_declare_none(tmp_path: Path, *, masked: bool) -> None:
    """And no mask says what was measured."""
    pan, ms = observed(overlap((160, 192), 4), 4, 1)
    pan[40:80, 100:120] = 0
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, None),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, None),
    )
    out = tmp_path / "out.tif"
    sharpen_pair(files[0], [files[1]], out, Settings(threads=1), sensor="worldview-3", method="exp")
    fine, coarse = opened(files, masked=masked)
    result = pancrafter.sharpen(fine, coarse, sensor="worldview-3", method="exp")
    with rasterio.open(out) as file:
        assert result.rio.nodata == file.nodata == 0
        holes = file.read() == 0
    assert holes.any()
    np.testing.assert_array_equal(result.compute(scheduler="synchronous") == 0, holes)
    opaque = xr.concat([fine, xr.full_like(fine, 255)], "band").assign_attrs(long_name=("pan", "alpha"))
    measured = pancrafter.sharpen(opaque, coarse, sensor="worldview-3", method="exp")
    assert (measured.compute(scheduler="synchronous") > 0).all()


def test_without_holes_zero_stays_a_value(tmp_path: Path) -> None:
    pan, ms = observed(overlap((64, 64), 4), 2, 1)
    ms[:, 2:14, 2:14] = 0
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, None),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, None),
    )
    result = pancrafter.sharpen(*opened(files), method="exp")
    assert result.rio.nodata is None
    assert (result.compute(scheduler="synchronous") == 0).any()


def described(path: Path, descriptions: tuple[str | None, ...], scales: tuple[float, ...]) -> Path:
    with rasterio.open(path, "r+") as file:
        file.descriptions, file.scales, file.offsets = descriptions, scales, [scale * 10 for scale in scales]
    return path


@pytest.mark.filterwarnings("ignore:(Scales|Offsets) differ:UserWarning")  # what rioxarray says of such files
@pytest.mark.parametrize("scales", [(0.01, 0.01, 0.01), (0.01, 0.02, 0.01)], ids=["one scale", "one per band"])
def test_scale_and_descriptions_of_ms_reach_the_file(
    pair: tuple[Path, Path], tmp_path: Path, scales: tuple[float, ...]
) -> None:
    shutil.copy(pair[1], tmp_path / "ms.tif")
    ms_path = described(tmp_path / "ms.tif", ("Blue", None, "Near infrared"), scales)
    result = pancrafter.sharpen(*opened((pair[0], ms_path)), method="exp")
    result.compute(scheduler="synchronous").rio.to_raster(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file, rasterio.open(ms_path) as source:
        assert (file.scales, file.offsets) == (source.scales, source.offsets)
        assert file.descriptions == ("Blue", "band-2", "Near infrared")


@pytest.mark.filterwarnings("ignore:(Scales|Offsets) differ:UserWarning")
@pytest.mark.parametrize("numbers", [np.int64, np.float64, object])
def test_bands_that_were_selected_keep_what_was_told_of_them(
    pair: tuple[Path, Path], tmp_path: Path, numbers: type
) -> None:
    """By their numbers: selecting leaves ``long_name`` and ``scales`` as they were."""
    shutil.copy(pair[1], tmp_path / "ms.tif")
    ms_path = described(tmp_path / "ms.tif", ("Blue", "Red", "Near infrared"), (0.01, 0.02, 0.03))
    pan, ms = opened((pair[0], ms_path))
    ms = ms.assign_coords(band=ms.band.astype(numbers))
    result = pancrafter.sharpen(pan, ms.sel(band=[3, 1]))
    assert result.attrs["long_name"] == ("Near infrared", "Blue")
    assert result.attrs["scales"] == (0.03, 0.01)
    with pytest.raises(
        InvalidSceneError, match=r"numbered 3, 2, 1, and long_name is \('Blue', .* bring long_name into"
    ):
        pancrafter.sharpen(pan, ms[::-1])
    named = pancrafter.sharpen(pan, ms[:2].assign_coords(band=["b", "r"]).assign_attrs(scales=(0.01, 0.02)))
    assert (named.attrs["long_name"], named.attrs["scales"]) == (("b", "r"), (0.01, 0.02))
    alone = pancrafter.sharpen(pan, ms[:1].assign_attrs(scales=0.01))  # as netCDF keeps a list of one
    assert alone.attrs["scales"] == (0.01,)


@pytest.mark.parametrize("named_by", ["long_name", "band"])
def test_bands_of_a_sensor_are_known_by_their_names(tmp_path: Path, named_by: str) -> None:
    """Near infrared of WorldView-3 is blurred more than its other bands."""
    pan, ms = observed(overlap((96, 96), 4), 4, seed=3)
    fine = write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, None)
    coarse = described(
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, None), ("NIR1", "Red", "Green", "Blue"), (1,) * 4
    )
    sharpen_pair(fine, [coarse], tmp_path / "out.tif", Settings(threads=1), sensor="worldview-3", method="mtf-glp-fs")
    with rasterio.open(tmp_path / "out.tif") as file:
        expected = dict(zip(file.descriptions, file.read().astype(int), strict=True))
    images = list(opened((fine, coarse)))
    names = images[1].attrs["long_name"]
    if named_by == "band":
        images[1] = images[1].drop_attrs().assign_coords(band=list(names)).rio.write_crs(images[1].rio.crs)
    found = pancrafter.sharpen(images[0], images[1], sensor="worldview-3", method="mtf-glp-fs")
    assert found.attrs["long_name"] == names
    pixels = found.compute(scheduler="synchronous").to_numpy()
    for name, band in zip(names, pixels, strict=True):
        assert np.abs(band - expected[name.lower()]).max() <= 1
    labelled = opened((fine, coarse))[1].assign_coords(band=list("wxyz"))  # no names that the sensor knows
    same = pancrafter.sharpen(images[0], labelled, sensor="worldview-3", method="mtf-glp-fs")
    assert np.array_equal(same.compute(scheduler="synchronous"), pixels)
    with pytest.raises(InvalidSceneError, match="ms has nir1, red, green, none of the products of worldview-3"):
        pancrafter.sharpen(images[0], images[1][:3], sensor="worldview-3")


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")  # xarray's own default
@pytest.mark.parametrize("form", ["netcdf", "zarr"])
def test_what_is_stored_is_the_result(pair: tuple[Path, Path], tmp_path: Path, form: str) -> None:
    """Pixels, also above what a signed type holds, band names, nodata and georeference."""
    pan, ms = opened(pair)
    bright = (60 * ms).assign_attrs(ms.attrs, long_name=("blue", "green", "red")).rio.write_crs(ms.rio.crs)
    result = pancrafter.sharpen(pan, bright, method="exp")
    path = tmp_path / f"out.{form}"
    with dask.config.set(scheduler="synchronous"):
        result.to_netcdf(path) if form == "netcdf" else result.to_zarr(path)
        with xr.open_dataset(path, mask_and_scale=False, decode_coords="all") as stored:
            found = stored["sharpened"].load()
        assert found.equals(result)
    assert found.dtype == np.uint16
    assert int(found.max()) > 40_000
    assert tuple(found.attrs["long_name"]) == ("blue", "green", "red")
    assert (found.rio.nodata, found.rio.crs, found.rio.transform()) == (0, pan.rio.crs, result.rio.transform())


def test_bands_may_lie_along_any_axis(pair: tuple[Path, Path]) -> None:
    pan, ms = opened(pair)
    stacked = xr.concat([ms[0], ms[1]], "wavelength").assign_coords(band=1).rio.write_crs(ms.rio.crs)
    last = ms.transpose("y", "x", "band").assign_attrs(scales=(1.0, 2.0, 3.0))
    assert pancrafter.sharpen(pan, stacked).coords["band"].to_numpy().tolist() == [1, 2]
    assert pancrafter.sharpen(pan, last).attrs["scales"] == (1.0, 2.0, 3.0)


def test_pan_may_be_of_a_wider_type_than_ms(tmp_path: Path) -> None:
    """As the command makes it: the scene's ceiling is that of the wider type, and so is the result's type."""
    pan, ms = observed(overlap((64, 64), 4), 2, 1)
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", (ms // 8).astype(np.uint8), 2, 5e5, 4e6, 0),
    )
    sharpen_pair(files[0], [files[1]], tmp_path / "out.tif", Settings(threads=1), method="exp")
    lazy = pancrafter.sharpen(*opened(files), method="exp").compute(scheduler="synchronous")
    with rasterio.open(tmp_path / "out.tif") as made:
        assert lazy.dtype == made.dtypes[0] == "uint16"
        assert np.array_equal(lazy, made.read())


def test_auto_is_a_device_that_is_there(tmp_path: Path) -> None:
    pan, ms = observed(overlap((64, 64), 4), 2, 1)
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, 0),
    )
    auto, named = (
        pancrafter.sharpen(*opened(files), device=device).compute(scheduler="synchronous")
        for device in ("auto", resolve_device("auto"))
    )
    assert np.array_equal(auto, named)


def test_what_is_not_the_sensors_product_is_refused_as_by_the_command(tmp_path: Path) -> None:
    pan, ms = (6 * image for image in observed(overlap((64, 64), 4), 4, 1))
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, 0),
    )
    with pytest.raises(InvalidSceneError, match="above 2047") as refusal:
        sharpen_pair(
            files[0], [files[1]], tmp_path / "out.tif", Settings(threads=1), sensor="worldview-3", method="exp"
        )
    lazy = pancrafter.sharpen(*opened(files), sensor="worldview-3", method="exp")
    with pytest.raises(InvalidSceneError, match="not the product of contract worldview-3") as same:
        lazy.compute(scheduler="synchronous")
    assert refusal.value.message == f"{files[0]}: {same.value.message}"


def test_sensors_are_known_as_to_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Also those of the user's own contracts, and the generic one by its name."""
    mine = get_contract("geoeye-1").model_copy(update={"name": "mine", "platforms": ("mine",)})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine.model_dump(mode="json")))
    pan, ms = opened(pair)
    ms = xr.concat([ms, ms[:1]], "band").rio.write_crs(ms.rio.crs)
    result = pancrafter.sharpen(pan, ms, sensor="mine", contracts_dir=tmp_path)
    assert result.attrs["long_name"] == ("blue", "green", "red", "nir")
    assert pancrafter.sharpen(pan, ms, sensor="generic").attrs["long_name"][0] == "band-1"
    with pytest.raises(ContractError, match=r"no sensor contract 'mine'.*--contracts-dir \(in Python: contracts_dir\)"):
        pancrafter.sharpen(pan, ms, sensor="mine")


def test_a_few_pixels_above_the_ceiling_are_no_other_product(tmp_path: Path) -> None:
    pan, ms = observed(overlap((64, 64), 4), 4, 1)
    pan[5, 5:9] = 3000
    files = (
        write_tif(tmp_path / "pan.tif", pan[None], 0.5, 5e5, 4e6, 0),
        write_tif(tmp_path / "ms.tif", ms, 2, 5e5, 4e6, 0),
    )
    result = pancrafter.sharpen(*opened(files), sensor="worldview-3", method="gsa").compute(scheduler="synchronous")
    assert result.max() == 2047


def test_bad_arrays_say_what_is_wrong(pair: tuple[Path, Path]) -> None:
    pan, ms = opened(pair)
    with pytest.raises(GridMismatchError, match=r"pan has no CRS or transform; .* decode_coords=\"all\""):
        pancrafter.sharpen(xr.DataArray(np.ones((8, 8), np.uint16), dims=("y", "x")), ms)
    with pytest.raises(GridMismatchError, match="swapped"):
        pancrafter.sharpen(ms[:1], pan)
    with pytest.raises(InvalidSceneError, match="pan is of type str, expected an xarray"):
        pancrafter.sharpen(str(pair[0]), str(pair[1]))
    with pytest.raises(GridMismatchError, match="pan has 3 bands"):
        pancrafter.sharpen(ms, ms)
    with pytest.raises(GridMismatchError, match="expected one CRS"):
        pancrafter.sharpen(pan, ms.rio.write_crs("EPSG:32632"))
    with pytest.raises(GridMismatchError, match=r"pan has 188 x 228 pixels of size \(0.5, 0.0\)"):
        pancrafter.sharpen(pan.drop_vars(["x", "y"]).rio.write_transform(Affine(0, 0, 5e5, 0, -0.5, 4e6)), ms)
    with pytest.raises(GridMismatchError, match=r"ms has rows that run north.* \.sortby\('y', ascending=False\)"):
        pancrafter.sharpen(pan, ms.sortby("y"))
    with pytest.raises(InvalidSceneError, match=r"ms has \(y: 48, x: 58\), expected \(band, y, x\).* ms\[\[0\]\]"):
        pancrafter.sharpen(pan, ms[0])
    with pytest.raises(InvalidSceneError, match=r"pan has \(time: 1, band: 1, y: 188, x: 228\), expected \(y, x\) or"):
        pancrafter.sharpen(pan.expand_dims("time"), ms)
    with pytest.raises(InvalidSceneError, match=r"ms has \(band: 3, y: 0, x: 58\), expected .* each 1 or more"):
        pancrafter.sharpen(pan, ms[:, :0])
    with pytest.raises(InvalidSceneError, match="ms has 2 bands, none of the products of worldview-3"):
        pancrafter.sharpen(pan, ms[:2], sensor="worldview-3")
    reflectance = pancrafter.sharpen(pan, (ms / 10000).rio.write_crs(ms.rio.crs), method="exp")
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(InvalidSceneError, match=r"expected whole DN from 0 to 65535; scale .* mask_and_scale=False"),
    ):
        reflectance.compute()
    empty = pancrafter.sharpen(pan, (0 * ms).rio.write_crs(ms.rio.crs).rio.write_nodata(0), method="exp")
    with pytest.raises(InvalidSceneError, match="band-1 has no valid pixel inside the overlap"):
        empty.compute(scheduler="synchronous")
    middle = float(pan.x.mean())
    west, east = pan.where(pan.x < middle, 0), ms.where(ms.x > middle + 2, 0)
    apart = pancrafter.sharpen(west, east, method="exp")
    with pytest.raises(InvalidSceneError, match="no pixel is valid in PAN and MS at once"):
        apart.compute(scheduler="synchronous")


def test_bad_options_say_what_there_is(pair: tuple[Path, Path]) -> None:
    pan, ms = opened(pair)
    with pytest.raises(InvalidSceneError, match="no method 'magic'"):
        pancrafter.sharpen(pan, ms, method="magic")
    with pytest.raises(InvalidSceneError, match="no precision 'float16'; choose one of float32, bfloat16"):
        pancrafter.sharpen(pan, ms, precision="float16")
    with pytest.raises(InvalidSceneError, match="chunk_px is 0, expected at least 1 PAN pixel"):
        pancrafter.sharpen(pan, ms, chunk_px=0)
    with pytest.raises(WeightsError, match="weights 'absent' not found"):
        pancrafter.sharpen(pan, ms, weights="absent")
    assert pancrafter.sharpen(pan, ms, weights="/seen/by/workers").ndim == 3, "a file, whatever it is called"
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda or cuda:N"):
        pancrafter.sharpen(pan, ms, device="gpu").compute(scheduler="synchronous")
