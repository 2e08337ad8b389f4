"""What is written is what can be read back, by rasterio and by nobody before it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from pancrafter import cog
from pancrafter.cog import Block, Reason, reason_bits, validate_cog, write_cog, write_reason_mask
from pancrafter.errors import GridMismatchError, InvalidSceneError, SinkError
from pancrafter.types import PixelGrid

SHAPE = (1100, 1300)


def grid(shape: tuple[int, int] = SHAPE) -> PixelGrid:
    return PixelGrid(crs="EPSG:32633", transform=(0.5, 0, 500000.0, 0, -0.5, 4600000.0), shape_yx=shape)


def image(count: int = 3, dtype: str = "uint16", shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Every pixel has its own value as far as the dtype allows, and none is zero."""
    top = 60000 if dtype != "uint8" else 250
    ramp = np.arange(np.prod(shape)).reshape(shape) % top + 1
    return np.stack([(ramp + 7 * band) % top + 1 for band in range(count)]).astype(dtype)


def blocks(values: np.ndarray, valid: np.ndarray | None = None, step: int = 400) -> Iterator[Block]:
    for top in range(0, values.shape[1], step):
        for left in range(0, values.shape[2], step):
            cut = (slice(top, min(top + step, values.shape[1])), slice(left, min(left + step, values.shape[2])))
            yield Block(cut, values[(slice(None), *cut)], None if valid is None else valid[cut])


def options(**changed: Any) -> dict[str, Any]:
    return {
        "grid": grid(),
        "count": 3,
        "dtype": "uint16",
        "nodata": None,
        "band_names": ("red", "green", "blue"),
    } | changed


@pytest.mark.parametrize("profile", ["fast", "archive"])
def test_pixels_and_header_survive(tmp_path: Path, profile: cog.Profile) -> None:
    values, path = image(), tmp_path / "out.tif"
    info = write_cog(
        path, blocks(values), **options(scale=(1e-4, 2e-4, 3e-4), offset=(-0.1, 0.0, 0.2), profile=profile)
    )
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(), values)
        assert source.descriptions == ("red", "green", "blue")
        assert source.scales == (1e-4, 2e-4, 3e-4)
        assert source.offsets == (-0.1, 0.0, 0.2)
        assert source.block_shapes[0] == (512, 512)
        assert source.compression.name == "zstd"
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert tuple(source.transform)[:6] == grid().transform
        assert source.crs.to_epsg() == 32633
        assert source.overviews(1) == list(info.overview_levels) == [2, 4]
        assert float(source.tags(2)["STATISTICS_MEAN"]) == pytest.approx(values[1].mean())
        assert float(source.tags(2)["STATISTICS_STDDEV"]) == pytest.approx(values[1].std())
        assert source.dataset_mask().all()
    assert (info.valid_share, info.nudged_values, info.size_bytes) == (1.0, 0, path.stat().st_size)
    assert info.statistics[2] is not None
    assert info.statistics[2].maximum == values[2].max()
    assert list(tmp_path.iterdir()) == [path]


def test_nodata_is_kept_and_valid_values_move_off_it(tmp_path: Path) -> None:
    values = image()
    valid = np.ones(SHAPE, bool)
    valid[:300, :500] = False
    values[1, 700, 700] = 0
    info = write_cog(tmp_path / "a.tif", blocks(values, valid), **options(nodata=0))
    with rasterio.open(tmp_path / "a.tif") as source:
        assert source.nodata == 0
        assert source.mask_flag_enums[0] == [MaskFlags.nodata]
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid)
        assert not source.read()[:, ~valid].any()
        assert source.read(2)[700, 700] == 1
    assert info.nudged_values == 1
    assert info.valid_share == pytest.approx(valid.mean())


def test_without_nodata_an_internal_mask_says_what_is_valid(tmp_path: Path) -> None:
    values = image()
    valid = np.ones(SHAPE, bool)
    valid[900:, 1000:] = False
    values[:, 0, 0] = 0  # a real zero stays data
    write_cog(tmp_path / "a.tif", blocks(values, valid), **options())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tif"]
    with rasterio.open(tmp_path / "a.tif") as source:
        assert source.nodata is None
        assert MaskFlags.per_dataset in source.mask_flag_enums[0]
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid)
        np.testing.assert_array_equal(source.read()[:, valid], values[:, valid])


