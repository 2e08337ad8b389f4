"""What is written is what can be read back, by rasterio and by nobody before it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from pancrafter import cog, pyramid, tiff
from pancrafter.cog import (
    Block,
    Reason,
    reason_bits,
    validate_cog,
    write_cog,
    write_quality_raster,
    write_reason_mask,
)
from pancrafter.errors import GridMismatchError, InvalidSceneError, SinkError
from pancrafter.pyramid import Level
from pancrafter.types import PairGrid, PixelGrid

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
    written = blocks(values, np.ones(SHAPE, bool), step=512)  # whole tiles, as parts are put together elsewhere
    info = write_cog(path, written, **options(scale=(1e-4, 2e-4, 3e-4), offset=(-0.1, 0.0, 0.2), profile=profile))
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
        assert source.overviews(1) == [2, 4]
        assert float(source.tags(2)["STATISTICS_MEAN"]) == pytest.approx(values[1].mean())
        assert float(source.tags(2)["STATISTICS_STDDEV"]) == pytest.approx(values[1].std())
        assert source.mask_flag_enums[0] == [MaskFlags.all_valid]
    assert (info.valid_share, info.nudged_values, info.size_bytes) == (1.0, 0, path.stat().st_size)
    assert info.statistics[2] is not None
    assert info.statistics[2].maximum == values[2].max()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("nodata", "beside"), [(0, 1), (65535, 65534)])
def test_nodata_is_kept_and_valid_values_move_off_it(tmp_path: Path, nodata: int, beside: int) -> None:
    values = image()
    valid = np.ones(SHAPE, bool)
    valid[:300, :500] = False
    values[:, :300, :250] = nodata
    values[1, 700, 700] = nodata
    info = write_cog(tmp_path / "a.tif", blocks(values, valid), **options(nodata=nodata))
    with rasterio.open(tmp_path / "a.tif") as source:
        assert source.nodata == nodata
        assert source.mask_flag_enums[0] == [MaskFlags.nodata]
        np.testing.assert_array_equal(source.dataset_mask() > 0, valid)
        assert (source.read()[:, ~valid] == nodata).all()
        assert source.read(2)[700, 700] == beside
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
    values, valid = image(1, "float32"), np.ones(SHAPE, bool)
    values[0, 5:9, 5:9] = np.nan
    valid[9:11, 5:9] = False
    of_one_band = options(count=1, dtype="float32", nodata=-9999.0, band_names=("b",))
    info = write_cog(tmp_path / "a.tif", blocks(values, valid), **of_one_band)
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(1) == -9999, np.isnan(values[0]) | ~valid)
    assert info.valid_share == pytest.approx(1 - 24 / np.prod(SHAPE))
    with rasterio.open(tmp_path / "a.tif", overview_level=0) as source:
        assert source.read(1)[2, 2] == values[0, 4:6, 4:6][~np.isnan(values[0, 4:6, 4:6])].mean()


@pytest.mark.parametrize("nodata", [0, None])
def test_neither_order_nor_size_of_blocks_nor_threads_matter(tmp_path: Path, nodata: float | None) -> None:
    """Byte for byte: tiles and statistics are put together in the order of the file."""
    values, valid = image(), np.ones(SHAPE, bool)
    valid[300:600, 200:700] = False
    whole = Block((slice(0, SHAPE[0]), slice(0, SHAPE[1])), values, valid)
    write_cog(tmp_path / "whole.tif", [whole], **options(nodata=nodata))
    with rasterio.open(tmp_path / "whole.tif") as source:
        np.testing.assert_array_equal(source.read()[:, valid], values[:, valid])
    for step, order, threads in ((271, 1, 1), (271, -1, 3), (512, 1, 2), (1024, -1, 1)):
        mixed = list(blocks(values, valid, step))[::order]
        write_cog(tmp_path / "other.tif", mixed, **options(nodata=nodata, threads=threads))
        assert (tmp_path / "other.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes(), (step, order, threads)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_every_type_of_pixel_survives(tmp_path: Path, dtype: str) -> None:
    """Read back by GDAL, whose decoder of predictors is not ours; negative and very large numbers included."""
    draw = np.random.default_rng(0)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = (draw.normal(size=(2, *SHAPE)) * 10.0 ** draw.integers(-30, 30, (2, *SHAPE))).astype(kind)
    else:
        limits = np.iinfo(kind)
        values = draw.integers(limits.min, limits.max, (2, *SHAPE), dtype=kind, endpoint=True)
    write_cog(tmp_path / "a.tif", blocks(values), **options(count=2, dtype=dtype, band_names=("a", "b")))
    validate_cog(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(), values)
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == ("3" if kind.kind == "f" else "2")


@pytest.mark.parametrize("with_holes", [False, True])
def test_overviews_are_those_of_gdal(tmp_path: Path, *, with_holes: bool) -> None:
    """At every level, up to its rounding; sizes are even so that both halve the same pixels."""
    shape = (1536, 2048)
    values = np.random.default_rng(1).integers(1, 4000, (2, *shape)).astype(np.uint16)
    valid = np.ones(shape, bool)
    if with_holes:
        valid[101:900, 333:1201] = False
    values[:, ~valid] = 0
    write_cog(
        tmp_path / "a.tif", blocks(values, valid), **options(grid=grid(shape), count=2, nodata=0, band_names=("a", "b"))
    )
    layout = {"height": shape[0], "width": shape[1], "count": 2, "dtype": "uint16", "nodata": 0, "crs": grid().crs}
    with rasterio.open(
        tmp_path / "gdal.tif", "w", driver="GTiff", transform=rasterio.Affine(*grid().transform), **layout
    ) as sink:
        sink.write(values)
    with rasterio.open(tmp_path / "gdal.tif", "r+") as sink:
        sink.build_overviews([2, 4], rasterio.enums.Resampling.average)
    for level in (0, 1):
        with (
            rasterio.open(tmp_path / "a.tif", overview_level=level) as ours,
            rasterio.open(tmp_path / "gdal.tif", overview_level=level) as theirs,
        ):
            difference = np.abs(ours.read().astype(int) - theirs.read())
            np.testing.assert_array_equal(ours.dataset_mask(), theirs.dataset_mask())
        assert difference.max() <= 1


@pytest.mark.parametrize(("dtype", "highest"), [("uint8", 63), ("uint8", 64), ("uint16", 16383), ("uint16", 16384)])
@pytest.mark.parametrize("with_holes", [False, True])
def test_averages_do_not_overflow(tmp_path: Path, dtype: str, highest: int, *, with_holes: bool) -> None:
    """The largest values of which four add up within their type, and the next ones, which do not."""
    values = np.random.default_rng(2).integers(highest - 3, highest, (1, 1024, 1024), endpoint=True).astype(dtype)
    valid = np.ones(values.shape[1:], bool)
    valid[:1, :1] = not with_holes
    path, shape = tmp_path / "a.tif", valid.shape
    write_cog(
        path, blocks(values, valid), **options(grid=grid(shape), count=1, dtype=dtype, band_names=("a",), nodata=0)
    )
    quads = np.where(valid, values[0], np.nan).reshape(512, 2, 512, 2)
    with rasterio.open(path, overview_level=0) as source:
        np.testing.assert_array_equal(source.read(1), np.floor(np.nanmean(quads, axis=(1, 3)) + 0.5))


def test_overviews_of_odd_sizes_average_what_there_is(tmp_path: Path) -> None:
    shape = (515, 1031)
    values = image(1, shape=shape)
    write_cog(tmp_path / "a.tif", blocks(values), **options(grid=grid(shape), count=1, band_names=("a",)))
    level = values[0].astype(float)
    for number in (0, 1):
        rows, cols = level.shape
        padded = np.pad(level, ((0, rows % 2), (0, cols % 2)), constant_values=np.nan)
        quads = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2)
        level = np.floor(np.nanmean(quads, axis=(1, 3)) + 0.5)
        with rasterio.open(tmp_path / "a.tif", overview_level=number) as source:
            np.testing.assert_array_equal(source.read(1), level)


def test_mode_of_overviews_is_the_most_frequent_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(2).integers(0, 3, (1, 600, 600)).astype(np.uint8)
    write_reason_mask(tmp_path / "mask.tif", blocks(bits), grid=grid((600, 600)))
    with rasterio.open(tmp_path / "mask.tif", overview_level=0) as source:
        found = source.read(1)
    quads = bits[0].reshape(300, 2, 300, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    counts = np.stack([(quads == value).sum(axis=1) for value in range(3)], axis=1)
    chosen = counts[np.arange(len(quads)), found.ravel()]
    np.testing.assert_array_equal(chosen, counts.max(axis=1))


@pytest.mark.parametrize("holes", [False, True])
def test_layout_is_gdals_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, holes: bool) -> None:
    """GDAL recognises it, tiles lie between their length and their last bytes, and large files are BigTIFF."""
    values, valid = image(), np.ones(SHAPE, bool)
    valid[:100, :100] = not holes
    for name, limit in (("classic", tiff.CLASSIC_LIMIT), ("big", 1000)):
        monkeypatch.setattr(tiff, "CLASSIC_LIMIT", limit)
        path = tmp_path / f"{name}.tif"
        write_cog(path, blocks(values, valid), **options())
        validate_cog(path)
        content = path.read_bytes()
        assert content[2] == {"classic": 42, "big": 43}[name]
        first = int.from_bytes(content[4:8] if name == "classic" else content[8:16], "little")
        described = 8 if name == "classic" else 16
        size = int(content[described:].split(b"=", 1)[1].split(b" ", 1)[0])
        end = content.index(b"\n", described) + 1 + size
        assert first == end + end % 2, "GDAL's own check takes the first directory nowhere else"
        with rasterio.open(path) as source:
            assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            for row, col in ((0, 0), (2, 2)):
                at, size = (int(source.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
                            for what in ("OFFSET", "SIZE"))  # fmt: skip
                assert int.from_bytes(content[at - 4 : at], "little") == size
                assert content[at + size : at + size + 4] == content[at + size - 4 : at + size]
            np.testing.assert_array_equal(source.read()[:, valid], values[:, valid])
            np.testing.assert_array_equal(source.dataset_mask() > 0, valid)


def test_the_header_counts_in_the_size_of_a_classic_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cog(tmp_path / "a.tif", blocks(image()), **options())
    monkeypatch.setattr(tiff, "CLASSIC_LIMIT", (tmp_path / "a.tif").stat().st_size - 1)
    write_cog(tmp_path / "b.tif", blocks(image()), **options())
    assert [(tmp_path / name).read_bytes()[2] for name in ("a.tif", "b.tif")] == [42, 43]


def test_gdal_can_edit_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_cog(path, blocks(image()), **options())
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as sink:
        sink.write(np.full((3, 64, 64), 7, np.uint16), window=Window(0, 0, 64, 64))
    with rasterio.open(path) as source:
        read = source.read()
    assert (read[:, :64, :64] == 7).all()
    np.testing.assert_array_equal(read[:, 64:], image()[:, 64:])


@pytest.mark.parametrize("block_px", [256, 512, 1024])
def test_few_tiles_of_overviews_wait_however_wide_the_raster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_px: int
) -> None:
    shape = (2048, 16 * 1024)
    begun: list[int] = []
    genuine = pyramid._Canvas.add

    def add(canvas: pyramid._Canvas, *arguments: Any) -> Any:
        found = genuine(canvas, *arguments)
        begun.append(sum(len(one._begun) for one in canvases))
        canvases.add(canvas)
        return found

    canvases: set[pyramid._Canvas] = set()
    monkeypatch.setattr(pyramid._Canvas, "add", add)
    everywhere = [(slice(y, y + block_px), slice(x, x + block_px)) for y in range(0, shape[0], block_px)
                  for x in range(0, shape[1], block_px)]  # fmt: skip
    values = np.ones((1, block_px, block_px), np.uint8)
    ordered = pyramid.neighbours_together(everywhere)
    assert sorted(map(str, ordered)) == sorted(map(str, everywhere))
    write_cog(
        tmp_path / "a.tif",
        [Block(where, values) for where in ordered],
        **options(grid=grid(shape), count=1, dtype="uint8", band_names=("a",)),
    )
    assert max(begun) <= len(pyramid.levels_of(shape)) + 1


def test_overlapping_blocks_are_noticed(tmp_path: Path) -> None:
    """Also where as many pixels are missing elsewhere, and in a tile that is not complete yet."""
    whole = list(blocks(image()))
    of_tile = next(blocks(image(), step=512))
    for twice in ([*whole, whole[0]], [*whole[:-1], whole[0]], [whole[0], whole[0]], [whole[0], of_tile]):
        with pytest.raises(GridMismatchError, match=r"a\.tif: blocks overlap in the tile at row 0, column 0; cover"):
            write_cog(tmp_path / "a.tif", twice, **options())
    assert not list(tmp_path.iterdir())


def test_a_missing_block_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(
        GridMismatchError, match=r"a\.tif: blocks leave out pixels of the tile at row 0, column 0; cover"
    ):
        write_cog(tmp_path / "a.tif", list(blocks(image()))[1:], **options())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "block",
    [
        Block((slice(0, 10), slice(0, 10)), np.zeros((3, 10, 10), np.int16)),
        Block((slice(0, 10), slice(0, 10)), np.zeros((2, 10, 10), np.uint16)),
        Block((slice(0, 10), slice(1295, 1305)), np.zeros((3, 10, 10), np.uint16)),
        Block((slice(0, 10), slice(-1, 9)), np.zeros((3, 10, 10), np.uint16)),
        Block((slice(0, 10), slice(0, 10)), np.zeros((3, 10, 10), np.uint16), np.ones((9, 10), bool)),
    ],
)
def test_wrong_blocks_are_refused(tmp_path: Path, block: Block) -> None:
    with pytest.raises(GridMismatchError, match="expected"):
        write_cog(tmp_path / "a.tif", [block], **options())


def test_nodata_outside_the_dtype_is_refused(tmp_path: Path) -> None:
    for nodata in (-9999, 0.5):
        with pytest.raises(InvalidSceneError, match=f"nodata {nodata} does not fit uint16"):
            write_cog(tmp_path / "a.tif", blocks(image()), **options(nodata=nodata))


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


def test_what_lay_beside_the_old_file_does_not_change_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    placed = {"crs": grid().crs, "transform": rasterio.Affine(*grid().transform)}
    size = {"width": SHAPE[1], "height": SHAPE[0], "count": 3, "dtype": "uint16"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "w", **size, **placed) as old:
        old.write(image())
        old.write_mask(np.zeros(SHAPE, bool))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><Metadata><MDI key='LEFT'>over</MDI></Metadata></PAMDataset>")
    with rasterio.open(path) as old:
        assert not old.dataset_mask().any()
        assert old.tags()["LEFT"] == "over"
    write_cog(path, blocks(image()), **options())
    with rasterio.open(path) as new:
        assert new.dataset_mask().all()
        assert "LEFT" not in new.tags()


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


@pytest.mark.parametrize(("share", "largest"), [(0.1, 60000), (0.74, 60000), (0.8, 60000), (0.99, 60000), (0.01, 1)])
def test_disk_filling_up_is_a_sink_error_and_nothing_stays(tmp_path: Path, share: float, largest: int) -> None:
    """A real limit on the size of files, so real writes fail: in the scratch file, in the copy, near the end.

    Also where the scratch file is so small that it is written when it is read, and again when it is closed.
    """
    import resource
    import signal

    values = np.random.default_rng(0).integers(1, largest + 1, (3, *SHAPE)).astype(np.uint16)
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


def test_the_scratch_file_shrinks_as_the_result_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they take hardly more of the disk than the result."""
    honest, taken, given_back = pyramid.Spool.copy, [], 2**16
    monkeypatch.setattr(pyramid, "_GIVEN_BACK_BYTES", given_back)

    def copy(spool: pyramid.Spool, place: pyramid.Place, sink: Any) -> None:
        honest(spool, place, sink)
        sizes = [os.fstat(file.fileno()) for file in (spool._file, sink)]
        taken.append(512 * sum(size.st_blocks for size in sizes))

    monkeypatch.setattr(pyramid.Spool, "copy", copy)
    values = np.random.default_rng(0).integers(1, 60000, (3, *SHAPE)).astype(np.uint16)
    info = write_cog(tmp_path / "a.tif", blocks(values), **options())
    largest_tile = pyramid.TILE_PX**2 * 3 * 2
    assert len(taken) > 10
    assert max(taken) < info.size_bytes + given_back + 2 * largest_tile


