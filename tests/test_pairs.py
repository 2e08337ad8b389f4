"""Pairs are read as they are meant, and what cannot be one is refused with the reason."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_archive import add_scene
from staged_scenes import landscape

from pancrafter.errors import ContractError, InvalidSceneError
from pancrafter.pairs import Pair, Unreadable, catalog_pairs, cropped, find_pair_files, is_catalog, read_pair
from pancrafter.resample import Mtf, degrade
from pancrafter.scratch import remove_folder, scratch_folder
from pancrafter.sensors import load_contracts

Array = NDArray[Any]
CONTRACTS = load_contracts()
META: dict[str, Any] = {"sensor": "WorldView-2", "bands": ["blue", "nir1"], "ratio": 4, "bit_depth": 11, "quality": "A"}


def write(folder: Path, meta: dict[str, Any] | None = None, **arrays: Array) -> Path:
    np.savez(folder / "pair.npz", **arrays)
    if meta is not None:
        (folder / "pair.json").write_text(json.dumps(meta))
    return folder / "pair.npz"


def arrays(ratio: int = 4, side: int = 48, shift: tuple[float, float] = (0.0, 0.0)) -> dict[str, Array]:
    surface = landscape((side * ratio, side * ratio), 3)
    phase = tuple((ratio - 1) / 2 + value for value in shift)
    ms = np.stack([degrade(surface * w, (side, side), ratio, (phase[0], phase[1]), 0.3) for w in (0.6, 0.9)])
    return {"pan": surface.astype(np.uint16), "ms": ms.astype(np.uint16)}


def test_description_gives_gains_ceiling_and_grade(tmp_path: Path) -> None:
    pair = read_pair(write(tmp_path, META, **arrays()), CONTRACTS)
    contract = CONTRACTS["worldview-2"]
    assert (pair.sensor, pair.ratio, pair.dn_max, pair.grade) == ("worldview-2", 4, 2047, "A")
    assert pair.nominal_gains == tuple(band.mtf for band in contract.subset(("blue", "nir1")))


def test_bands_of_an_unknown_sensor_keep_their_names(tmp_path: Path) -> None:
    pan = np.random.default_rng(0).integers(0, 200, (128, 128)).astype(np.uint16)
    np.savez(tmp_path / "p.npz", pan=pan, ms=np.stack([pan[::4, ::4], pan[1::4, 1::4]]))
    (tmp_path / "p.json").write_text(json.dumps({"sensor": "nobody knows", "bands": ["nir", "red"], "ratio": 4}))
    pair = read_pair(tmp_path / "p.npz", load_contracts())
    assert (pair.sensor, pair.bands, pair.mtfs) == ("generic", ("nir", "red"), (Mtf(0.3), Mtf(0.3)))
    (tmp_path / "p.json").write_text(json.dumps({"sensor": "nobody knows", "bands": ["red", "Red"], "ratio": 4}))
    with pytest.raises(ContractError, match="its own name"):
        read_pair(tmp_path / "p.npz", load_contracts())


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pair_without_description_is_generic_and_measured(tmp_path: Path, ratio: int) -> None:
    shift = (0.9, -0.6)
    pair = read_pair(write(tmp_path, **arrays(ratio, 64, shift)), CONTRACTS)
    assert (pair.sensor, pair.ratio, pair.dn_max) == ("generic", ratio, 65535)
    np.testing.assert_allclose(pair.band_shift_yx, [shift] * 2, atol=0.1)


def test_given_truth_and_pan_agree(tmp_path: Path) -> None:
    content = arrays()
    inputs = {"pan": np.roll(content["pan"], (1, -1), (0, 1)), "ms": content["ms"]}
    truth = np.stack([content["pan"], content["pan"] // 2])
    pair = read_pair(write(tmp_path, META, **inputs, gt=truth), CONTRACTS)
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(pair.pan[inner], content["pan"][inner], atol=15)
    assert pair.truth is not None
    without = read_pair(tmp_path / "pair.npz", CONTRACTS, with_truth=False)
    assert without.truth is None
    np.testing.assert_array_equal(without.pan, inputs["pan"])


def test_crop_keeps_pan_ms_and_truth_together() -> None:
    pan = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    pair = Pair("p", "generic", ("a",), pan, pan[None, ::4, ::4], 4, ((1.5, 1.5),), (0.3,), 0.15, 65535, pan[None])
    small = cropped(pair, 33)
    assert small.pan.shape == (32, 32)
    assert small.truth is not None
    np.testing.assert_array_equal(small.truth[0], small.pan)
    np.testing.assert_array_equal(small.ms[0], small.pan[::4, ::4])
    assert cropped(pair, 96) is pair


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"pan": np.zeros((64, 66), np.uint16)}, {}, r"pan is \(64, 66\) px and ms \(48, 48\).*expected pan = ratio x ms"),
    ({"ms": np.zeros((2, 192, 192), np.uint16)}, {}, "ratio 2, 3 or 4"),
    ({}, {"ratio": 2}, "the description says ratio 2"),
    ({"ms": np.zeros((3, 48, 48), np.uint16)}, {}, "ms has 3 bands, its description names 2"),
    ({"ms": np.zeros((2, 48, 48), np.float32)}, {}, "ms is float32, expected unsigned DN"),
    ({"ms": np.zeros((2, 48, 48), np.int16)}, {}, "ms is int16, expected unsigned DN"),
    ({"ms": np.zeros((48, 48), np.uint16)}, {}, "array ms is of 2 axes"),
    ({"pan": np.zeros((1, 192, 192), np.uint16)}, {}, "array pan is of 3 axes"),
    ({"pan": np.zeros((192, 192), np.uint16)}, {}, "pan holds nothing but DN 0"),
    (
        {"ms": np.stack([arrays()["ms"][0], np.full((48, 48), 255, np.uint16)])},
        {},
        r"ms\[1\] holds nothing but DN 255; .* leave out what is no image",
    ),
    ({"ms": np.full((2, 48, 48), 3000, np.uint16)}, {}, "DN up to 3000, 100.0% of them above the ceiling 2047"),
    ({}, {"bit_depth": "eleven"}, "pair.json: bit_depth: .*valid integer"),
    ({}, {"bands": 2}, "pair.json: bands: .*valid tuple"),
    ({}, {"bands": ["blue", "swir7"]}, "worldview-2 has no band 'swir7'"),
    ({"gt": np.zeros((2, 48, 48), np.uint16)}, {}, r"gt is \(2, 48, 48\), expected \(2, 192, 192\)"),
]


@pytest.mark.parametrize(("change", "meta", "problem"), BAD)
def test_contradictions_are_refused(
    tmp_path: Path, change: dict[str, Array], meta: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, META | meta, **{**arrays(), **change})
    with pytest.raises(InvalidSceneError, match=problem):
        read_pair(path, CONTRACTS)


def test_small_pairs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, pan=np.ones((32, 32), np.uint16), ms=np.ones((2, 8, 8), np.uint16))
    with pytest.raises(InvalidSceneError, match="at least 16 a side"):
        read_pair(path, CONTRACTS)


@pytest.mark.parametrize("kept", [0, 10, 3000])
def test_damaged_files_are_named(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, META, **arrays())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InvalidSceneError, match=r"pair\.npz: not readable"):
        read_pair(path, CONTRACTS)


@pytest.mark.parametrize(("text", "problem"), [("{", "not readable as JSON"), ("[1]", "found list")])
def test_damaged_descriptions_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, META, **arrays())
    path.with_suffix(".json").write_text(text)
    with pytest.raises(InvalidSceneError, match=problem):
        read_pair(path, CONTRACTS)


def test_what_a_path_means(tmp_path: Path) -> None:
    path = write(tmp_path, META, **arrays())
    assert find_pair_files(path) == find_pair_files(tmp_path, "pa*") == [path]
    assert not is_catalog(tmp_path)
    with pytest.raises(InvalidSceneError, match=r"no q\*\.npz or q\*_pan\.tif in it"):
        find_pair_files(tmp_path, "q*")
    with pytest.raises(InvalidSceneError, match="no such file or folder"):
        find_pair_files(tmp_path / "nowhere")


def test_scenes_of_a_catalog_are_staged_and_bad_ones_named(tmp_path: Path) -> None:
    add_scene(tmp_path, "good", side_px=192, seed=1, day=2)
    damaged = add_scene(tmp_path, "damaged", side_px=128, seed=2, day=3)
    damaged.ms.write_bytes(damaged.ms.read_bytes()[: damaged.ms.stat().st_size // 3])
    assert is_catalog(tmp_path)
    found = {pair.name.split("/")[-1]: pair for pair in catalog_pairs(tmp_path, CONTRACTS, block_px=192)}
    good, bad = found["good"], found["damaged"]
    assert isinstance(good, Pair)
    assert good.pan.shape == tuple(good.ratio * n for n in good.ms.shape[1:])
    assert isinstance(bad, Unreadable)
    assert "damaged" in bad.reason


def test_scratch_folder_goes_although_somebody_still_writes_into_it() -> None:
    """As threads of a failed staging do: the folder stays away once they have ended."""
    seen: list[Path] = []

    def write_on() -> None:
        for number in range(40):
            place = seen[0] / "store" / str(number)
            with suppress(OSError):  # the folder may go between the two lines
                place.mkdir(parents=True, exist_ok=True)
                (place / "chunk").write_text("x")
            time.sleep(0.005)

    with scratch_folder("pancrafter-test-") as folder:
        seen.append(folder)
        writer = threading.Thread(target=write_on)
        writer.start()
        time.sleep(0.02)
    writer.join()
    remove_folder(folder)
    assert not folder.exists()