def test_mask_may_begin_in_a_late_block(tmp_path: Path) -> None:
    values, valid = image(), np.ones(SHAPE, bool)
    valid[-50:, -50:] = False
    late = [entry if not entry.valid.all() else entry._replace(valid=None) for entry in blocks(values, valid)]
    assert late[0].valid is None
    assert late[-1].valid is not None
    write_cog(tmp_path / "a.tif", late, **options())
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid)


@pytest.mark.parametrize("nodata", [0, None])
def test_overviews_ignore_invalid_pixels(tmp_path: Path, nodata: float | None) -> None:
    values, valid = np.full((1, *SHAPE), 1000, np.uint16), np.ones(SHAPE, bool)
    valid[:, :333] = False
    values[:, ~valid] = 60000
    write_cog(tmp_path / "a.tif", blocks(values, valid), **options(count=1, nodata=nodata, band_names=("b",)))
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as source:
        read, mask = source.read(1), source.dataset_mask() > 0
    assert set(np.unique(read[mask])) == {1000}
    assert mask.mean() == pytest.approx(valid.mean(), abs=0.002)


def test_four_byte_bands_are_not_taken_for_transparency(tmp_path: Path) -> None:
    values = image(4, "uint8")
    values[3] = 0
    write_cog(tmp_path / "a.tif", blocks(values), **options(count=4, dtype="uint8", band_names=("b", "g", "r", "n")))
    with rasterio.open(tmp_path / "a.tif") as source:
        assert ColorInterp.alpha not in source.colorinterp
        assert source.dataset_mask().all()
        np.testing.assert_array_equal(source.read(), values)


def test_float_nan_is_never_data(tmp_path: Path) -> None:
    values = image(1, "float32")
    values[0, 5:9, 5:9] = np.nan
    info = write_cog(
        tmp_path / "a.tif", blocks(values), **options(count=1, dtype="float32", nodata=-9999.0, band_names=("b",))
    )
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(1) == -9999, np.isnan(values[0]))
    assert info.valid_share == pytest.approx(1 - 16 / np.prod(SHAPE))


@pytest.mark.parametrize("order", [1, -1])
def test_block_order_does_not_matter(tmp_path: Path, order: int) -> None:
    values = image()
    write_cog(tmp_path / "a.tif", list(blocks(values, step=271))[::order], **options())
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(), values)


def test_a_missing_block_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(GridMismatchError, match="cover it exactly once"):
        write_cog(tmp_path / "a.tif", list(blocks(image()))[1:], **options())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "block",
    [
        Block(Window(0, 0, 10, 10), np.zeros((3, 10, 10), np.int16)),
        Block(Window(0, 0, 10, 10), np.zeros((2, 10, 10), np.uint16)),
        Block(Window(1295, 0, 10, 10), np.zeros((3, 10, 10), np.uint16)),
        Block(Window(-1, 0, 10, 10), np.zeros((3, 10, 10), np.uint16)),
        Block(Window(0, 0, 10, 10), np.zeros((3, 10, 10), np.uint16), np.ones((9, 10), bool)),
    ],
)
def test_wrong_blocks_are_refused(tmp_path: Path, block: Block) -> None:
    with pytest.raises(GridMismatchError, match="expected"):
        write_cog(tmp_path / "a.tif", [block], **options())


def test_nodata_outside_the_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSceneError, match="does not fit uint16"):
        write_cog(tmp_path / "a.tif", blocks(image()), **options(nodata=-9999))


def test_an_error_of_the_source_passes_through_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_cog(path, blocks(image()), **options())
    before = path.read_bytes()

    def broken() -> Iterator[Block]:
        yield from list(blocks(image()))[:3]
        raise RuntimeError("worker died")

    with pytest.raises(RuntimeError, match="worker died"):
        write_cog(path, broken(), **options())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_too_little_disk_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cog.shutil, "disk_usage", lambda _: usage._replace(free=2**20))

    def never() -> Iterator[Block]:
        pytest.fail("blocks were computed although there is no room for them")
        yield

    with pytest.raises(SinkError, match=r"1 MiB free, writing a.tif takes up to"):
        write_cog(tmp_path / "a.tif", never(), **options())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_holes_without_nodata_survive_for_any_number_of_bands(tmp_path: Path, count: int) -> None:
    """GDAL takes the last of two or four bands for transparency where it may."""
    valid = np.ones(SHAPE, bool)
    valid[100:200, 300:500] = False
    path = tmp_path / "a.tif"
    write_cog(path, blocks(image(count), valid), **options(count=count, band_names=[f"b{n}" for n in range(count)]))
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid)
    with rasterio.open(path, overview_level=0) as source:
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid[::2, ::2])