@pytest.mark.parametrize("resolution", [0, 1, 2])
@pytest.mark.parametrize("of_mask", [False, True])
def test_a_byte_changed_on_the_way_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolution: int, *, of_mask: bool
) -> None:
    """Overviews and masks count as much as pixels do, a mask without holes too; the file would still be a valid COG."""
    honest, valid = cog.write_tiles, np.ones(SHAPE, bool)
    valid[:8, :8] = False

    def confused(path: Path, levels: list[Level], *rest: Any) -> None:
        honest(path, levels, *rest)
        with rasterio.open(path) as source:
            row, col = (n - 1 for n in levels[resolution].tiles_yx)
            at = int(
                source.get_tag_item(
                    f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1, ovr=resolution - 1 if resolution else None
                )
            )
        at += levels[resolution].image[row, col].size + 8 if of_mask else 0
        content = bytearray(path.read_bytes())
        content[at + 4] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(cog, "write_tiles", confused)
    with pytest.raises(
        SinkError, match=rf"does not hold the tile at row \d+, column \d+ of the resolution 1:{2**resolution} "
    ):
        write_cog(tmp_path / "a.tif", blocks(image(), valid), **options(nodata=None))
    assert not list(tmp_path.iterdir())


def test_pixels_that_are_decoded_otherwise_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compressed lies where it should; only decoding it can tell that it was something else."""
    honest = pyramid.Coding.encoded
    monkeypatch.setattr(pyramid.Coding, "encoded", lambda coding, values: honest(coding, values + 1))
    with pytest.raises(SinkError, match=r"read back .* of the tile at row 0, column 0"):
        write_cog(tmp_path / "a.tif", blocks(image()), **options())
    assert not list(tmp_path.iterdir())


def test_validate_refuses_what_is_no_cog(tmp_path: Path) -> None:
    layout = {"width": 1300, "height": 1100, "count": 1, "dtype": "uint8", "crs": grid().crs}
    layout |= {"driver": "GTiff", "transform": rasterio.Affine(*grid().transform)}
    for tiled, found in ((False, "not tiled"), (True, "recommended to include internal overviews")):
        with rasterio.open(tmp_path / "plain.tif", "w", tiled=tiled, **layout) as sink:
            sink.write(image(1, "uint8"))
        with pytest.raises(InvalidSceneError, match=f"expected a valid COG, found: .*{found}"):
            validate_cog(tmp_path / "plain.tif")
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(InvalidSceneError, match="cannot be opened"):
        validate_cog(tmp_path / "text.tif")


def test_reason_bits() -> None:
    pan_valid, ms_valid = np.ones((12, 12), bool), np.ones((12, 12), bool)
    pan_valid[:2], ms_valid[:, :3] = False, False
    saturated, low = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    saturated[11, 11], low[10:, 11] = True, True
    bits = reason_bits(
        pan_valid=pan_valid, ms_valid=ms_valid, reach_px=2, core=(slice(None), slice(None)),
        saturated=saturated, low_consistency=low,
    )  # fmt: skip
    assert bits.dtype == np.uint8
    assert bits[0, 0] == Reason.NO_MS | Reason.NO_PAN
    assert bits[0, 8] == Reason.NO_PAN
    assert bits[8, 0] == Reason.NO_MS
    assert bits[3, 8] == bits[8, 4] == Reason.EDGE
    assert bits[4, 5] == 0
    assert bits[11, 11] == Reason.SATURATED | Reason.LOW_CONSISTENCY
    assert bits[10, 11] == Reason.LOW_CONSISTENCY
    assert bits[11, 8] == 0, "the border of the array is not an edge of the data"
    core = (slice(3, 10), slice(4, 12))
    part = reason_bits(
        pan_valid=pan_valid, ms_valid=ms_valid, reach_px=2, core=core,
        saturated=saturated[core], low_consistency=low[core],
    )  # fmt: skip
    np.testing.assert_array_equal(part, bits[core])


def test_reason_mask_file(tmp_path: Path) -> None:
    bits = np.zeros((1, *SHAPE), np.uint8)
    bits[0, :100] = Reason.NO_PAN | Reason.NO_MS
    info = write_reason_mask(tmp_path / "mask.tif", blocks(bits), grid=grid())
    validate_cog(info.path)
    with rasterio.open(tmp_path / "mask.tif") as source:
        np.testing.assert_array_equal(source.read(), bits)
        assert source.nodata == 255  # of readers that warp it, outside the scene; 0 would say: trust it
        assert source.dataset_mask().all()
        assert source.tags()["REASON_4"] == "EDGE"
        assert set(np.unique(source.read(1, out_shape=(275, 325)))) == {0, 3}


@pytest.mark.parametrize(("measured", "phase_yx", "corner"), [
    (True, (0.5, 0.5), (5e5, 4.6e6)), (False, (0.0, -0.5), (5e5 - 0.5, 4.6e6 + 0.25)),
])  # fmt: skip
def test_quality_raster_file(
    tmp_path: Path, phase_yx: tuple[float, float], corner: tuple[float, float], *, measured: bool
) -> None:
    """Blocks of 8 MS pixels from the corner of MS; -1 where a block could not be compared."""
    scene = PairGrid(pan=grid((70, 100)), ms_shape_yx=(35, 50), ratio=2, phase_yx=phase_yx)
    values = np.full((5, 7), np.nan, np.float32)
    if measured:
        values[1, 2:4] = 0.0, 3.0
    info = write_quality_raster(tmp_path / "quality.tif", values, scene=scene)
    with rasterio.open(tmp_path / "quality.tif") as source:
        np.testing.assert_array_equal(source.read(1), np.where(np.isnan(values), -1, values))
        assert (source.nodata, source.descriptions) == (-1, ("consistency_ergas",))
        assert tuple(source.transform)[:6] == (8.0, 0.0, corner[0], 0.0, -8.0, corner[1])
    found = info.statistics[0]
    assert (None if found is None else tuple(found.model_dump().values())) == (
        (0.0, 3.0, 1.5, 1.5, 200 / 35) if measured else None
    )


def test_long_strip_gets_overviews_by_its_longer_side(tmp_path: Path) -> None:
    shape = (123, 1254)
    values = image(shape=shape)
    write_cog(tmp_path / "strip.tif", blocks(values), **options(grid=grid(shape)))
    with rasterio.open(tmp_path / "strip.tif") as source:
        assert source.overviews(1) == [2, 4]
    validate_cog(tmp_path / "strip.tif")


@pytest.mark.parametrize("shape", [(1100, 1), (1, 1100)])
def test_one_column_and_one_row_are_written_with_overviews(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = image(shape=shape)
    write_cog(tmp_path / "line.tif", blocks(values), **options(grid=grid(shape)))
    with rasterio.open(tmp_path / "line.tif") as source:
        np.testing.assert_array_equal(source.read(), values)
        assert len(source.overviews(1)) == 2
    with rasterio.open(tmp_path / "line.tif", overview_level=1) as source:
        assert max(source.shape) == 275


@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
def test_tiles_are_copied_from_the_spool_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(pyramid, "sys", SimpleNamespace(platform=platform))
    tiles = [np.random.default_rng(n).bytes(size) for n, size in enumerate((4, 100_000, 7, 300_000))]
    with contextlib.closing(pyramid.Spool(tmp_path)) as spool:
        places = [spool.add(tile) for tile in tiles]
        with (tmp_path / "copied").open("xb") as sink:
            for number in (2, 0, 3, 1):
                sink.write(b"before")
                spool.copy(places[number], sink)
                sink.write(spool.last_bytes(places[number]))
        expected = b"".join(b"before" + tiles[n] + tiles[n][-4:] for n in (2, 0, 3, 1))
        assert (tmp_path / "copied").read_bytes() == expected
        if platform == "linux":
            beyond = places[3]._replace(size=300_001)
            with (tmp_path / "more").open("xb") as sink, pytest.raises(OSError, match="scratch file of tiles ends"):
                spool.copy(beyond, sink)
