"""What ``pancrafter sharpen`` does with inputs and surroundings that are not as they should be.

Every case is the command as a person types it: it ends with a result that is right, or with one line that says what is
wrong and leaves nothing behind. Wrong pairs of files are in ``test_cli``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate
from staged_scenes import observed, overlap
from test_pair import write_pair, write_tif
from typer.testing import CliRunner

from pancrafter import engine
from pancrafter.cli import app
from pancrafter.model.inference import MsNetwork


def sharpen(pan: Path, ms: Path, *options: str) -> click.testing.Result:
    out = pan.parent / "out.tif"
    words = ["sharpen", str(pan), str(ms), str(out), "--sensor", "generic", "--threads", "1", *options]
    return CliRunner().invoke(app, words)


def pixels(folder: Path) -> NDArray[Any]:
    assert cog_validate(folder / "out.tif", strict=True)[0]
    with rasterio.open(folder / "out.tif") as file:
        return file.read(masked=True)


def refused(result: click.testing.Result, folder: Path, *said: str) -> None:
    """The command failed with one line that says all this, and nothing but the inputs is there."""
    assert result.exit_code in (1, 2), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in said:
        assert part in line
    assert {path.name for path in folder.iterdir()} <= {"pan.tif", "ms.tif"}


# --- results that are right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pan_yx", [(4, 4), (1, 1), (2, 3), (7, 5), (33, 130), (131, 66)])
@pytest.mark.parametrize("method", ["pan-crafter", "mtf-glp-fs", "gsa", "brovey", "exp"])
def test_tiny_scenes_and_sizes_that_are_no_multiple_of_the_ratio(
    tmp_path: Path, pan_yx: tuple[int, int], method: str
) -> None:
    """A flat scene stays flat, whatever its size: down to one MS pixel, and to one PAN pixel of it."""
    ms_yx = tuple(-(-n // 4) for n in pan_yx)
    pan = write_tif(tmp_path / "pan.tif", np.full((1, *pan_yx), 500, np.uint16), 0.5)
    ms = write_tif(tmp_path / "ms.tif", np.stack([np.full(ms_yx, n, np.uint16) for n in (300, 400, 600)]), 2)
    result = sharpen(pan, ms, "--method", method)
    assert result.exit_code == 0, result.output
    found = pixels(tmp_path)
    assert found.shape == (3, *pan_yx)
    for band, level in zip(found, (300, 400, 600), strict=True):
        tolerance = 60 if method == "pan-crafter" else 1  # the network has never seen a scene without any texture
        assert np.abs(band.astype(int) - level).max() <= tolerance


def test_scattered_nodata_stays_where_it_is_and_does_not_spread(tmp_path: Path) -> None:
    pan, ms = observed(overlap((300, 260), 4), 3, 1)
    rng = np.random.default_rng(0)
    holes = np.zeros(pan.shape, bool)
    holes[rng.integers(0, 300, 200), rng.integers(0, 260, 200)] = True
    holes[40:90, 100:180] = holes[:7] = holes[:, -3:] = True
    whole = sharpen(write_tif(tmp_path / "pan.tif", pan[None], 0.5, nodata=0), write_tif(tmp_path / "ms.tif", ms, 2),
                    "--method", "exp")  # fmt: skip
    assert whole.exit_code == 0, whole.output
    expected = pixels(tmp_path)
    write_tif(tmp_path / "pan.tif", np.where(holes, 0, pan)[None], 0.5, nodata=0)
    result = sharpen(tmp_path / "pan.tif", tmp_path / "ms.tif", "--method", "exp", "--overwrite")
    assert result.exit_code == 0, result.output
    found = pixels(tmp_path)
    assert np.array_equal(found.mask, np.broadcast_to(holes, found.shape))
    # exp takes nothing from PAN but the measured band shift, which moves a little; a hole that spread would show.
    change = np.abs(found.data[:, ~holes].astype(int) - expected.data[:, ~holes])
    assert change.max() < 0.1 * expected.data.min(), change.max()
    assert np.median(change) <= 2


@pytest.mark.parametrize("method", ["pan-crafter", "brovey"])
def test_nan_is_nodata_and_whole_floats_are_dn(tmp_path: Path, method: str) -> None:
    pan, ms = observed(overlap((160, 192), 4), 3, 1)
    floats = pan.astype(np.float32)
    floats[40:75, 60:90] = np.nan
    result = sharpen(write_tif(tmp_path / "pan.tif", floats[None], 0.5), write_tif(tmp_path / "ms.tif", ms, 2),
                     "--method", method)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = pixels(tmp_path)
    assert np.array_equal(found.mask, np.broadcast_to(np.isnan(floats), found.shape))
    assert 0.5 < found.mean() / ms.mean() < 2


# --- clear errors ---------------------------------------------------------------------------------------------------


def test_fractional_floats_are_refused(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    with rasterio.open(ms) as file:
        reflectance = (file.read() / 10_000).astype(np.float32)
    write_tif(ms, reflectance, 2)
    refused(sharpen(pan, ms, "--method", "exp"), tmp_path, "fractional float32 values, expected whole DN", "scale")


def test_nothing_but_nodata_is_refused(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    write_tif(pan, np.zeros((1, 160, 192), np.uint16), 0.5, nodata=0)
    refused(sharpen(pan, ms, "--method", "exp"), tmp_path, "PAN has no valid pixel", "check nodata")


@pytest.mark.parametrize("method", ["pan-crafter", "brovey"])
def test_an_unreadable_block_in_the_middle_is_named(tmp_path: Path, method: str) -> None:
    pan, ms = write_pair(tmp_path, (700, 700))
    with rasterio.open(pan) as file:
        values = file.read()
    write_tif(pan, values, 0.5, compress="zstd")
    content = bytearray(pan.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    pan.write_bytes(content)
    refused(sharpen(pan, ms, "--method", method), tmp_path, "window rows", "cannot be read", "fetch it again")


@pytest.mark.parametrize("method", ["pan-crafter", "brovey"])
def test_a_budget_without_room_for_a_window_says_what_is_needed(tmp_path: Path, method: str) -> None:
    pan, ms = write_pair(tmp_path)
    result = sharpen(pan, ms, "--method", method, "--memory", "300MiB")
    refused(result, tmp_path, "memory of 300 MiB is too small", "MiB with the program; allow at least that")


@pytest.mark.parametrize(
    ("place", "name"),
    [(MsNetwork, "__call__"), (engine, "build_conditions"), (engine, "unexplained_pan")],
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_device_without_memory_for_one_band_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: RuntimeError
) -> None:
    """Taking the bands one by one is tried first where they went together (``test_engine``)."""

    def full(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(place, name, full)
    pan, ms = write_pair(tmp_path)
    refused(sharpen(pan, ms), tmp_path, "has no memory for a tile of", "one band group at a time", "--block-px")


@pytest.mark.parametrize("method", ["exp", "brovey"])
def test_a_disk_that_is_full_half_way_leaves_nothing(tmp_path: Path, method: str) -> None:
    """The operating system refuses to let any file grow beyond a third of what the scratch file takes."""
    pan, ms = write_pair(tmp_path, (700, 700))
    limit = 700 * 700 * 3 * 2 // 3
    command = [str(Path(sys.executable).with_name("pancrafter")), "sharpen", str(pan), str(ms),
               str(tmp_path / "out.tif"), "--method", method, "--threads", "1", "--block-px", "128"]  # fmt: skip
    done = subprocess.run(  # ourselves
        command, capture_output=True, text=True, check=False, timeout=500,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "out.tif: writing failed" in line
    assert "check free space" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ms.tif", "pan.tif"]


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    pan, ms = write_pair(tmp_path)
    (tmp_path / "out.tif").write_text("mine")
    result = sharpen(pan, ms, "--method", "exp")
    assert result.exit_code == 2
    assert "exists already; choose another name or give --overwrite" in result.stderr
    assert (tmp_path / "out.tif").read_text() == "mine"