def test_missing_folder_is_a_sink_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="no such folder"):
        write_cog(tmp_path / "no" / "a.tif", blocks(image()), **options())


@pytest.mark.parametrize("share", [0.1, 0.74, 0.8, 0.99])
def test_disk_filling_up_is_a_sink_error_and_nothing_stays(tmp_path: Path, share: float) -> None:
    """A real limit on the size of files, so GDAL's own writes fail: in the tiles, in the overviews, near the end."""
    import resource
    import signal

    values = np.random.default_rng(0).integers(1, 60000, (3, *SHAPE)).astype(np.uint16)
    limit = int(share * write_cog(tmp_path / "a.tif", blocks(values), **options()).size_bytes)
    (tmp_path / "a.tif").unlink()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SinkError, match=r"a\.tif: "):
            write_cog(tmp_path / "a.tif", blocks(values), **options())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_holes_on_the_way_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses one tile leaves a valid COG; only the comparison can tell."""
    honest = rasterio.shutil.copy

    def lossy(scratch: Path, draft: Path, **options: Any) -> None:
        with rasterio.open(scratch, "r+") as source:
            source.write(np.zeros((3, 64, 64), np.uint16), window=Window(512, 512, 64, 64))
        honest(scratch, draft, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", lossy)
    with pytest.raises(SinkError, match="read back"):
        write_cog(tmp_path / "a.tif", blocks(image()), **options())
    assert not list(tmp_path.iterdir())


def test_validate_refuses_what_is_no_cog(tmp_path: Path) -> None:
    layout = {"width": 1300, "height": 1100, "count": 1, "dtype": "uint8", "crs": grid().crs}
    with rasterio.open(
        tmp_path / "plain.tif", "w", driver="GTiff", transform=rasterio.Affine(*grid().transform), **layout
    ) as sink:
        sink.write(image(1, "uint8"))
    with pytest.raises(InvalidSceneError, match="expected a valid COG"):
        validate_cog(tmp_path / "plain.tif")
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(InvalidSceneError, match="cannot be opened"):
        validate_cog(tmp_path / "text.tif")


def test_reason_bits() -> None:
    pan_valid, ms_valid = np.ones((12, 12), bool), np.ones((12, 12), bool)
    pan_valid[:2], ms_valid[:, :3] = False, False
    saturated, low = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    saturated[11, 11], low[10:, 11] = True, True
    bits = reason_bits(pan_valid=pan_valid, ms_valid=ms_valid, reach_px=2, saturated=saturated, low_consistency=low)
    assert bits.dtype == np.uint8
    assert bits[0, 0] == Reason.NO_MS | Reason.NO_PAN
    assert bits[0, 8] == Reason.NO_PAN
    assert bits[8, 0] == Reason.NO_MS
    assert bits[3, 8] == bits[8, 4] == Reason.EDGE
    assert bits[4, 5] == 0
    assert bits[11, 11] == Reason.SATURATED | Reason.LOW_CONSISTENCY
    assert bits[10, 11] == Reason.LOW_CONSISTENCY
    assert bits[11, 8] == 0, "the border of the array is not an edge of the data"


def test_reason_mask_file(tmp_path: Path) -> None:
    bits = np.zeros((1, *SHAPE), np.uint8)
    bits[0, :100] = Reason.NO_PAN | Reason.NO_MS
    info = write_reason_mask(tmp_path / "mask.tif", blocks(bits), grid=grid())
    validate_cog(info.path)
    with rasterio.open(tmp_path / "mask.tif") as source:
        np.testing.assert_array_equal(source.read(), bits)
        assert source.nodata is None
        assert source.dataset_mask().all()
        assert source.tags()["REASON_4"] == "EDGE"
        assert set(np.unique(source.read(1, out_shape=(275, 325)))) == {0, 3}


def test_long_strip_gets_overviews_by_its_longer_side(tmp_path: Path) -> None:
    shape = (123, 1254)
    values = image(shape=shape)
    info = write_cog(tmp_path / "strip.tif", blocks(values), **options(grid=grid(shape)))
    assert info.overview_levels == (2, 4)
    validate_cog(tmp_path / "strip.tif")
