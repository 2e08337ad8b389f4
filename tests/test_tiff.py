"""Moved tiles and directories against GDAL: what it wrote is what it reads, and the layout is the one it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pancrafter.tiff import TiffLayoutError, arrange_as_cog
from rasterio.enums import Resampling
from rio_cogeo.cogeo import cog_validate

SHAPE = (300, 420)


def write(path: Path, *, holes: bool = False, count: int = 2, **profile: Any) -> Path:
    values = np.random.default_rng(0).integers(1, 60000, (count, *SHAPE)).astype(np.uint16)
    profile = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "zstd", "predictor": 2} | profile
    place = rasterio.transform.from_origin(5e5, 4e6, 0.5, 0.5)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_TIFF_OVR_BLOCKSIZE="128"):
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint16", count=count, height=SHAPE[0], width=SHAPE[1],
            crs="EPSG:32633", transform=place, **profile,
        ) as file:  # fmt: skip
            file.write(values)
            file.update_tags(TIFFTAG_SOFTWARE="a name longer than fits into an entry", ODD="x")
            if holes:
                file.write_mask(values[0] > 9000)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4], Resampling.average)
    return path


@pytest.mark.parametrize("big", ["YES", "NO"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
def test_every_level_mask_and_tag_survives(
    tmp_path: Path, *, big: str, holes: bool, interleave: str, endianness: str
) -> None:
    source = write(tmp_path / "a.tif", holes=holes, BIGTIFF=big, interleave=interleave, ENDIANNESS=endianness)
    arrange_as_cog(source, tmp_path / "b.tif")
    assert cog_validate(tmp_path / "b.tif", strict=True) == (True, [], [])
    for options in ({}, {"overview_level": 0}, {"overview_level": 1}):
        with rasterio.open(source, **options) as old, rasterio.open(tmp_path / "b.tif", **options) as new:
            assert new.tags() == old.tags()
            assert new.profile == old.profile
            np.testing.assert_array_equal(new.read(), old.read())
            np.testing.assert_array_equal(new.dataset_mask(), old.dataset_mask())
            assert options or new.dataset_mask().all() != holes


def test_gdal_finds_the_structure_it_knows(tmp_path: Path) -> None:
    """Leaders and trailers around every tile, smallest overview first: GDAL says so, and so do the bytes."""
    arrange_as_cog(write(tmp_path / "a.tif"), tmp_path / "b.tif")
    data = (tmp_path / "b.tif").read_bytes()
    ends = []
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        for level in (None, 0, 1):
            with rasterio.open(tmp_path / "b.tif", **({} if level is None else {"overview_level": level})) as part:
                tiles = []
                for row in range(-(-part.height // 128)):
                    for col in range(-(-part.width // 128)):
                        offset, size = (
                            int(part.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
                            for what in ("OFFSET", "SIZE")
                        )
                        assert data[offset - 4 : offset] == size.to_bytes(4, "little")
                        assert data[offset + size : offset + size + 4] == data[offset + size - 4 : offset + size]
                        tiles.append(offset)
                assert tiles == sorted(tiles)
                ends.append((tiles[0], tiles[-1]))
    assert ends[2][1] < ends[1][0] < ends[1][1] < ends[0][0]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.995])
def test_a_file_that_was_cut_short_is_noticed(tmp_path: Path, share: float) -> None:
    source = write(tmp_path / "a.tif")
    whole = source.read_bytes()
    source.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TiffLayoutError, match=r"a\.tif: "):
        arrange_as_cog(source, tmp_path / "b.tif")


def test_a_tile_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", count=1, height=300, width=300, tiled=True,
        blockxsize=128, blockysize=128, SPARSE_OK=True,
        transform=rasterio.transform.from_origin(5e5, 4e6, 0.5, 0.5),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 100, 100), np.uint8), window=((0, 100), (0, 100)))
    with pytest.raises(TiffLayoutError, match="never written"):
        arrange_as_cog(tmp_path / "a.tif", tmp_path / "b.tif")


def test_strips_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TiffLayoutError, match="strips, expected tiles"):
        arrange_as_cog(write(tmp_path / "a.tif", tiled=False, blockysize=16), tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes(b"\x89PNG\r\n\x1a\n" * 4)
    with pytest.raises(TiffLayoutError, match="expected a TIFF"):
        arrange_as_cog(tmp_path / "c.tif", tmp_path / "b.tif")
