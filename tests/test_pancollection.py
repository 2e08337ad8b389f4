"""Files of PanCollection's layout, written here, are read as the benchmark means them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.io import savemat
from staged_scenes import landscape

from pancrafter import metrics
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.evaluate import Method, classical_method, evaluate_pair
from pancrafter.pairs import Pair, Unreadable
from pancrafter.pancollection import SENSORS, is_pancollection, read_patches, read_test_pairs, rebuild_ms, sensor_of

Array = NDArray[Any]


def truths(count: int, bands: int, side: int) -> Array:
    images = [[landscape((side, side), 7 * n + band) for band in range(bands)] for n in range(count)]
    return np.rint(np.array(images) / 4).astype(np.float64)


def observed(truth: Array, gains: tuple[float, ...]) -> Array:
    """MS of the benchmark, pixel by pixel: MTF kernel, borders repeat, every fourth pixel from (2, 2)."""

    def seen(band: Array, gain: float) -> Array:
        return ndimage.correlate(band, metrics.mtf_kernel(gain, 4), mode="nearest")[2::4, 2::4]

    return np.array([[seen(*each) for each in zip(image, gains, strict=True)] for image in truth])


def content(count: int = 3, bands: int = 4, side: int = 64, gains: tuple[float, ...] = (0.3,) * 4) -> dict[str, Array]:
    truth = truths(count, bands, side)
    ms = observed(truth, gains)
    lms = np.stack([metrics.poly_upsample(image, 4) for image in ms])
    return {"gt": truth, "ms": ms, "lms": lms, "pan": truth.mean(axis=1, keepdims=True)}


def write_h5(path: Path, arrays: dict[str, Array]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def test_constants_are_those_of_the_published_figures() -> None:
    """MTF gains at Nyquist in the order of the files' bands, as the DLPan toolbox has them, and the largest DN."""
    assert {name: (sensor.mtf_gains, sensor.dn_max) for name, sensor in SENSORS.items()} == {
        "wv3": ((0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315), 2047),
        "wv2": ((0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.27), 2047),
        "qb": ((0.34, 0.32, 0.30, 0.22), 2047),
        "gf2": ((0.30, 0.30, 0.30, 0.30), 1023),
    }
    assert SENSORS["wv2"].bands == SENSORS["wv3"].bands
    assert SENSORS["wv3"].bands == ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2")
    assert SENSORS["qb"].bands == SENSORS["gf2"].bands == ("blue", "green", "red", "nir")


def test_test_scenes_carry_the_benchmarks_phase_and_constants(tmp_path: Path) -> None:
    arrays = content(2, 8, 256, SENSORS["wv3"].mtf_gains)
    path = write_h5(tmp_path / "test_wv3_multiExm1.h5", arrays)
    first, second = read_test_pairs(path)
    assert isinstance(first, Pair)
    assert isinstance(second, Pair)
    assert second.name == "test_wv3_multiExm1[1]"
    assert (second.sensor, second.dn_max, second.ratio) == ("worldview-3", 2047, 4)
    assert second.phases_yx == ((2.0, 2.0),) * 8
    assert second.protocol == "benchmark"
    assert second.truth is not None
    np.testing.assert_allclose(second.truth, arrays["gt"][1])
    np.testing.assert_allclose(second.pan, arrays["pan"][1, 0], rtol=1e-6)


def test_full_resolution_scenes_get_the_published_index_and_no_other(tmp_path: Path) -> None:
    arrays = content(1, 4, 128)
    del arrays["gt"]
    (pair,) = read_test_pairs(write_h5(tmp_path / "test_gf2_OrigScale_multiExm1.h5", arrays))
    assert isinstance(pair, Pair)
    report = evaluate_pair(pair, [classical_method("exp")])
    assert report.reduced is None
    assert report.full is not None
    assert report.full["exp"].hqnr is not None


def test_phase_two_is_where_the_files_ms_lies(tmp_path: Path) -> None:
    """Cubic up-sampling explains the benchmark's truth best at phase 2, not at the edge-aligned 1.5."""
    from dataclasses import replace

    (pair,) = read_test_pairs(write_h5(tmp_path / "test_gf2_x.h5", content(1, 4, 256)))
    assert isinstance(pair, Pair)
    cubic, scores = Method("cubic", classical_method("exp").sharpen), {}
    for phase in (1.5, 2.0, 2.5):
        reduced = evaluate_pair(replace(pair, phases_yx=((phase, phase),) * 4), [cubic]).reduced
        assert reduced is not None
        scores[phase] = reduced["cubic"].ergas
    assert scores[2.0] < min(scores[1.5], scores[2.5])


