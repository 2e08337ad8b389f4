"""Pairs of GeoTIFFs are the same pairs as in npz, lie where their georeference says, and bad ones are named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from staged_scenes import landscape

from pancrafter.errors import InvalidSceneError
from pancrafter.pair_files import description_path, files_of, find_pairs, pair_name, read_pixels
from pancrafter.pairs import find_pair_files, read_checked, read_pair
from pancrafter.resample import degrade
from pancrafter.sensors import load_contracts

Array = NDArray[Any]
CONTRACTS = load_contracts()
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)


def write_tiff(path: Path, pixels: Array, transform: Affine | None = None, **options: Any) -> None:
    placed = {} if transform is None else {"crs": "EPSG:32633", "transform": transform}
    bands, height, width = pixels.shape
    form = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **(form | placed | options)) as file:
            file.write(pixels)


def write_pair(folder: Path, pan: Array, ms: Array, ratio: int = 4, **options: Any) -> Path:
    write_tiff(folder / "p_pan.tif", pan[None], PLACE, **options)
    write_tiff(folder / "p_ms.tif", ms, PLACE @ Affine.scale(ratio))
    return folder / "p_pan.tif"


def scene(phase: tuple[float, float] = (1.5, 1.5), ratio: int = 4, side: int = 64) -> tuple[Array, Array]:
    surface = landscape((side * ratio, side * ratio), 3)
    ms = np.stack([degrade(surface * weight, (side, side), ratio, phase, 0.3) for weight in (0.6, 0.9)])
    return surface.astype(np.uint16), ms.astype(np.uint16)


@pytest.mark.parametrize("placed", [True, False])
def test_geotiffs_are_the_pair_that_npz_is(tmp_path: Path, *, placed: bool) -> None:
    pan, ms = scene((2.4, 0.9))
    np.savez(tmp_path / "q.npz", pan=pan, ms=ms)
    write_tiff(tmp_path / "p_pan.tif", pan[None], PLACE if placed else None)
    write_tiff(tmp_path / "p_ms.tif", ms, PLACE @ Affine.scale(4) if placed else None)
    for name in ("p", "q"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"sensor": "WV02", "bands": ["blue", "red"], "ratio": 4}))
    tiffs, npz = find_pair_files(tmp_path)
    assert (tiffs, npz) == (tmp_path / "p_pan.tif", tmp_path / "q.npz")
    one, other = read_pair(tiffs, CONTRACTS), read_pair(npz, CONTRACTS)
    assert (one.name, other.name) == ("p", "q")
    np.testing.assert_array_equal(one.pan, other.pan)
    np.testing.assert_array_equal(one.ms, other.ms)
    for field in ("sensor", "bands", "ratio", "nominal_gains", "dn_max", "measured_mtf"):
        assert getattr(one, field) == getattr(other, field)
    np.testing.assert_allclose(one.phases_yx, other.phases_yx)
    assert files_of(tiffs) == [tmp_path / "p_pan.tif", tmp_path / "p_ms.tif", tmp_path / "p.json"]


def test_centre_aligned_grids_lie_as_they_say(tmp_path: Path) -> None:
    """As USGS delivers Landsat: PAN has 2N - 1 pixels, the first on the first of MS; read as corners it is half off."""
    pan, ms = scene((0.0, 0.0), ratio=2, side=80)
    write_tiff(tmp_path / "p_pan.tif", pan[None, :159, :159], PLACE)
    write_tiff(tmp_path / "p_ms.tif", ms, PLACE @ Affine.translation(-0.5, -0.5) @ Affine.scale(2))
    pair = read_checked(tmp_path / "p_pan.tif", CONTRACTS)
    assert pair.phase_yx == (0.0, 0.0)
    assert pair.pan.shape == (158, 158)
    np.testing.assert_array_equal(pair.pan, pan[:158, :158])
    np.testing.assert_array_equal(pair.ms, ms[:, :79, :79])
    np.testing.assert_allclose(read_pair(tmp_path / "p_pan.tif", CONTRACTS).phases_yx, [(0, 0)] * 2, atol=0.1)


@settings(max_examples=30)
@given(
    ratio=st.sampled_from([2, 3, 4]),
    pan_first=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    ms_first=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    data=st.data(),
)
def test_pixels_stay_where_they_are(
    tmp_path_factory: pytest.TempPathFactory, ratio: int, pan_first: Any, ms_first: Any, data: st.DataObject
) -> None:
    """Every PAN pixel holds its row or column on the ground: MS pixel i lies at PAN pixel ratio * i + phase."""
    folder = tmp_path_factory.mktemp("placed")
    sizes = [data.draw(st.integers(120, 200)) for _ in range(2)]
    ms_sizes = [data.draw(st.integers(40, 60)) for _ in range(2)]
    y, x = np.mgrid[: sizes[0], : sizes[1]]
    pan = (1000 * (y + pan_first[0] + 32) + x + pan_first[1] + 32).astype(np.uint32)
    rows, cols = (np.arange(n, dtype=np.uint8) for n in ms_sizes)
    ms = np.stack(np.meshgrid(rows, cols, indexing="ij"))
    write_tiff(folder / "p_pan.tif", pan[None], PLACE @ Affine.translation(pan_first[1], pan_first[0]))
    to_ms = Affine.translation(ms_first[1], ms_first[0]) @ Affine.scale(ratio)
    write_tiff(folder / "p_ms.tif", ms, PLACE @ to_ms)
    found = read_pixels(folder / "p_pan.tif", with_truth=False)
    first, cut = found.arrays["pan"][0, 0], found.arrays["ms"]
    assert found.arrays["pan"].shape == tuple(ratio * n for n in cut.shape[1:])
    assert found.phase_yx is not None
    for axis, start in enumerate((first // 1000 - 32.0, first % 1000 - 32.0)):
        ground = ms_first[axis] - 0.5 + ratio * (cut[axis, 0, 0] + 0.5)  # centre of the first MS pixel that is left
        assert start + found.phase_yx[axis] == pytest.approx(ground, abs=1e-5)
        assert abs(found.phase_yx[axis] - (ratio - 1) / 2) <= 0.5 + 1e-6
        shared = min(pan_first[axis] + sizes[axis], ms_first[axis] + ratio * ms_sizes[axis]) - max(
            pan_first[axis], ms_first[axis]
        )
        assert cut.shape[1 + axis] >= shared / ratio - 2.5


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("no ms", r"p_ms\.tif: not readable"),
        ("damaged", r"p_pan\.tif: not readable"),
        ("nodata", r"p_pan\.tif: 16 pixels are nodata; cut PAN and MS"),
        ("two bands", r"p_pan\.tif: array pan is of 3 axes"),
        ("elsewhere", r"p_pan\.tif: PAN covers .*expected an overlap"),
        ("other ratio", r"p_pan\.tif: pixels are 0\.5 wide, those of MS 4\.0; expected ratio 2, 3 or 4"),
        ("other size", r"p_pan\.tif: pan is \(250, 256\) px and ms \(64, 64\)"),
        ("signed", r"p_pan\.tif: ms is int16"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, fault: str, problem: str) -> None:
    pan, ms = scene()
    path = write_pair(tmp_path, pan, ms)
    if fault == "no ms":
        (tmp_path / "p_ms.tif").unlink()
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    elif fault == "nodata":
        pan[:4, :4] = 0
        write_pair(tmp_path, pan, ms, nodata=0)
    elif fault == "two bands":
        write_tiff(path, np.stack([pan, pan]), PLACE)
    elif fault == "other size":
        write_tiff(path, pan[None, :250], None)
    else:
        moved = {"elsewhere": Affine.translation(9000, 0), "other ratio": Affine.scale(2)}
        transform = PLACE @ moved.get(fault, Affine.identity()) @ Affine.scale(4)
        write_tiff(tmp_path / "p_ms.tif", ms.astype(np.int16) if fault == "signed" else ms, transform)
    with pytest.raises(InvalidSceneError, match=problem):
        read_pair(path, CONTRACTS)


def test_a_pair_is_named_by_its_pan(tmp_path: Path) -> None:
    path = write_pair(tmp_path, *scene())
    assert (pair_name(path), description_path(path)) == ("p", tmp_path / "p.json")
    assert find_pairs(tmp_path, "p") == find_pairs(tmp_path, "*") == [path]
    assert find_pairs(tmp_path, "q") == []
    with pytest.raises(InvalidSceneError, match=r"p_ms\.tif: expected a pair NAME_pan\.tif and NAME_ms\.tif"):
        read_pair(tmp_path / "p_ms.tif", CONTRACTS)
