"""Two files in, one COG out: odd sizes, odd types, other places, full disks and small memories."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate
from staged_scenes import observed, overlap
from typer.testing import CliRunner

from pancrafter import pair as pair_module
from pancrafter.cli import app
from pancrafter.errors import InvalidSceneError, SinkError
from pancrafter.options import OptionError, parse_size
from pancrafter.pair import sharpen_pair
from pancrafter.pyramid import Spool
from pancrafter.settings import Settings
from pancrafter.stream import Layout, MemoryBudgetError, needed_bytes
from pancrafter.vendor_files import parse_georeference

ONE_THREAD = Settings(threads=1)


def write_tif(path: Path | str, values: NDArray[Any], pixel: float, **profile: Any) -> Path:
    profile = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 4e6, pixel, pixel)} | profile
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, count=len(values), height=values.shape[1],
        width=values.shape[2], tiled=True, blockxsize=64, blockysize=64, **profile,
    ) as file:  # fmt: skip
        file.write(values)
    return Path(path)


def write_pair(folder: Path, pan_yx: tuple[int, int] = (160, 192), bands: int = 3, seed: int = 1) -> tuple[Path, Path]:
    pan, ms = observed(overlap(pan_yx, 4), bands, seed)
    return write_tif(folder / "pan.tif", pan[None], 0.5), write_tif(folder / "ms.tif", ms, 2)


def sharpened(pan: Path | str, ms: Path | str, out: Path, **options: Any) -> NDArray[np.uint16]:
    sharpen_pair(pan, [ms], out, ONE_THREAD, **options)
    with rasterio.open(out) as file:
        pixels: NDArray[np.uint16] = file.read()
    return pixels


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_only_the_thread_that_sharpens_has_helpers_of_torch(tmp_path: Path) -> None:
    """Helpers of one that merely waits would make those of this one sleep at every barrier: a fifth of the time."""
    pan, ms = write_pair(tmp_path, (512, 512))
    code = f"""
import os, threading, time
from pathlib import Path
import torch
from pancrafter import pair
from pancrafter.settings import Settings

def helpers(expected=0):
    counts, end = [], time.monotonic() + 2
    while expected not in counts and time.monotonic() < end:  # some may just be ending
        counts.append(len(os.listdir("/proc/self/task")) - threading.active_count())
        time.sleep(0.01)
    return expected if expected in counts else min(counts)

def prepared(*arguments, **more):
    engine = honest(*arguments, **more)
    at_rest.append(helpers(at_rest[0]))
    return engine

arguments = Path({str(pan)!r}), [Path({str(ms)!r})], Path({str(tmp_path / "o.tif")!r}), Settings(threads=3)
pair.sharpen_pair(*arguments, method="brovey")  # what other libraries start
torch.set_num_threads(3)
at_rest = [helpers()]
honest, pair._prepare = pair._prepare, prepared
for _ in range(2):
    pair.sharpen_pair(*arguments, overwrite=True)
    at_rest.append(helpers(at_rest[0]))
print(at_rest)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    at_rest = json.loads(done.stdout)
    assert len(at_rest) == 5
    assert len(set(at_rest)) == 1, at_rest