@pytest.mark.parametrize("names", [("ms", "lms", "pan", "gt"), ("I_MS_LR", "I_MS", "I_PAN", "I_GT")])
def test_mat_files_hold_one_scene_with_bands_last(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = content(1, 4, 64)
    last = {new: np.moveaxis(arrays[old][0], 0, -1) for old, new in zip(("ms", "lms", "pan", "gt"), names, strict=True)}
    last[names[2]] = last[names[2]][..., 0]
    savemat(tmp_path / "Test(HxWxC)_qb_data3.mat", last)
    (pair,) = read_test_pairs(tmp_path)
    assert isinstance(pair, Pair)
    assert (pair.name, pair.sensor) == ("Test(HxWxC)_qb_data3", "quickbird")
    np.testing.assert_allclose(pair.ms, arrays["ms"][0], rtol=1e-6)
    np.testing.assert_allclose(pair.truth, arrays["gt"][0])


def test_rebuilt_ms_is_the_truth_seen_by_the_sensor() -> None:
    gains = SENSORS["qb"].mtf_gains
    truth = truths(2, 4, 64)
    np.testing.assert_allclose(rebuild_ms(truth.astype(np.float32), SENSORS["qb"]), observed(truth, gains), atol=1e-2)


def test_shifted_ms_of_quickbird_is_mended_and_counted(tmp_path: Path) -> None:
    arrays = content(6, 4, 64, SENSORS["qb"].mtf_gains)
    shifted = arrays | {"ms": arrays["ms"].copy()}
    shifted["ms"][:4] = np.roll(shifted["ms"][:4], 1, axis=3)
    patches = read_patches(write_h5(tmp_path / "train_qb.h5", shifted))
    assert patches.rebuilt == 4
    np.testing.assert_allclose(patches.ms, arrays["ms"], atol=1e-2)
    untouched = read_patches(write_h5(tmp_path / "train_gf2.h5", shifted))
    assert untouched.rebuilt == 0
    np.testing.assert_allclose(untouched.ms, shifted["ms"], rtol=1e-6)


def test_which_files_are_meant(tmp_path: Path) -> None:
    (tmp_path / "a.h5").touch()
    assert is_pancollection(tmp_path)
    assert is_pancollection(tmp_path / "a.h5")
    (tmp_path / "pair.npz").touch()
    assert not is_pancollection(tmp_path)
    assert sensor_of(Path("x.h5"), "gf2")[1].dn_max == 1023
    with pytest.raises(InvalidSceneError, match="sensor is None, expected one of wv3, wv2, qb, gf2"):
        sensor_of(Path("x.h5"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pan": None}, "pan missing"),
        ({"ms": np.zeros((3, 8, 16, 16))}, r"ms \(3, 8, 16, 16\); expected .* \(n, 4, y, x\)"),
        ({"ms": np.zeros((3, 4, 32, 32))}, "expected"),
        ({"gt": np.zeros((3, 4, 32, 32))}, r"gt is \(3, 4, 32, 32\), expected \(3, 4, 64, 64\)"),
        ({"ms": np.full((3, 4, 16, 16), np.nan)}, "ms holds values that are not finite"),
        ({"ms": np.full((3, 4, 16, 16), 2000.0)}, "above the ceiling 1023"),
        ({"pan": np.full((3, 1, 64, 64), 0.5)}, "pan lies between 0 and 1"),
        ({"gt": None}, "holds no gt"),
        ({name: values[:0] for name, values in content(1).items()}, r"holds no patches, pan is \(0, 64, 64\)"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, change: dict[str, Array | None], problem: str
) -> None:
    arrays = {name: values for name, values in (content() | change).items() if values is not None}
    with pytest.raises(InvalidSceneError, match=problem):
        read_patches(write_h5(tmp_path / "train_gf2.h5", arrays))


def test_torn_files_are_named_and_stop_nothing(tmp_path: Path) -> None:
    write_h5(tmp_path / "test_gf2_b.h5", content(1))
    good = (tmp_path / "test_gf2_b.h5").read_bytes()
    (tmp_path / "test_gf2_a.h5").write_bytes(good[: len(good) // 2])
    (tmp_path / "test_gf2_c.mat").write_bytes(b"MATLAB")
    torn, fine, mat = read_test_pairs(tmp_path)
    assert isinstance(torn, Unreadable)
    assert "test_gf2_a.h5: not a readable HDF5 file" in torn.reason
    assert isinstance(fine, Pair)
    assert isinstance(mat, Unreadable)


def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_h5(tmp_path / "train_gf2.h5", content(1))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(PancrafterError, match=r"pip install 'pancrafter\[benchmark\]'"):
        read_patches(path)
