"""Pictures show the right bands, the right ground and nothing where there is no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pancrafter.cog import Block, write_cog
from pancrafter.errors import GridMismatchError, InvalidSceneError, SinkError
from pancrafter.preview import busiest_crop, comparison_picture, true_colour_bands, write_thumbnail
from pancrafter.types import PixelGrid

EIGHT = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir08")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (EIGHT, (4, 2, 1)),
        (("blue", "green", "red", "nir"), (2, 1, 0)),
        ((None, None, None, None), (0, 1, 2)),
        (("nir",), (0, 0, 0)),
        (("green", "nir"), (0, 1, 1)),
    ],
)
def test_true_colour(names: tuple[str | None, ...], expected: tuple[int, int, int]) -> None:
    assert true_colour_bands(names) == expected


def scene(tmp_path: Path, shape: tuple[int, int] = (700, 1050)) -> Path:
    """Band k rises along its own direction, so each colour channel can be told from the others."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    planes = {"blue": x, "green": y, "red": shape[1] - 1 - x}
    values = np.stack([planes.get(name, np.zeros(shape)) for name in EIGHT]).astype(np.uint16) + 100
    valid = np.ones(shape, bool)
    valid[:, :210] = False
    grid = PixelGrid(crs="EPSG:32633", transform=(0.5, 0, 5e5, 0, -0.5, 46e5), shape_yx=shape)
    write_cog(
        tmp_path / "s.tif",
        [Block((slice(0, shape[0]), slice(0, shape[1])), values, valid)],
        grid=grid,
        count=8,
        dtype="uint16",
        nodata=0,
        band_names=EIGHT,
    )
    return tmp_path / "s.tif"


def test_thumbnail(tmp_path: Path) -> None:
    size = write_thumbnail(tmp_path / "t.png", scene(tmp_path), common_names=EIGHT)
    picture = Image.open(tmp_path / "t.png")
    pixels = np.asarray(picture)
    assert picture.mode == "RGBA"
    assert size == pixels.shape[:2] == (342, 512)
    assert not pixels[:, :100, 3].any(), "no data must be transparent"
    assert (pixels[:, 105:, 3] == 255).all()
    middle_row, late_column = pixels[170, 110:500].astype(int), pixels[10:330, 400].astype(int)
    assert (np.diff(middle_row[:, 0]) <= 0).all()
    assert (np.diff(middle_row[:, 2]) >= 0).all()
    assert (np.diff(late_column[:, 1]) >= 0).all()
    assert pixels[..., :3][pixels[..., 3] > 0].min() == 0
    assert pixels[..., :3].max() == 255


def test_thumbnail_of_nothing_valid_is_fully_transparent(tmp_path: Path) -> None:
    grid = PixelGrid(crs="EPSG:32633", transform=(0.5, 0, 5e5, 0, -0.5, 46e5), shape_yx=(300, 300))
    window = (slice(0, 300), slice(0, 300))
    block = Block(window, np.ones((1, 300, 300), np.uint16), np.zeros((300, 300), bool))
    write_cog(tmp_path / "s.tif", [block], grid=grid, count=1, dtype="uint16", nodata=0, band_names=("b",))
    write_thumbnail(tmp_path / "t.png", tmp_path / "s.tif", common_names=(None,))
    assert not np.asarray(Image.open(tmp_path / "t.png"))[..., 3].any()


def test_thumbnail_failures_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0broken")
    with pytest.raises(InvalidSceneError, match=r"bad\.tif: no preview can be read"):
        write_thumbnail(tmp_path / "t.png", tmp_path / "bad.tif", common_names=(None,))
    with pytest.raises(SinkError, match="cannot be written"):
        write_thumbnail(tmp_path / "no" / "t.png", scene(tmp_path), common_names=EIGHT)


def test_busiest_crop_finds_texture_and_avoids_missing_data() -> None:
    generator = np.random.default_rng(1)
    pan = np.full((400, 600), 500.0)
    pan[210:330, 320:440] += generator.normal(0, 50, (120, 120))
    pan[:, :100] = generator.normal(0, 9000, (400, 100))
    valid = np.ones(pan.shape, bool)
    valid[:, :100] = False
    rows, cols = busiest_crop(pan, valid, 120)
    assert (rows.stop - rows.start, cols.stop - cols.start) == (120, 120)
    assert abs(rows.start - 210) <= 15
    assert abs(cols.start - 320) <= 15


def test_comparison_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    pan = generator.integers(100, 2000, (260, 300)).astype(np.uint16)
    sharpened = generator.integers(200, 1800, (4, 260, 300)).astype(np.uint16)
    ms = np.repeat(np.repeat(sharpened[:, ::4, ::4], 4, axis=1), 4, axis=2)
    names = ("blue", "green", "red", "nir")
    size = comparison_picture(
        tmp_path / "c.png", pan=pan, images={"MS": ms, "sharpened": sharpened}, common_names=names, crop_px=128
    )
    pixels = np.asarray(Image.open(tmp_path / "c.png"))
    assert pixels.shape == (*size, 3) == (128 + 26, 3 * 128 + 2 * 4, 3)
    crop = busiest_crop(pan, np.ones(pan.shape, bool), 128)
    panels = [pixels[26:, left : left + 128].astype(int) for left in (0, 132, 264)]
    assert (panels[0] == panels[0][..., :1]).all(), "PAN is grey"
    # The same stretch: where MS and sharpened hold the same DN, the panels hold the same colour.
    same = (ms[:3] == sharpened[:3]).all(axis=0)[crop]
    assert 0.03 < same.mean() < 0.2
    np.testing.assert_array_equal(panels[1][same], panels[2][same])
    # One picture pixel per PAN pixel, band order red, green, blue.
    order = np.argsort(sharpened[2][crop].ravel(), kind="stable")
    assert (np.diff(panels[2][..., 0].ravel()[order]) >= 0).all()
    assert pixels[:26].max() > 200, "labels are drawn"


def test_comparison_picture_refuses_other_grids(tmp_path: Path) -> None:
    with pytest.raises(GridMismatchError, match="expected"):
        comparison_picture(
            tmp_path / "c.png",
            pan=np.zeros((20, 20)),
            images={"MS": np.zeros((1, 5, 5)), "sharpened": np.zeros((1, 20, 20))},
            common_names=(None,),
        )