@pytest.mark.parametrize("pan_yx", [(4, 4), (7, 5), (33, 130), (131, 66)])
@pytest.mark.parametrize("method", ["pan-crafter", "brovey"])
def test_tiny_and_odd_scenes(tmp_path: Path, pan_yx: tuple[int, int], method: str) -> None:
    """One MS pixel, sizes below a window, sizes that are no multiple of the ratio."""
    rng = np.random.default_rng(0)
    pan = write_tif(tmp_path / "pan.tif", rng.integers(100, 900, (1, *pan_yx)).astype(np.uint16), 0.5)
    ms_yx = tuple(-(-n // 4) for n in pan_yx)
    ms = write_tif(tmp_path / "ms.tif", rng.integers(100, 900, (3, *ms_yx)).astype(np.uint16), 2)
    found = sharpened(pan, ms, tmp_path / "out.tif", method=method)
    assert found.shape == (3, *pan_yx)
    assert 200 < found.mean() < 900
    assert cog_validate(tmp_path / "out.tif", strict=True)[0]


def test_windows_do_not_show(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    whole = sharpened(pan, ms, tmp_path / "whole.tif", window_px=512).astype(int)
    parts = sharpened(pan, ms, tmp_path / "parts.tif", window_px=128).astype(int)
    assert np.abs(whole - parts).max() <= 1
    assert (whole == parts).mean() > 0.999


def test_floats_with_nan_give_the_pixels_of_integers_with_nodata(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    with rasterio.open(pan) as file:
        values = file.read()
    holes = np.zeros(values.shape, bool)
    holes[:, 40:75, 60:90] = True
    integer = write_tif(tmp_path / "pan-0.tif", np.where(holes, 0, values), 0.5, nodata=0)
    floating = write_tif(
        tmp_path / "pan-nan.tif", np.where(holes, np.nan, values).astype(np.float32), 0.5, nodata=np.nan
    )
    with_nodata = sharpened(integer, ms, tmp_path / "a.tif", method="gsa")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.dataset_mask() == 0, holes[0])
    sharpen_pair(floating, [ms], tmp_path / "b.tif", ONE_THREAD, method="gsa")
    with rasterio.open(tmp_path / "b.tif") as file:
        assert np.array_equal(file.dataset_mask() == 0, holes[0])
        assert np.array_equal(file.read()[:, ~holes[0]], with_nodata[:, ~holes[0]])


@pytest.mark.parametrize("held_share", [1, 0])
@pytest.mark.parametrize("nodata", [None, 0])
def test_files_read_in_place_give_the_pixels_of_staged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodata: int | None, held_share: float
) -> None:
    """More than one block, MS in three files, and where there is nodata holes of all sizes, across blocks too.

    Their pixels stay in memory, or are read again from the files whenever they are needed.
    """
    monkeypatch.setattr(pair_module, "_HELD_SHARE", held_share)
    pan, ms = observed(overlap((700, 1100), 4), 3, 1)
    if nodata is not None:
        rng = np.random.default_rng(0)
        pan[480:560, 300:700] = pan[:40] = nodata
        pan[rng.integers(0, 700, 300), rng.integers(0, 1100, 300)] = nodata
        ms[:, 100:140, 60:90] = nodata
    first = write_tif(tmp_path / "pan.tif", pan[None], 0.5, nodata=nodata)
    bands = [write_tif(tmp_path / f"ms_b{n}.tif", band[None], 2, nodata=nodata) for n, band in enumerate(ms)]
    made = sharpen_pair(first, bands, tmp_path / "in-place.tif", ONE_THREAD, method="brovey", window_px=256)
    monkeypatch.setattr("pancrafter.in_place.read_in_place", lambda *_, **__: None)
    staged = sharpen_pair(first, bands, tmp_path / "staged.tif", ONE_THREAD, method="brovey", window_px=512)
    assert made.valid_share == pytest.approx(staged.valid_share)
    assert (made.valid_share < 1) == (nodata is not None)
    assert (made.largest_shift_px, made.bands) == (staged.largest_shift_px, staged.bands)
    assert (made.shape_yx, made.mpx) == ((700, 1100), 0.77)
    with rasterio.open(tmp_path / "in-place.tif") as a, rasterio.open(tmp_path / "staged.tif") as b:
        np.testing.assert_array_equal(a.dataset_mask(), b.dataset_mask())
        np.testing.assert_array_equal(a.read(), b.read())


def test_pixels_stay_in_memory_where_windows_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pan, ms = write_pair(tmp_path, (160, 192), bands=3)
    size = 160 * 192 * 3 + 40 * 48 * 7  # DN and a mask
    held: list[tuple[int, int]] = []
    needed = [0]
    honest = pair_module._prepare

    def looked_at(pixels: Any, *rest: Any, **more: Any) -> Any:
        before = pixels.held_bytes
        engine = honest(pixels, *rest, **more)
        held.append((before, pixels.held_bytes))
        needed[0] = needed_bytes(engine.sharpener, Layout.of(pixels.staged, engine.sharpener), engine.window_px)
        return engine

    monkeypatch.setattr(pair_module, "_prepare", looked_at)
    plain = sharpened(pan, ms, tmp_path / "a.tif", method="brovey")
    for out, memory in ((tmp_path / "b.tif", needed[0] + size), (tmp_path / "c.tif", needed[0] + size - 1)):
        np.testing.assert_array_equal(sharpened(pan, ms, out, method="brovey", memory_bytes=memory), plain)
    assert held == [(size, size), (size, size), (size, 0)]


def test_a_file_of_wide_strips_is_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its windows would decode rows as wide as the scene, again and again."""
    from pancrafter import cube

    pan, ms = observed(overlap((64, 2400), 4), 2, 1)
    tiled, coarse = write_tif(tmp_path / "pan.tif", pan[None], 0.5), write_tif(tmp_path / "ms.tif", ms, 2)
    rasterio.shutil.copy(tiled, tmp_path / "strips.tif", driver="GTiff", tiled=False)
    staged: list[str] = []
    honest = cube.stage_scene
    monkeypatch.setattr(cube, "stage_scene", lambda *a, **k: staged.append(a[2]) or honest(*a, **k))
    expected = sharpened(tiled, coarse, tmp_path / "a.tif", method="exp")
    assert not staged
    np.testing.assert_array_equal(
        sharpened(tmp_path / "strips.tif", coarse, tmp_path / "b.tif", method="exp"), expected
    )
    assert len(staged) == 1


def test_paths_that_only_gdal_knows(tmp_path: Path) -> None:
    import zipfile

    pan, ms = write_pair(tmp_path)
    expected = sharpened(pan, ms, tmp_path / "a.tif", method="brovey")
    archive = tmp_path / "pair.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(pan, "pan.tif")
        file.write(ms, "ms.tif")
    places = [f"/vsizip/{archive}/{name}" for name in ("pan.tif", "ms.tif")]
    assert np.array_equal(sharpened(places[0], places[1], tmp_path / "b.tif", method="brovey"), expected)
    assert np.array_equal(sharpened(f"file://{pan}", f"file://{ms}", tmp_path / "c.tif", method="brovey"), expected)
    with pytest.raises(InvalidSceneError, match=r"none\.tif: cannot be read .*; check the address"):
        sharpened(f"/vsizip/{archive}/none.tif", places[1], tmp_path / "d.tif")
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(InvalidSceneError, match=r"note\.txt: cannot be read .*; expected an image that GDAL reads$"):
        sharpened(tmp_path / "note.txt", places[1], tmp_path / "d.tif")
    assert sorted(path.name for path in tmp_path.glob("*.tif")) == ["a.tif", "b.tif", "c.tif", "ms.tif", "pan.tif"]


@pytest.mark.parametrize("method", ["brovey", "gsa", "mtf-glp-fs", "pan-crafter"])
@pytest.mark.parametrize("divisor", [1, 4])
def test_pan_of_two_bytes_sharpens_ms_of_one(tmp_path: Path, method: str, divisor: int) -> None:
    """All of PAN lies above the ceiling of bytes, or a part of it, which must not be left out of the fits."""
    pan, ms = observed(overlap((160, 192), 4), 3, 1)
    fine, coarse = tmp_path / "pan.tif", tmp_path / "ms.tif"
    write_tif(coarse, ms, 2)
    expected = sharpened(write_tif(fine, pan[None], 0.5), coarse, tmp_path / "wide.tif", method=method) / 8
    write_tif(coarse, np.rint(ms / 8).astype(np.uint8), 2)
    write_tif(fine, np.rint(pan[None] / divisor).astype(np.uint16), 0.5)
    found = sharpened(fine, coarse, tmp_path / "out.tif", method=method)
    assert found.dtype == np.uint16
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.6  # rounding of inputs and result: 0.3 to 0.5
    assert expected.std() > 10


FOUR = ("Blue", "Green", "Red", "NIR 1")


def test_bands_of_an_unknown_sensor_are_called_as_the_file_does_or_as_asked(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path, (64, 64), bands=4)

    def names(ms: list[Path], **options: Any) -> tuple[str, ...]:
        made = sharpen_pair(pan, ms, tmp_path / "out.tif", ONE_THREAD, method="exp", overwrite=True, **options)
        with rasterio.open(made.path) as file:
            assert file.descriptions == made.bands
        return made.bands

    numbered = ("band-1", "band-2", "band-3", "band-4")
    assert names([ms]) == numbered
    for wanting in (
        ("Blue", None, "Red", "NIR 1"),
        ("Blue", "blue", "Red", "NIR 1"),
        ("Pan", "Green", "Red", "近红外"),
    ):
        _describe(ms, wanting)
        assert names([ms]) == numbered
    _describe(ms, FOUR)
    assert names([ms]) == FOUR
    assert names([ms], sensor="generic", bands=["a", "b", "c", "d"]) == ("a", "b", "c", "d")
    assert names([ms], sensor="worldview-2") == ("blue", "green", "red", "nir1")
    with rasterio.open(ms) as file:
        files = [write_tif(tmp_path / f"x{n}.tif", band[None], 2) for n, band in enumerate(file.read())]
    for path, name in zip(files, FOUR, strict=True):
        _describe(path, (name,))
    assert names(files) == FOUR


@pytest.mark.parametrize("bands", [("a", "b", "c", "A"), ("pan", "b", "c", "d")])
def test_names_that_tell_no_bands_apart_are_refused(tmp_path: Path, bands: tuple[str, ...]) -> None:
    pan, ms = write_pair(tmp_path, (64, 64), bands=4)
    with pytest.raises(
        InvalidSceneError, match=rf"bands {', '.join(bands)}: expected different names .* none of them 'pan'"
    ):
        sharpen_pair(pan, [ms], tmp_path / "out.tif", ONE_THREAD, method="exp", bands=bands)


def _describe(path: Path, descriptions: tuple[str | None, ...]) -> None:
    with rasterio.open(path, "r+") as file:
        for band, text in enumerate(descriptions, start=1):
            file.set_band_description(band, text or "")


def test_the_empty_file_of_several_is_named(tmp_path: Path) -> None:
    pan, ms = observed(overlap((64, 64), 4), 3, 1)
    ms[2] = 0
    fine = write_tif(tmp_path / "pan.tif", pan[None], 0.5)
    bands = [write_tif(tmp_path / f"c_B{n}.tif", band[None], 2, nodata=0) for n, band in enumerate(ms, start=1)]
    for options in ({}, {"georeference": parse_georeference("EPSG:32633 500000 4000000 0.5")}):
        if options:
            for path in (fine, *bands):
                _without_frame(path)
        with pytest.raises(InvalidSceneError, match=rf"^{re.escape(str(bands[2]))}: band-3 has no valid pixel"):
            sharpen_pair(fine, bands, tmp_path / "out.tif", ONE_THREAD, method="exp", **options)


def test_replacing_a_result_looks_at_inputs_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without a frame bring no warning, and those elsewhere are left to what reads them."""
    pan, ms = write_pair(tmp_path, (64, 64))
    for path in (pan, ms):
        _without_frame(path)
    frame, out = parse_georeference("EPSG:32633 500000 4000000 0.5"), tmp_path / "out.tif"
    out.touch()
    sharpen_pair(pan, [ms], out, ONE_THREAD, method="exp", georeference=frame, overwrite=True)
    there = {"AWS_S3_ENDPOINT": "127.0.0.1:9", "AWS_HTTPS": "NO", "AWS_NO_SIGN_REQUEST": "YES"}
    for name, value in (there | {"AWS_PROFILE": "none-of-this-name"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSceneError, match=r"^s3://bucket/pan.tif: cannot be read"):
        sharpen_pair("s3://bucket/pan.tif", [ms], out, ONE_THREAD, overwrite=True)


@pytest.mark.parametrize("name", ["ms.tif", "ms.vrt"])
def test_bad_pixels_are_blamed_on_the_file_not_on_what_stands_for_it(tmp_path: Path, name: str) -> None:
    pan, ms = write_pair(tmp_path)
    with rasterio.open(ms) as file:
        values = file.read().astype(np.int16)
    values[1, 3, 3] = -5
    write_tif(ms, values, 2)
    given = tmp_path / name
    if name != ms.name:
        rasterio.shutil.copy(ms, given, driver="VRT")
    with pytest.raises(InvalidSceneError, match=rf"^{re.escape(str(given))}: rows .* hold DN from -5"):
        sharpen_pair(pan, [given], tmp_path / "out.tif", ONE_THREAD, method="exp")
    with pytest.raises(InvalidSceneError, match=rf"^{re.escape(str(given))}: has 3 bands, but 2 were named"):
        sharpen_pair(pan, [given], tmp_path / "out.tif", ONE_THREAD, method="exp", bands=["a", "b"])


def _without_frame(path: Path) -> None:
    with rasterio.open(path) as file:
        values, profile = file.read(), file.profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **(profile | {"crs": None, "transform": None})) as file:
            file.write(values)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_alpha_masks_and_is_not_sharpened(tmp_path: Path, kind: str) -> None:
    """Of PAN and of MS; in five bands of uint16, too, where GDAL sees no mask."""
    bands, scale, dtype = (3, 8, np.uint8) if kind == "bytes" else (4, 1, np.uint16)
    pan, ms = observed(overlap((64, 64), 4), bands, 1)
    pan, ms = (pan // scale).astype(dtype), (ms // scale).astype(dtype)
    expected = sharpened(
        write_tif(tmp_path / "pan.tif", pan[None], 0.5), write_tif(tmp_path / "ms.tif", ms, 2), tmp_path / "a.tif",
        method="exp",
    )  # fmt: skip
    shown, shown_pan = np.full((1, 16, 16), 255, dtype), np.full((1, 64, 64), 1, dtype)
    shown[:, :5], shown_pan[:, :, 50:] = 0, 0
    for path, image, pixel in (
        ("pan_a.tif", np.stack([pan, shown_pan[0]]), 0.5),
        ("ms_a.tif", np.concatenate([ms, shown]), 2),
    ):
        write_tif(tmp_path / path, image, pixel)
        with rasterio.open(tmp_path / path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (file.count - 2), ColorInterp.alpha]
    made = sharpen_pair(tmp_path / "pan_a.tif", [tmp_path / "ms_a.tif"], tmp_path / "b.tif", ONE_THREAD, method="exp")
    assert made.ms_alpha
    with rasterio.open(tmp_path / "b.tif") as file:
        found, valid = file.read(), file.dataset_mask() != 0
    assert len(found) == bands
    assert np.array_equal(valid, np.kron(shown[0] != 0, np.ones((4, 4), bool)) & (shown_pan[0] != 0))
    inner = (slice(None), slice(32, None), slice(0, 40))  # far from what is filled
    assert np.abs(found[inner].astype(int) - expected[inner]).mean() < 0.02 * expected.mean()


def test_near_infrared_that_gdal_calls_alpha_is_sharpened_where_it_is_named(tmp_path: Path) -> None:
    pan, ms = observed(overlap((64, 64), 4), 4, 1)
    fine, coarse = write_tif(tmp_path / "pan.tif", pan[None], 0.5), tmp_path / "ms.tif"
    write_tif(coarse, (ms // 8).astype(np.uint8), 2)
    words = ["sharpen", str(fine), str(coarse), str(tmp_path / "out.tif"), "--method", "exp", "--overwrite"]
    told = CliRunner().invoke(app, words)
    assert "3 bands" in told.stdout, told.output
    assert "calls a band alpha, so it was taken for a mask and not sharpened; if it is image" in told.stderr
    named = CliRunner().invoke(app, [*words, "--bands", "band-1,band-2,band-3,band-4"])
    assert "4 bands" in named.stdout, named.output
    assert "alpha" not in named.stderr


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("how", ["frame", "vrt"])
def test_files_of_one_name_in_several_folders_stay_apart(tmp_path: Path, how: str) -> None:
    """Copies with the assumed frame, and stand-ins of what is no TIFF, are not written over one another."""
    pan, ms = observed(overlap((64, 64), 4), 3, 1)
    placed = {} if how == "vrt" else {"crs": None, "transform": None}
    files = []
    for name, image, pixel in (("PAN", pan, 0.5), *((f"B{n}", band, 2) for n, band in enumerate(ms, start=1))):
        (tmp_path / name).mkdir()
        path = write_tif(tmp_path / name / "img.tif", image[None], pixel, **placed)
        if how == "vrt":
            rasterio.shutil.copy(path, path.with_suffix(".vrt"), driver="VRT")
            path = path.with_suffix(".vrt")
        files.append(path)
    options = {} if how == "vrt" else {"georeference": parse_georeference("EPSG:32633 500000 4000000 0.5")}
    sharpen_pair(files[0], files[1:], tmp_path / "split.tif", ONE_THREAD, method="exp", **options)
    expected = sharpened(*write_pair(tmp_path, (64, 64)), tmp_path / "whole.tif", method="exp")
    with rasterio.open(tmp_path / "split.tif") as split:
        np.testing.assert_array_equal(split.read(), expected)


@pytest.mark.parametrize("stem", ["pan", "other"])
def test_a_vrt_keeps_its_mask_and_stays_as_it_was(tmp_path: Path, stem: str) -> None:
    pan, ms = write_pair(tmp_path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(pan, "r+") as file:
        mask = np.full(file.shape, 255, np.uint8)
        mask[:40] = 0
        file.write_mask(mask)
    given = tmp_path / f"{stem}.vrt"
    rasterio.shutil.copy(pan, given, driver="VRT")
    before = given.read_bytes()
    made = sharpen_pair(given, [ms], tmp_path / "out.tif", ONE_THREAD, method="exp")
    assert made.valid_share == pytest.approx(1 - 40 / len(mask))
    assert given.read_bytes() == before


def test_a_vrt_is_found_through_relative_links(tmp_path: Path) -> None:
    for folder in ("data", "links", "more"):
        (tmp_path / folder).mkdir()
    pan, ms = write_pair(tmp_path / "data")
    inputs = []
    for path in (pan, ms):
        name = f"{path.stem}.vrt"
        rasterio.shutil.copy(path, path.with_suffix(".vrt"), driver="VRT")
        (tmp_path / "links" / name).symlink_to(Path("..") / "data" / name)
        (tmp_path / "more" / name).symlink_to(Path("..") / "links" / name)
        inputs.append(tmp_path / "more" / name)
    expected = sharpened(pan, ms, tmp_path / "a.tif", method="exp")
    assert np.array_equal(sharpened(*inputs, tmp_path / "b.tif", method="exp"), expected)


def test_a_remote_file_given_twice_is_refused(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path, bands=1)
    with pytest.raises(InvalidSceneError, match=r"^s3://b/ms\.tif: the same file is given twice"):
        sharpen_pair(pan, [ms, "s3://b/ms.tif", "s3://b/ms.tif"], tmp_path / "out.tif", ONE_THREAD, method="exp")


def test_other_formats_than_tiff(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    expected = sharpened(pan, ms, tmp_path / "a.tif", method="brovey")
    for path in (pan, ms):
        rasterio.shutil.copy(path, path.with_suffix(".dat"), driver="ENVI")
    found = sharpened(pan.with_suffix(".dat"), ms.with_suffix(".dat"), tmp_path / "b.tif", method="brovey")
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("s3")
def test_inputs_on_s3(tmp_path: Path) -> None:
    import boto3

    pan, ms = write_pair(tmp_path)
    expected = sharpened(pan, ms, tmp_path / "a.tif", method="exp")
    for path in (pan, ms):
        boto3.client("s3").upload_file(str(path), "bucket", f"one/{path.name}")
    found = sharpened("s3://bucket/one/pan.tif", "s3://bucket/one/ms.tif", tmp_path / "b.tif", method="exp")
    assert np.array_equal(found, expected)
    with pytest.raises(InvalidSceneError, match=r"s3://bucket/one/none\.tif: cannot be read"):
        sharpened("s3://bucket/one/none.tif", "s3://bucket/one/ms.tif", tmp_path / "c.tif")


@pytest.mark.parametrize("window_px", [None, 128])
def test_too_little_memory_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_px: int | None
) -> None:
    pan, ms = write_pair(tmp_path)
    monkeypatch.setattr("pancrafter.pair._read", lambda *_, **__: pytest.fail("pixels were read"))
    with pytest.raises(MemoryBudgetError, match="memory of 300 MiB is too small"):
        sharpened(pan, ms, tmp_path / "out.tif", memory_bytes=300 * 2**20, window_px=window_px)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ms.tif", "pan.tif"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 * 2**30), ("1.5gib", 3 * 2**29), ("800MB", 800_000_000), ("2G", 2 * 2**30), ("1048576", 2**20)],
)
def test_sizes_as_people_type_them(text: str, size: int) -> None:
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "much", "-2GiB", "0", "1.2.3G", "2 hours"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--memory: found .*, expected a size like 2GiB"):
        parse_size("--memory", text)


def test_disk_that_fills_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tile does not fit any more: an error that names the file, and no scratch or output left behind."""
    pan, ms = write_pair(tmp_path, (700, 700))
    written: list[int] = []
    genuine = Spool.add

    def add(spool: Spool, content: bytes) -> Any:
        written.append(1)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(spool, content)

    monkeypatch.setattr(Spool, "add", add)
    with pytest.raises(SinkError, match="No space left on device"):
        sharpened(pan, ms, tmp_path / "out.tif", window_px=128, method="exp")
    assert 2 <= len(written) <= 4, "what was not begun is given up; the whole scene would be five"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ms.tif", "pan.tif"]


@pytest.mark.parametrize(
    ("wait_for", "number"),
    [("reading", signal.SIGINT), ("sharpening", signal.SIGINT), ("sharpening", signal.SIGTERM)],
)
def test_interrupt_leaves_no_output(tmp_path: Path, wait_for: str, number: signal.Signals) -> None:
    pan, ms = write_pair(tmp_path, (1200, 1200))
    # The installed command: `python -m` would end by the signal where it came in the middle of an import.
    command = [str(Path(sys.executable).with_name("pancrafter")), "sharpen", str(pan), str(ms)]
    command += [str(tmp_path / "out.tif"), "--threads", "1", "--block-px", "128"]
    heeding = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731  # a shell's & ignores it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding) as run:  # noqa: PLW1509
        assert run.stderr is not None
        _until(run.stderr.readline, wait_for)
        time.sleep(0.3)
        run.send_signal(number)
        said = run.stderr.read()
        assert run.wait(500) == 128 + number, said
    assert "interrupted" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ms.tif", "pan.tif"]


def test_swallowed_interrupt_is_raised_again_where_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a callback or an import of some library does it: the run goes on as if nobody had pressed Ctrl-C."""
    pan, ms = write_pair(tmp_path)
    genuine = pair_module._read

    def read(*arguments: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return genuine(*arguments)

    monkeypatch.setattr(pair_module, "_read", read)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    try:
        result = CliRunner().invoke(app, ["sharpen", str(pan), str(ms), str(tmp_path / "out.tif"), "--method", "exp"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ms.tif", "pan.tif"]


def _until(read: Callable[[], str], word: str) -> None:
    line = read()
    while word not in line:
        assert line, f"ended before {word}"
        line = read()
