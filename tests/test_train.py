"""Training data are what they claim, a resumed run is the unbroken run, and what cannot work is refused at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import random_network, randomise
from numpy.typing import NDArray
from scipy import ndimage
from staged_scenes import landscape
from test_pair_files import write_tiff

from pancrafter.alignment import estimate_band_shifts
from pancrafter.classical import InjectionConstants
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError, PancrafterError, SinkError, WeightsError
from pancrafter.evaluate import network_method
from pancrafter.metrics import ergas
from pancrafter.model.config import NetworkConfig
from pancrafter.model.devices import DeviceError
from pancrafter.model.names import file_sha256
from pancrafter.model.network import PanCrafter
from pancrafter.model.weights import load_checkpoint, save_checkpoint
from pancrafter.pairs import value_range
from pancrafter.pancollection import SENSORS, BenchmarkSensor, Patches, rebuild_ms
from pancrafter.resample import Mtf, degrade, upsample
from pancrafter.sharpness import combine, sharpness
from pancrafter.training import loop, validation
from pancrafter.training.config import Augmentation, TrainConfig, read_config
from pancrafter.training.images import (
    TrainingImage,
    data_hashes,
    load_images,
    load_pair,
    simulate_image,
    training_image,
)
from pancrafter.training.loop import Run, _steps, batch_loss, learning_rate, loaders_for, train
from pancrafter.training.record import MadeFrom, MetricsLog
from pancrafter.training.samples import (
    Sample,
    _Batches,
    acquire,
    batches,
    draw_batch,
    draw_patch,
    draw_sample,
    normalise,
)
from pancrafter.training.validation import patch_ergas, sharpen_arrays, validation_ergas
from pancrafter.types import ValueRange

Array = NDArray[Any]
TINY: dict[str, Any] = {"bands": 1, "width": 16, "depth": [1, 1, 1], "attention": "bottleneck"}
STILL = Augmentation(
    mtf_gain=(0.3, 0.3), known_shift_px=2.0, small_residual_px=0.0, large_residual_px=0.0, large_residual_share=0.0,
    noise=0.0, range_stretch=(1.0, 1.0), range_offset=0.0, pan_detail_gain=(1.0,),
)  # fmt: skip
"""Known shifts are the only thing that is random about the acquisition."""


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "network": TINY, "simulated_scenes": 0, "patch_px": 24, "batch": 4, "steps": 6, "warmup": 2,
        "learning_rate": 1e-3, "validate_every": 3, "precision": "float32", "ratios": {4: 1.0},
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def image(seed: int, side: int = 120, bands: int = 3) -> TrainingImage:
    truth = np.stack([landscape((side, side), seed + 10 * band) for band in range(bands)])
    return training_image(f"image-{seed}", truth.mean(0).astype(np.float32), truth.astype(np.float32))


def write_pair(folder: Path, name: str, seed: int, *, ratio: int = 4, side: int = 120) -> None:
    """A pair as ``add_npz_dir`` and training read it; MS really lies at the shift in its JSON."""
    surface = landscape((side * ratio, side * ratio), seed)
    phase = ((ratio - 1) / 2 + 1.3, (ratio - 1) / 2 - 0.6)
    ms = np.stack([degrade(surface * weight, (side, side), ratio, phase, 0.3) for weight in (0.6, 0.9)])
    np.savez(folder / f"{name}.npz", pan=surface.astype(np.uint16), ms=ms.astype(np.uint16))
    (folder / f"{name}.json").write_text(json.dumps({"ratio": ratio, "shift": {"shift_pan_px": [1.3, -0.6]}}))


def made_from(chosen: TrainConfig) -> MadeFrom:
    return MadeFrom(config=chosen, data_sha256={}, start_sha256=None, mean_with_sha256=None)


def on_pairs(folder: Path, **changes: Any) -> dict[str, Any]:
    """The first pair of a folder to train on, the last to validate on; and what is changed."""
    return {"pairs_dir": str(folder), "train_pairs": ["P_0"], "validation_pairs": ["P_2"]} | changes


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(**changes).model_dump(mode="json", exclude={"augmentation"})))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for index in range(3):
        write_pair(folder, f"P_{index}", index, ratio=2)
    return folder


# --- samples --------------------------------------------------------------------------------------------------------


def same(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("pan", "ms", "truth", "phases"))


def test_batches_follow_from_seed_and_step_alone() -> None:
    images, chosen = [image(0), image(1)], config(ratios={2: 0.5, 3: 0.2, 4: 0.3}, network={**TINY, "bands": 2})
    draw_batch(images, chosen, 99)
    np.random.default_rng(0).normal(size=7)
    for step in range(6):
        (ratio, first), (again, second) = draw_batch(images, chosen, step), draw_batch(images, chosen, step)
        assert ratio == again
        assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert len({draw_batch(images, chosen, step)[0] for step in range(40)}) == 3
    first, later = draw_batch(images, chosen, 0)[1], draw_batch(images, chosen, 1)[1]
    other = draw_batch(images, chosen.model_copy(update={"seed": 1}), 0)[1]
    assert not same(first[0], later[0])
    assert not same(first[0], other[0])
    assert not same(first[0], first[1])


@pytest.mark.parametrize(("ratio", "side"), [(2, 64), (3, 60), (4, 64)])
def test_sample_shapes_fit_the_network(ratio: int, side: int) -> None:
    whole = image(1, side=240)
    narrow = training_image("narrow", whole.pan[:, :112], whole.truth[..., :112])
    sample = draw_sample(narrow, ratio, config(patch_px=65), np.random.default_rng(0), bands=2)
    assert sample.pan.shape == (side, side)
    assert sample.truth.shape == (2, side, side)
    assert sample.ms.shape == (2, side // ratio, side // ratio)
    assert sample.phases.shape == (2, 2)
    assert {array.dtype for array in (sample.pan, sample.ms, sample.truth)} == {np.dtype(np.float32)}
    assert np.abs(sample.phases - (ratio - 1) / 2).max() <= 2.0


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_ms_lies_where_the_told_phase_says(ratio: int) -> None:
    """On a tilted plane, a symmetric blur changes nothing: each MS value is the plane at its own centre."""
    y, x = np.mgrid[:130, :130].astype(np.float32)
    plane = np.stack([3 * y + 7 * x, -5 * y + 2 * x])
    limits = ValueRange(low=0, high=1000)
    constants = InjectionConstants(weights=(1.0, 0.0), offset=0.0, gains=(1.0, 0.5), explained=1.0)
    tilted = TrainingImage("plane", plane[0], plane, limits, (limits,) * 2, constants)
    for seed in range(4):
        sample = draw_sample(
            tilted, ratio, config(augmentation=STILL, patch_px=48), np.random.default_rng(seed), bands=2
        )
        for ms, truth, phase in zip(sample.ms, sample.truth, sample.phases, strict=True):
            slope_y, slope_x = truth[1, 0] - truth[0, 0], truth[0, 1] - truth[0, 0]
            rows, cols = (ratio * np.arange(n) + p for n, p in zip(ms.shape, phase, strict=True))
            expected = truth[0, 0] + slope_y * rows[:, None] + slope_x * cols[None]
            tolerance = 0.01 * max(abs(slope_y), abs(slope_x))
            assert np.abs(ms - expected).max() < tolerance + 1e-5
        # PAN is band 0, so a plane holds no detail that its bands do not explain, away from the border
        assert np.abs(sample.injection[:, 12:-12, 12:-12]).max() < 0.02


def test_ms_is_the_truth_seen_by_a_sensor() -> None:
    """Away from the patch's border, where only the truth itself is known, MS equals ``degrade`` of it."""
    sample = draw_sample(image(3, 160), 4, config(augmentation=STILL, patch_px=96), np.random.default_rng(5), bands=1)
    phase = (float(sample.phases[0, 0]), float(sample.phases[0, 1]))
    expected = degrade(sample.truth[0].astype(np.float64), (24, 24), 4, phase, 0.3)
    inner = (slice(6, -6), slice(6, -6))
    assert np.abs(sample.ms[0] - expected)[inner].max() < 1e-4
    elsewhere = degrade(sample.truth[0].astype(np.float64), (24, 24), 4, (phase[0] + 0.2, phase[1]), 0.3)
    assert np.abs(sample.ms[0] - elsewhere)[inner].max() > 1e-2


def test_unknown_residual_moves_ms_but_not_what_the_network_is_told() -> None:
    moved = STILL.model_copy(update={"large_residual_share": 1.0, "large_residual_px": 3.0, "known_shift_px": 0.0})
    sample = draw_sample(
        image(3, 160, 1), 4, config(augmentation=moved, patch_px=112), np.random.default_rng(2), bands=1
    )
    assert np.array_equal(sample.phases, [[1.5, 1.5]])
    found = estimate_band_shifts(sample.truth[0], sample.ms, 4, (1.5, 1.5))[0]
    assert found.certain
    assert 0.3 < math.hypot(*found.shift_yx) < 3 * math.sqrt(2) + 0.2


def test_some_patches_are_cut_from_every_other_pixel() -> None:
    """Same sample of an image that was subsampled by hand: as sharp as it, over twice the ground."""
    full, still = image(3, 208), STILL.model_copy(update={"subsampled_share": 1.0})
    chosen = config(augmentation=still, patch_px=64)
    assert 2 * chosen.outer_px(4) - 1 == 207  # one pixel of choice each way
    found = [draw_sample(full, 4, chosen, np.random.default_rng(seed), bands=1) for seed in range(12)]
    inner = slice(chosen.margin_px(4), chosen.margin_px(4) + 64)
    expected = [band[y::2, x::2][inner, inner] for band in full.truth for y in range(2) for x in range(2)]
    turned = [np.rot90(e, k)[:: 1 if flip else -1] for e in expected for k in range(4) for flip in (True, False)]
    for sample in found:
        closest = max(np.corrcoef(sample.truth[0].ravel(), one.ravel())[0, 1] for one in turned)
        assert closest > 0.999999
    small = draw_sample(image(3, 206), 4, chosen, np.random.default_rng(0), bands=1)  # too small for every other pixel
    assert small.truth.shape == (1, 64, 64)


def test_pan_detail_and_noise_are_varied_on_pan_alone() -> None:
    vivid, plain = (
        draw_sample(
            image(3), 4, config(augmentation=STILL.model_copy(update={"pan_detail_gain": (gain,)}), patch_px=64),
            np.random.default_rng(1), bands=1,
        )
        for gain in (1.5, 1.0)
    )  # fmt: skip
    assert np.array_equal(vivid.truth, plain.truth)
    assert np.array_equal(vivid.ms, plain.ms)
    fine = [np.abs(np.diff(sample.pan, axis=0)).mean() for sample in (vivid, plain)]
    assert 1.1 < fine[0] / fine[1] < 1.5
    assert vivid.pan.mean() == pytest.approx(plain.pan.mean(), abs=0.01)


def turned(values: Array) -> list[Array]:
    """The eight ways to lay down an image (..., y, x)."""
    turns = [np.rot90(values, k, axes=(-2, -1)) for k in range(4)]
    return [*turns, *(turn[..., ::-1] for turn in turns)]


def test_samples_are_turned_every_way() -> None:
    """PAN and truth together, from an image that holds no other patch."""
    chosen = config(augmentation=STILL)
    whole, inner = image(3, chosen.outer_px(4), 1), slice(chosen.margin_px(4), chosen.margin_px(4) + 24)
    pan, truth = normalise(whole.pan, whole.pan_range), normalise(whole.truth[0], whole.truth_ranges[0])
    ways = list(zip(turned(pan[inner, inner]), turned(truth[inner, inner]), strict=True))
    seen = set()
    for seed in range(60):
        sample = draw_sample(whole, 4, chosen, np.random.default_rng(seed), bands=1)
        (way,) = (k for k, (p, t) in enumerate(ways) if np.allclose([sample.pan, sample.truth[0]], [p, t], atol=1e-5))
        seen.add(way)
    assert seen == set(range(8))


@pytest.mark.parametrize(("gain", "least", "most"), [(0.3, 0.4, 0.8), (3.0, 1.5, 2.7)])
def test_detail_is_varied_on_pan_truth_and_ms_together(gain: float, least: float, most: float) -> None:
    """A scene that is as smooth or as crisp throughout: MS still is its truth as the sensor samples it."""
    varied, plain = (
        draw_sample(
            image(3), 4, config(augmentation=STILL.model_copy(update={"detail_gain": (g, g)}), patch_px=64),
            np.random.default_rng(1), bands=1,
        )
        for g in (gain, 1.0)
    )  # fmt: skip
    for name in ("pan", "truth"):
        fine = [np.abs(np.diff(getattr(sample, name), axis=-1)).mean() for sample in (varied, plain)]
        assert least < fine[0] / fine[1] < most
    phase = varied.phases[0]
    taken = acquire(varied.truth[0], varied.ms.shape[1:], 4, phase, 0.3)
    inner = (slice(5, -5), slice(5, -5))
    assert varied.ms[0][inner] == pytest.approx(taken[inner], abs=1e-4)
    assert np.abs(varied.ms[0] - plain.ms[0])[inner].max() > 1e-3


def test_detail_gains_are_drawn_evenly_by_their_logarithm() -> None:
    """Of gains between 1/4 and 4 a quarter is above 2, as of the range of their logarithms."""
    spread = config(augmentation=STILL.model_copy(update={"detail_gain": (0.25, 4.0)}), patch_px=64)

    def finest(sample: Sample) -> float:  # what only a crisper image has more of
        rows = sample.truth[0]
        return float(np.abs(rows[1:-1] - 0.5 * (rows[:-2] + rows[2:])).mean())

    fixed = [
        config(augmentation=STILL.model_copy(update={"detail_gain": (g, g)}), patch_px=64)
        for g in (0.25, 0.5, 2.0, 4.0)
    ]
    one = image(3, 112, 1)
    lowest, low, high, highest = (finest(draw_sample(one, 4, c, np.random.default_rng(0), bands=1)) for c in fixed)
    found = np.array([finest(draw_sample(one, 4, spread, np.random.default_rng(k), bands=1)) for k in range(200)])
    assert lowest * 0.9 < found.min() < low
    assert high < found.max() < highest * 1.1
    assert 0.15 < (found > high).mean() < 0.35


def test_normalised_truth_and_ms_share_one_scale_and_pan_has_its_own() -> None:
    sample = draw_sample(image(4), 2, config(augmentation=STILL, patch_px=64), np.random.default_rng(1), bands=3)
    assert sample.ms.mean((1, 2)) == pytest.approx(sample.truth.mean((1, 2)), abs=0.1)
    whole = image(4)
    scaled = 2 * (whole.pan - whole.pan_range.low) / (whole.pan_range.high - whole.pan_range.low) - 1
    turns = [np.rot90(scaled, k)[:: 1 if f else -1] for k in range(4) for f in (0, 1)]
    assert any(
        np.array_equal(np.round(turn[y : y + 64, x : x + 64], 3), np.round(sample.pan, 3))
        for turn in turns
        for y in range(len(turn) - 63)
        for x in range(len(turn) - 63)
        if abs(turn[y, x] - sample.pan[0, 0]) < 1e-4
    )


# --- images ---------------------------------------------------------------------------------------------------------


def test_pair_is_reduced_to_where_its_ms_really_lies(pairs: Path) -> None:
    """PAN one scale down and the MS that becomes truth lie on each other, to 0.05 px of that scale."""
    reduced = load_pair(pairs / "P_0.npz")
    assert reduced.pan.shape == reduced.truth.shape[1:] == (112, 112)
    shifts = estimate_band_shifts(np.kron(reduced.pan, np.ones((2, 2))), reduced.truth, 2, (0.5, 0.5))
    for shift in shifts:
        assert shift.certain
        assert math.hypot(*shift.shift_yx) / 2 < 0.05


def test_real_pair_is_aligned(shared_data: Path) -> None:
    """Landsat 7: green and red are inside the PAN band, so their mix must lie on reduced PAN; it is not resampled."""
    path = shared_data / "pairs" / "L7_P093R086_33.npz"
    found = load_pair(path)
    with np.load(path) as arrays:
        assert np.array_equal(found.truth, arrays["ms"][:, 4:-4, 4:-4])
    detail = np.kron(found.pan, np.ones((2, 2)))
    shifts = [shift for shift in estimate_band_shifts(detail, found.truth, 2, (0.5, 0.5)) if shift.certain]
    assert shifts
    assert max(math.hypot(*shift.shift_yx) for shift in shifts) / 2 < 0.15


@pytest.mark.parametrize("name", ["L7_P093R086_33", "L8_gulfcoast_clouds", "GF2_rr_train0", "WV2_melbourne_park"])
def test_real_pairs_are_taken_as_their_files_say(shared_data: Path, name: str) -> None:
    """Bit by bit what arrays and stated shift give by themselves: checks change nothing."""
    path = shared_data / "pairs" / f"{name}.npz"
    said = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as arrays:
        pan, ms = arrays["pan"].astype(np.float32), arrays["ms"].astype(np.float32)
    ratio, (y, x) = said["ratio"], said["shift"]["shift_pan_px"]
    centre = ((ratio - 1) / 2 + y, (ratio - 1) / 2 + x)
    reduced = degrade(pan, ms.shape[1:], ratio, centre, combine([sharpness(pan, ms, ratio, (centre,))]) or 0.3)
    inner = slice(4, -4)
    expected = training_image(name, reduced[inner, inner].astype(np.float32), ms[:, inner, inner])
    found = load_pair(path)
    assert np.array_equal(found.pan, expected.pan)
    assert np.array_equal(found.truth, expected.truth)
    assert (found.name, found.pan_range, found.truth_ranges, found.injection) == (
        name, expected.pan_range, expected.truth_ranges, expected.injection
    )  # fmt: skip


@pytest.mark.parametrize("said", [{}, {"ratio": 2}, {"ratio": 2, "shift": {"hp_ncc": 0.9}}])
def test_a_shift_that_nobody_states_is_measured(pairs: Path, said: dict[str, Any]) -> None:
    """Also of a pair without a description, as ``evaluate`` takes it: within 0.1 PAN px of where MS lies."""
    stated, path = load_pair(pairs / "P_0.npz"), pairs / "P_0.json"
    path.write_text(json.dumps(said)) if said else path.unlink()
    chosen = config(pairs_dir=str(pairs), train_pairs=("P_0",))
    assert list(data_hashes(chosen, pairs)) == (["P_0.npz", "P_0.json"] if said else ["P_0.npz"])
    measured = load_pair(pairs / "P_0.npz")
    assert np.array_equal(measured.truth, stated.truth)
    moved = estimate_band_shifts(stated.pan, measured.pan[None], 1, (0.0, 0.0))[0]
    assert math.hypot(*moved.shift_yx) * 2 < 0.1


def test_geotiffs_are_trained_on_like_npz(tmp_path: Path, pairs: Path) -> None:
    """The same pixels in either form make the same weights."""
    tiffs = tmp_path / "tiffs"
    tiffs.mkdir()
    for index in range(3):
        with np.load(pairs / f"P_{index}.npz") as arrays:
            for part, pixels in (("pan", arrays["pan"][None]), ("ms", arrays["ms"])):
                write_tiff(tiffs / f"P_{index}_{part}.tif", pixels)
        shutil.copy(pairs / f"P_{index}.json", tiffs)
    given: dict[str, Any] = {"train_pairs": ["P_[01]"], "validation_pairs": ["P_2"], "steps": 2}
    weights = []
    for folder in (pairs, tiffs):
        train(write_config(tmp_path, **given, pairs_dir=str(folder)), tmp_path / f"run-{folder.name}")
        weights.append(torch.load(tmp_path / f"run-{folder.name}" / "state.pt", weights_only=True)["network"])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    record = json.loads((tmp_path / "run-tiffs" / "run.json").read_text())
    assert record["images"] == ["P_0", "P_1"]
    assert {"P_0_pan.tif", "P_0_ms.tif", "P_0.json"} <= record["data_sha256"].keys()


def _rewritten(path: Path, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **(arrays | change(arrays)))


def test_what_evaluate_refuses_is_not_trained_on(tmp_path: Path, pairs: Path) -> None:
    (pairs / "P_0.json").write_text(json.dumps({"bit_depth": 11}))
    load_pair(pairs / "P_0.npz")
    _rewritten(pairs / "P_0.npz", lambda a: {"pan": a["pan"] * 20})
    with pytest.raises(InvalidSceneError, match=r"P_0\.npz: pan holds DN .* above the ceiling 2047"):
        train(write_config(tmp_path, **on_pairs(pairs)), tmp_path / "run")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ('{"shift": {"shift_pan_px": [NaN, 0]}}', r"P_0\.json: shift\.shift_pan_px\.0: .*finite number"),
        ('{"shift": {"shift_pan_px": ["far", 0]}}', r"P_0\.json: shift\.shift_pan_px\.0: .*valid number"),
        ('{"shift": {"shift_pan_px": [1.0]}}', r"P_0\.json: shift\.shift_pan_px\.1: Field required"),
        ('{"shift": {"shift_pan_px": [0, -8.5]}}', r"P_0\.npz: .*shift_pan_px \[0\.0, -8\.5\], expected 8 PAN px"),
    ],
)
def test_shifts_that_cannot_be_true_are_refused(pairs: Path, said: str, problem: str) -> None:
    (pairs / "P_0.json").write_text(said)
    with pytest.raises(InvalidSceneError, match=problem):
        load_pair(pairs / "P_0.npz")


def test_validation_is_never_trained_on(pairs: Path) -> None:
    """Also where the patterns overlap; simulated validation scenes are other scenes."""
    chosen = config(
        pairs_dir=str(pairs), train_pairs=("P_*",), validation_pairs=("P_1",), simulated_scenes=1, simulated_px=96
    )
    trained, held = load_images(chosen, pairs)
    assert [i.name for i in trained] == ["P_0", "P_2", "simulated-0"]
    assert [i.name for i in held] == ["P_1", "simulated-validation-2025-0", "simulated-validation-2025-1"]
    for one in trained:
        for other in held:
            assert one.pan.shape != other.pan.shape or not np.array_equal(one.pan, other.pan)


def test_no_copy_of_what_is_trained_on_is_validated_on(tmp_path: Path, pairs: Path) -> None:
    """Neither in the same run nor where the weights that it starts from, or is averaged with, learned it."""
    given = on_pairs(pairs, steps=1)
    taught = {"P_9.npz": file_sha256(pairs / "P_2.npz"), "P_9.json": "ab"}
    before = tmp_path / "before.safetensors"
    save_checkpoint(
        before, random_network(5, attention="bottleneck"), {"images": ["P_9", "simulated-0"], "data_sha256": taught}
    )
    for field in ("start", "mean_with"):
        with pytest.raises(
            InvalidSceneError, match=r"^P_2\.npz: to validate on, and the weights of start or mean_with"
        ):
            train(write_config(tmp_path, **given, **{field: str(before)}), tmp_path / "run")
    shutil.copy(pairs / "P_0.npz", pairs / "P_2.npz")
    with pytest.raises(InvalidSceneError, match=r"^P_2\.npz: to validate on, and the same file is to train on"):
        train(write_config(tmp_path, **given), tmp_path / "run")
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_no_seed_trains_on_what_another_validates_on(tmp_path: Path) -> None:
    """Weights of one seed may be fine-tuned or averaged with the next one's; what a seed trains on stays as it was."""
    given: dict[str, Any] = {"simulated_scenes": 2, "simulated_px": 64, "ratios": {2: 1.0}, "patch_px": 12}
    sets = [load_images(config(**given, seed=seed), tmp_path) for seed in (7, 8)]
    held = [image for _, validation in sets for image in validation]
    assert len({image.name for image in held}) == len({image.pan.tobytes() for image in held}) == 4
    trained = [image.pan for training, _ in sets for image in training]
    assert not any(np.array_equal(image.pan, pan) for image in held for pan in trained)
    expected = [simulate_image("", (seed, k), 64).pan for seed in (7, 8) for k in range(2)]
    assert all(map(np.array_equal, trained, expected))


def test_ranges_are_percentiles_and_never_empty() -> None:
    values = np.arange(1001.0)
    assert (value_range(values).low, value_range(values).high) == (10, 990)
    flat = value_range(np.full(50, 7.0))
    assert (flat.low, flat.high) == (7, 8)


# --- learning -------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    chosen = config(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] < 1e-3


def _movement(folder: Path, chosen: TrainConfig) -> float:
    """How far one step of plain gradient descent moves the weights, all together."""
    torch.manual_seed(0)
    network = PanCrafter(chosen.network)
    before = torch.cat([value.detach().clone().flatten() for value in network.parameters()])
    run = Run(folder, network, torch.optim.SGD(network.parameters()), made_from(chosen))
    next(_steps(run, batches([image(0)], chosen, 0, loaders=0), chosen, "cpu"))
    return float((torch.cat([value.detach().flatten() for value in network.parameters()]) - before).norm())


def test_gradients_are_clipped_to_what_is_configured(tmp_path: Path) -> None:
    given: dict[str, Any] = {"warmup": 0, "learning_rate": 0.5, "pan_weight": 50.0}
    free = _movement(tmp_path, config(**given, clip_norm=None))
    assert free > 2 * 0.5
    assert _movement(tmp_path, config(**given)) == pytest.approx(0.5, rel=1e-3)
    assert _movement(tmp_path, config(**given, clip_norm=0.2)) == pytest.approx(0.5 * 0.2, rel=1e-3)
    assert _movement(tmp_path, config(**given, clip_norm=1e6)) == free


def test_every_step_is_taken_at_the_rate_of_its_number(tmp_path: Path) -> None:
    chosen = config(steps=5, batch=1, warmup=2)
    network = PanCrafter(chosen.network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=9.0)
    run = Run(tmp_path, network, optimiser, made_from(chosen), recent=[0.0] * 100)
    steps = _steps(run, batches([image(0)], chosen, 0, loaders=0), chosen, "cpu")
    taken = [optimiser.param_groups[0]["lr"] for _ in steps]
    assert taken == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 2.5e-4])
    assert len(run.recent) == 100


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    images = [image(seed) for seed in range(3)]
    chosen = config(steps=40, batch=6, learning_rate=4e-3, ratios={2: 0.5, 4: 0.5}, warmup=5)
    torch.manual_seed(0)
    network = PanCrafter(chosen.network)
    fixed = [draw_batch(images, chosen, 10_000 + k) for k in range(4)]

    def loss() -> float:
        with torch.no_grad():
            return float(np.mean([float(batch_loss(network, *batch, chosen, "cpu")) for batch in fixed]))

    before = loss()
    run = Run(tmp_path, network, torch.optim.AdamW(network.parameters()), made_from(chosen))
    for _ in _steps(run, batches(images, chosen, 0, loaders=0), chosen, "cpu"):
        pass
    assert run.step == 40
    assert loss() < 0.8 * before


def test_loss_is_the_sum_of_both_modes() -> None:
    """Mean |F - GT| plus lambda times mean |P' - P|, each over its own half of the same pairs."""
    images, losses = [image(0)], {}
    network = random_network(3)
    for weight in (0.0, 1.0, 3.0):
        chosen = config(pan_weight=weight, network={**TINY, "attention": "all"})
        losses[weight] = float(batch_loss(network, *draw_batch(images, chosen, 0), chosen, "cpu"))
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-5)
    assert losses[1.0] > losses[0.0]
    untrained = PanCrafter(NetworkConfig.model_validate({**TINY, "mars": False}))
    chosen = config(network={**TINY, "mars": False}, augmentation=STILL)
    _, samples = draw_batch(images, chosen, 0)
    cubic = [upsample(s.ms[0], s.pan.shape, 4, (s.phases[0, 0], s.phases[0, 1])) for s in samples]
    expected = np.mean([np.abs(c - s.truth[0]).mean() for c, s in zip(cubic, samples, strict=True)])
    assert float(batch_loss(untrained, 4, samples, chosen, "cpu").detach()) == pytest.approx(expected, rel=1e-4)
    # Untrained with MARs: the PAN half starts from low-pass PAN and aims at PAN.
    both = config(network=TINY, augmentation=STILL)
    centre = (1.5, 1.5)
    coarse = [degrade(s.pan, (6, 6), 4, centre, 0.3) for s in samples]
    low = [upsample(c, s.pan.shape, 4, centre) for c, s in zip(coarse, samples, strict=True)]
    missing = [np.abs(c - s.pan).mean() for c, s in zip(low, samples, strict=True)]
    found = batch_loss(PanCrafter(both.network), 4, samples, both, "cpu")
    assert float(found.detach()) == pytest.approx(expected + np.mean(missing), rel=1e-4)
    # Of a share of the batch it is that of the first samples.
    for share, count in ((0.5, len(samples) // 2), (0.01, 1)):
        some = both.model_copy(update={"pan_share": share})
        found = batch_loss(PanCrafter(both.network), 4, samples, some, "cpu")
        assert float(found.detach()) == pytest.approx(expected + np.mean(missing[:count]), rel=1e-4)
    # How far results follow MS is no image.
    weighing = both.model_copy(update={"network": NetworkConfig.model_validate({**TINY, "weighs_ms": 1})})
    found = batch_loss(PanCrafter(weighing.network), 4, samples, weighing, "cpu")
    assert float(found.detach()) == pytest.approx(expected + np.mean(missing), rel=1e-4)


def test_every_sample_sees_pan_as_blurred_as_it_is_told_its_ms_is() -> None:
    """Untrained in PAN mode a network returns its low-pass PAN, so the loss says how far that is from PAN."""
    network = {**TINY, "matched_lowpass": True}
    chosen = config(network=network, patch_px=48, augmentation=STILL.model_copy(update={"mtf_gain": (0.05, 0.8)}))
    _, samples = draw_batch([image(0)], chosen, 0)
    assert max(s.mtf.gain for s in samples) > 2 * min(s.mtf.gain for s in samples)
    untrained, losses = PanCrafter(chosen.network), []
    for weight in (0.0, 1.0):
        weighted = chosen.model_copy(update={"pan_weight": weight})
        losses.append(float(batch_loss(untrained, 4, samples, weighted, "cpu").detach()))
    missing = []
    for s in samples:
        low = upsample(degrade(s.pan, (12, 12), 4, (1.5, 1.5), s.mtf), s.pan.shape, 4, (1.5, 1.5))
        missing.append(np.abs(low - s.pan).mean())
    assert losses[1] - losses[0] == pytest.approx(np.mean(missing), rel=2e-3)


@pytest.mark.parametrize(("steeper_share", "off", "left"), [(0.0, 0.3, 0.9), (1.0, 0.1, 0.95)])
@pytest.mark.parametrize("share", [None, 1.0])
def test_loss_is_that_of_results_in_agreement_with_ms(
    share: float | None, steeper_share: float, off: float, left: float
) -> None:
    """Against the textbook's double sums: blur by the told MTF, sample, up-sample what is missing, add it.

    Where a network says that all counts of what a step leaves, that is nearly a second step.
    """
    chosen = config(
        network={**TINY, "mars": False, "weighs_ms": share is not None}, reprojection=True, patch_px=48,
        augmentation=STILL.model_copy(update={"told_mtf_error": off, "steeper_share": steeper_share}),
    )  # fmt: skip
    _, samples = draw_batch([image(0)], chosen, 0)
    assert len({s.mtf for s in samples}) == len(samples)  # each is told wrongly in its own way
    untrained, errors = PanCrafter(chosen.network), []
    if share is not None:
        untrained.head.bias.data[1:] = share  # type: ignore[union-attr]  # present
    for s in samples:
        ms, phase = s.ms[0].astype(np.float64), (s.phases[0, 0], s.phases[0, 1])
        result = upsample(ms, s.pan.shape, 4, phase)
        for _ in range(1 if share is None else 2):
            missing = ms - degrade(result, (ms.shape[0], ms.shape[1]), 4, phase, s.mtf)
            result = result + upsample(missing, s.pan.shape, 4, phase)
        errors.append(np.abs(result - s.truth[0])[12:-12, 12:-12].mean())
    found = float(batch_loss(untrained, 4, samples, chosen, "cpu").detach())
    assert found == pytest.approx(
        np.mean(errors), rel=2e-3
    )  # the engine's blur ends at three MS pixels, this one later
    bare = chosen.model_copy(update={"reprojection": False})
    assert found < left * float(batch_loss(untrained, 4, samples, bare, "cpu").detach())


def test_an_mtf_that_leaves_nothing_at_the_nyquist_frequency_is_no_special_case() -> None:
    """Its gain is less than single precision holds; the loss is as with one that is nearly the same."""
    chosen = config(network={**TINY, "mars": False}, reprojection=True, patch_px=48)
    _, samples = draw_batch([image(0)], chosen, 0)
    losses = []
    for shape in (6.5, 7.5):
        told = [replace(s, mtf=Mtf.of_half(0.5, shape)) for s in samples]
        losses.append(float(batch_loss(PanCrafter(chosen.network), 4, told, chosen, "cpu").detach()))
    assert Mtf.of_half(0.5, 7.5).gain < 1e-45
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_mtfs_of_samples_fall_more_steeply_as_often_as_asked_for() -> None:
    """Half response and shape within what is asked for; a share that is told wrongly strays little from them."""
    steep = STILL.model_copy(update={"steeper_share": 0.5, "steepest": 6.0, "steeper_half": (0.6, 0.9)})
    chosen = config(batch=200, patch_px=32, augmentation=steep)
    _, samples = draw_batch([image(0)], chosen, 0)
    steeper = [s.mtf for s in samples if s.mtf.shape > 2]
    assert len(steeper) == pytest.approx(100, abs=25)
    assert {s.mtf.gain for s in samples if s.mtf.shape == 2} == {0.3}
    for values, (low, high) in (([m.half for m in steeper], (0.6, 0.9)), ([m.shape for m in steeper], (2.0, 6.0))):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_samples_are_as_uncertain_as_they_are_told() -> None:
    """Shift, told MTF and noise stray by the share that the network is told of what the augmentation says."""
    still = STILL.model_copy(update={"told_mtf_error": 0.1, "small_residual_px": 0.5, "mtf_gain": (0.3, 0.3)})
    chosen = config(
        network={**TINY, "told_uncertainty": True}, reprojection=True, batch=400, patch_px=32, augmentation=still
    )
    _, samples = draw_batch([image(0)], chosen, 0)
    told = np.array([s.uncertainty for s in samples])
    errors = np.log([s.mtf.gain / 0.3 for s in samples])
    assert told.min() < 0.05
    assert told.max() > 0.95
    assert np.std(errors / told) == pytest.approx(0.1, rel=0.15)
    assert abs(np.corrcoef(np.abs(errors), told)[0, 1]) > 0.3
    noisy = chosen.model_copy(update={"augmentation": still.model_copy(update={"noise": 0.1})})
    noise = np.array([np.std(a.pan - b.pan) for a, b in zip(draw_batch([image(0)], noisy, 0)[1], samples, strict=True)])
    assert np.corrcoef(noise, told)[0, 1] > 0.5
    assert (noise / told).max() < 1.3 * (noise / told)[told > 0.9].max()
    _, untold = draw_batch([image(0)], chosen.model_copy(update={"network": NetworkConfig.model_validate(TINY)}), 0)
    assert {s.uncertainty for s in untold} == {1.0}
    network = random_network(1, attention="bottleneck", told_uncertainty=True)
    sure, unsure = ([replace(samples[0], uncertainty=share)] for share in (0.0, 1.0))
    found = [float(batch_loss(network, 4, told_so, chosen, "cpu")) for told_so in (sure, unsure)]
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_clouds_leave_less_of_the_range_and_errors_count_the_more() -> None:
    """The same ground, all channels compressed alike towards the dark end, in half of the samples."""
    chosen = config(batch=200, patch_px=32, augmentation=STILL)
    wide = chosen.model_copy(update={"augmentation": STILL.model_copy(update={"widest_range": 8.0})})
    _, samples = draw_batch([image(0)], wide, 0)
    stretches = np.array([s.weight for s in samples])
    assert np.mean(stretches == 1) == pytest.approx(0.5, abs=0.1)
    assert 6 < stretches.max() <= 8
    assert np.median(np.log(stretches[stretches > 1])) == pytest.approx(np.log(8) / 2, rel=0.25)
    given, limits = image(0).pan, image(0).pan_range
    for s in samples[:20]:
        pan_dn = limits.low + (s.pan.astype(np.float64) + 1) / 2 * s.weight * (limits.high - limits.low)
        assert np.isin(np.rint(pan_dn * 10), np.rint(given * 10)).mean() > 0.99
        assert max(np.ptp(s.ms), np.ptp(s.truth)) < 4 / s.weight
    untrained = PanCrafter(wide.network)
    alike = [replace(s, weight=1.0) for s in samples]
    each = [float(batch_loss(untrained, 4, [s], wide, "cpu").detach()) for s in alike[:8]]
    together = float(batch_loss(untrained, 4, samples[:8], wide, "cpu").detach())
    assert together == pytest.approx(np.mean(np.array(each) * stretches[:8]), rel=1e-4)


def test_validation_counts_results_in_agreement_with_ms() -> None:
    """A network that only up-samples gains from the step, and the cubic it is compared with stays what it is."""
    images, untrained = [image(0)], PanCrafter(NetworkConfig.model_validate(TINY))
    bare, stepped = (validation_ergas(untrained, images, "cpu", reprojection=step) for step in (False, True))
    assert stepped["ergas_cubic"] == bare["ergas_cubic"] == pytest.approx(bare["ergas"], rel=1e-4)
    assert stepped["ergas"] < 0.9 * bare["ergas"]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "training").glob("*.yaml")), ids=lambda p: p.stem)
def test_configurations_of_the_repository_are_valid(path: Path) -> None:
    found = read_config(path)
    assert PanCrafter(found.network).config == found.network
    assert found.validation_pairs or found.simulated_scenes or found.pancollection


def test_resumed_run_equals_the_unbroken_run(tmp_path: Path, pairs: Path) -> None:
    """Stopped after four of six steps and started anew, batches from other processes: the same weights bit by bit."""
    path = write_config(tmp_path, **on_pairs(pairs, train_pairs=["P_0", "P_1"]))
    best = train(path, tmp_path / "unbroken")
    whole = torch.load(tmp_path / "unbroken" / "state.pt", weights_only=True)

    chosen = read_config(path)
    images, _ = load_images(chosen, path.parent)
    torch.manual_seed(chosen.seed)
    network = PanCrafter(chosen.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), chosen.learning_rate, weight_decay=chosen.weight_decay)
    (tmp_path / "resumed").mkdir()
    stopped = Run(tmp_path / "resumed", network, optimiser, MadeFrom.of(chosen, tmp_path))
    for _ in islice(_steps(stopped, batches(images, chosen, 0, loaders=0), chosen, "cpu"), 4):
        pass
    stopped.save()
    torch.manual_seed(777)
    train(path, tmp_path / "resumed", loaders=2)
    resumed = torch.load(tmp_path / "resumed" / "state.pt", weights_only=True)
    assert whole["step"] == resumed["step"] == 6
    for key, value in whole["network"].items():
        assert torch.equal(value, resumed["network"][key]), key
    assert not list((tmp_path / "unbroken").glob("*.partial"))

    checkpoint = load_checkpoint(str(best))
    assert checkpoint.training["images"] == ["P_0", "P_1"]
    assert checkpoint.training["validation"] == ["P_2"]
    assert checkpoint.training["config"]["seed"] == 2025
    rows = [row.split(",") for row in (tmp_path / "unbroken" / "metrics.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["3", "6"]
    gone_on = (tmp_path / "resumed" / "metrics.csv").read_text().split(",")
    assert (gone_on[0], gone_on[2]) == (rows[1][0], rows[1][2])  # step and loss
    assert min(float(row[3]) for row in rows) == pytest.approx(checkpoint.training["ergas"], abs=1e-4)
    # A finished run is left as it is.
    train(path, tmp_path / "unbroken")
    assert torch.load(tmp_path / "unbroken" / "state.pt", weights_only=True)["step"] == 6
    best.unlink()
    with pytest.raises(PancrafterError, match=r"best\.safetensors is not there, and all 6 steps are done"):
        train(path, tmp_path / "unbroken")


def test_loaders_share_the_pixels_they_cut_from(pairs: Path) -> None:
    """What they draw is tested with the resumed run, here what each of them is sent and what all of them map."""
    images = [image(0), load_pair(pairs / "P_0.npz")]
    frame, sizes, file = _Batches(images, config())._written
    assert sum(sizes) == sum(i.pan.nbytes + i.truth.nbytes for i in images) == os.fstat(file.fileno()).st_size
    assert len(frame) < 10_000 < sum(sizes)


@pytest.mark.parametrize(
    ("device", "usable", "loaders"), [("cpu", 8, 0), ("cuda", 1, 1), ("cuda", 3, 2), ("cuda", 64, 4)]
)
def test_a_gpu_gets_a_few_of_the_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, device: str, usable: int, loaders: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert loaders_for(device) == loaders


def test_a_step_whose_state_was_not_kept_is_not_in_the_table(tmp_path: Path, pairs: Path) -> None:
    path = write_config(tmp_path, **on_pairs(pairs))
    run = tmp_path / "run"
    (run / "state.partial").mkdir(parents=True)
    with pytest.raises(SinkError, match=r"run: cannot be written \(.*Is a directory.* nothing was saved yet;"):
        train(path, run)
    (run / "state.partial").rmdir()
    train(path, run)
    assert [row.split(",")[0] for row in (run / "metrics.csv").read_text().splitlines()] == ["3", "6"]


@pytest.mark.parametrize("name", ["run.json", "metrics.csv", "best.partial", "state.partial"])
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(tmp_path: Path, pairs: Path, name: str) -> None:
    chosen = on_pairs(pairs, steps=1)
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"run: cannot be written \(.*No space left on device.*; make room"):
        train(write_config(tmp_path, **chosen), run)
    (run / name).unlink()
    assert train(write_config(tmp_path, **{**chosen, "steps": 2}), run).is_file()


def test_the_best_step_is_kept_and_not_the_last(tmp_path: Path, pairs: Path) -> None:
    """Where its file is gone, the best of the steps from there on."""
    chosen, run = on_pairs(pairs, validate_every=1), tmp_path / "run"
    train(write_config(tmp_path, steps=1, **chosen), run)
    best = train(write_config(tmp_path, steps=2, learning_rate=0.1, **chosen), run)
    assert load_checkpoint(str(best)).training["step"] == 1
    best.unlink()
    path = write_config(tmp_path, steps=3, learning_rate=1e-9, **chosen)
    train(path, run)
    assert load_checkpoint(str(best)).training["step"] == 3
    assert dict(scalars(run, "learning_rate"))[3] == pytest.approx(learning_rate(2, read_config(path)))


@pytest.mark.parametrize(("every", "said"), [(40, "(loss|gradient norm)"), (1, "validation ERGAS")])
def test_what_is_infinite_stops_and_keeps_the_last_good_state(
    tmp_path: Path, pairs: Path, every: int, said: str
) -> None:
    chosen = on_pairs(pairs, validate_every=every)
    train(write_config(tmp_path, steps=2, **chosen), tmp_path / "run")
    good = {name: (tmp_path / "run" / name).read_bytes() for name in ("state.pt", "best.safetensors")}
    path = write_config(tmp_path, steps=40, learning_rate=1e30, **chosen)
    with pytest.raises(
        PancrafterError, match=rf"^{said} is (nan|inf) at step \d+; .* \(of step 2\); lower learning_rate"
    ):
        train(path, tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in good} == good
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_a_device_without_memory_for_a_step_says_what_is_kept(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, *, named: bool
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise error

    chosen = on_pairs(pairs, validate_every=2)
    train(write_config(tmp_path, steps=2, **chosen), tmp_path / "run")
    monkeypatch.setattr(loop, "batch_loss", full)
    with pytest.raises(
        DeviceError if named else RuntimeError,
        match=r"cpu has no memory for step 3 \(CUDA .* \(of step 2\), to go on .* lower batch or patch_px"
        if named
        else "^CUDA error: an illegal",
    ):
        train(write_config(tmp_path, steps=4, **chosen), tmp_path / "run")


def test_fine_tuning_starts_from_the_given_weights(tmp_path: Path, pairs: Path) -> None:
    """A step of next to no length leaves the weights it started from; other architectures are refused."""
    start = tmp_path / "start.safetensors"
    taught = {"images": ["P_9", "P_0"], "data_sha256": {"P_9.npz": "ab", "P_0.npz": "cd"}}
    save_checkpoint(start, random_network(5, attention="bottleneck"), taught)
    given = on_pairs(pairs)
    given |= {"start": str(start), "steps": 1, "learning_rate": 1e-12}
    train(write_config(tmp_path, **given), tmp_path / "run")
    tuned = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["network"]
    for key, value in load_checkpoint(str(start)).network.state_dict().items():
        assert (tuned[key] - value).abs().max() < 1e-6, key
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["images"] == ["P_0", "P_9"]  # what the weights were taught before counts as well
    assert record["config"]["start"] == "start"
    assert str(tmp_path) not in json.dumps(load_checkpoint(str(tmp_path / "run" / "best.safetensors")).training)
    assert record["data_sha256"]["P_9.npz"] == "ab"
    assert record["data_sha256"]["P_0.npz"] == hashlib.sha256((pairs / "P_0.npz").read_bytes()).hexdigest()
    wider = {**TINY, "injected_detail": True}
    train(write_config(tmp_path, **given, network=wider), tmp_path / "wider")
    widened = torch.load(tmp_path / "wider" / "state.pt", weights_only=True)["network"]["stem.weight"]
    assert (widened[:, :4] - tuned["stem.weight"]).abs().max() < 1e-6
    assert widened.shape[1] == 5
    assert widened[:, 4].abs().max() < 1e-6
    matched = {**wider, "matched_lowpass": True}
    train(write_config(tmp_path, **given, network=matched), tmp_path / "matched")
    assert load_checkpoint(str(tmp_path / "matched" / "best.safetensors")).network.config.matched_lowpass
    weighing = {**TINY, "told_uncertainty": True, "weighs_ms": 1}
    train(write_config(tmp_path, **given, network=weighing), tmp_path / "weighing")
    weights = torch.load(tmp_path / "weighing" / "state.pt", weights_only=True)["network"]
    head = weights["head.weight"]
    assert head.shape[0] == 2
    assert weights["stem.weight"][:, -1].abs().max() < 1e-6
    assert (head[:1] - tuned["head.weight"]).abs().max() < 1e-6
    assert head[1:].abs().max() < 1e-6
    again = {**given, "start": str(tmp_path / "weighing" / "best.safetensors")}
    train(write_config(tmp_path, **again, network={**weighing, "weighs_ms": 2}), tmp_path / "twice")
    twice = torch.load(tmp_path / "twice" / "state.pt", weights_only=True)["network"]["head.weight"]
    assert (twice[:2] - head).abs().max() < 1e-6
    assert twice.shape[0] == 3
    assert twice[2:].abs().max() < 1e-6
    for wrong in (
        {**given, "network": {**TINY, "width": 32}},
        {**again, "network": {**weighing, "weighs_ms": 0}},
        {**again, "network": {**weighing, "injected_detail": True}},
    ):
        expected = rf"{Path(wrong['start']).name} are of .*give the same network in the configuration"
        with pytest.raises(WeightsError, match=expected):
            train(write_config(tmp_path, **wrong), tmp_path / "other")


def test_the_mean_with_other_weights_is_what_is_validated_and_kept(tmp_path: Path, pairs: Path) -> None:
    """Training itself goes on from its own weights; those of another network are refused before it begins."""
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, random_network(5, attention="bottleneck"), {})
    given = on_pairs(pairs, steps=3, patch_px=32, reprojection=True)
    best = train(write_config(tmp_path, **given, mean_with=str(other)), tmp_path / "run")
    alone = train(write_config(tmp_path, **given), tmp_path / "alone")
    trained = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["network"]
    with_other, untouched = load_checkpoint(str(other)).network.state_dict(), load_checkpoint(str(alone)).network
    kept = load_checkpoint(str(best))
    for name, value in kept.network.state_dict().items():
        assert torch.equal(trained[name], untouched.state_dict()[name]), name
        torch.testing.assert_close(value, (trained[name] + with_other[name]) / 2)
    assert kept.training["mean_with_sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()
    _, validation = load_images(config(**given), tmp_path)
    scores = validation_ergas(kept.network, validation, "cpu", reprojection=True)
    assert kept.training["ergas"] == pytest.approx(scores["ergas"], rel=1e-5)
    assert kept.training["ergas"] != load_checkpoint(str(alone)).training["ergas"]
    with pytest.raises(WeightsError, match=r"other\.safetensors are of .*mean_with takes those of the same network"):
        train(write_config(tmp_path, **given, mean_with=str(other), network={**TINY, "width": 32}), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize("shape", [(80, 130), (130, 80), (100, 100), (300, 280)])
def test_validation_score_is_wald_of_the_whole_image(shape: tuple[int, int]) -> None:
    """An untrained network is the cubic baseline, whatever the image's shape; the baseline is computed anew here."""
    truth = np.stack([landscape(shape, seed) for seed in (1, 2)]).astype(np.float32)
    wide = training_image("wide", truth.mean(0), truth)
    scores = validation_ergas(PanCrafter(NetworkConfig.model_validate(TINY)).eval(), [wide] * 2, "cpu")
    assert scores["ergas"] == pytest.approx(scores["ergas_cubic"], rel=1e-3)
    side = [min(n, 256) // 4 * 4 for n in shape]
    crop = truth[:, : side[0], : side[1]].astype(np.float64)
    core, expected = (slice(None), slice(16, -16), slice(16, -16)), []
    for ratio, gain in product((4, 2), (0.28, 0.1)):
        small, nominal = (side[0] // ratio, side[1] // ratio), (ratio - 1) / 2
        told, true = (nominal + 0.7, nominal - 0.4), (nominal + 0.9, nominal - 0.25)
        cubic = np.stack([upsample(degrade(b, small, ratio, true, gain), b.shape, ratio, told) for b in crop])
        expected.append(ergas(crop[core], cubic[core], ratio))
    assert scores["ergas_cubic"] == pytest.approx(np.mean(expected), rel=1e-3)


def test_sharpening_arrays_takes_bands_in_groups() -> None:
    whole = image(2, 64, 4)
    ms = np.stack([degrade(band, (16, 16), 4, (1.5, 1.5), 0.3) for band in whole.truth]).astype(np.float32)
    network = random_network(2, bands=2)
    phase = np.array([1.5, 1.5])
    later = replace(whole, truth_ranges=whole.truth_ranges[2:])
    with torch.no_grad():
        both = sharpen_arrays(network, whole.pan, ms, 4, phase, whole, "cpu")
        last = sharpen_arrays(network, whole.pan, ms[2:], 4, phase, later, "cpu")
    assert both.shape == (4, 64, 64)
    assert np.abs(both[2:] - last).max() < 1e-2


def test_arrays_are_sharpened_by_the_mtf_of_their_bands() -> None:
    whole, phase = image(2, 64, 1), np.array([1.5, 1.5])
    ms = degrade(whole.truth[0], (16, 16), 4, (1.5, 1.5), 0.3).astype(np.float32)
    with torch.no_grad():
        for matched in (False, True):
            network = random_network(1, matched_lowpass=matched)
            found = [sharpen_arrays(network, whole.pan, ms[None], 4, phase, whole, "cpu", gain) for gain in (0.1, 0.5)]
            assert np.array_equal(*found) != matched
        cubic, plain = upsample(ms, (64, 64), 4, (1.5, 1.5)), PanCrafter(NetworkConfig.model_validate(TINY))
        for gain in (0.1, 0.5):
            put_back = upsample(ms - degrade(cubic, (16, 16), 4, (1.5, 1.5), gain), (64, 64), 4, (1.5, 1.5))
            (stepped,) = sharpen_arrays(plain, whole.pan, ms[None], 4, phase, whole, "cpu", gain, reprojection=True)
            step = (stepped - cubic)[16:-16, 16:-16]
            assert np.abs(step - put_back[16:-16, 16:-16]).max() < 0.05 * np.abs(step).max()


# --- configuration --------------------------------------------------------------------------------------------------


def test_weights_lie_where_the_configuration_does(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for field in ("start", "mean_with"):
        for given in ("../tuned.safetensors", str(tmp_path / "tuned.safetensors")):
            found = getattr(read_config(write_config(tmp_path / "elsewhere", **{field: given})), field)
            assert Path(found).resolve() == tmp_path / "tuned.safetensors"
    assert read_config(write_config(tmp_path, start="open-compact")).start == "open-compact"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("network: {width: 8}", "network.width"),
        ("network: {width: 40}", "network: .*width 40: heads of attention have 16 channels each"),
        ("network: {}\nstep: 5", "step"),
        ("network: {}\nsteps: 5\nsteps: 6", "'steps' is given twice"),
        ("network: {}\nbatch: 0", "batch"),
        ("network: {}\nratios: {5: 1.0}", "expected one or more of 2, 3, 4"),
        ("network: {}\nratios: {1: 1.0}", "expected one or more of 2, 3, 4"),
        ("network: {}\nratios: {2: 1.0, 4: 0}", "expected one or more of 2, 3, 4 with positive shares"),
        ("network: {}\nratios: {}", "expected one or more of 2, 3, 4"),
        ("network: {}\nprecision: float16", "precision"),
        ("network: {}\naugmentation: {detail_gain: [4, 0.2]}", "expected the least first"),
        ("network: {}\naugmentation: {detail_gain: [0, 2]}", "detail_gain"),
        ("network: {", "while parsing"),
        ("network: {}\nreprojection: true\npatch_px: 16", "patch_px is 16, expected 32 or more"),
        ("", "should be a valid dictionary"),
    ],
)
def test_configuration_errors_name_file_and_field(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(PancrafterError, match=rf"(?s)training configuration .*config\.yaml: .*{problem}") as error:
        read_config(path)
    assert "pydantic" not in str(error.value), "the library's words, and the address of its manual"
    assert ": : " not in str(error.value), "a fault of the whole is none of a field without a name"
    with pytest.raises(PancrafterError, match="training configuration"):
        read_config(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train_pairs": ["P_0", "X_*"]}, r"train_pairs: no pair in .* matches X_\*; correct it or pairs_dir"),
        ({"validation_pairs": ["goood"]}, r"validation_pairs: no pair in .* matches goood; correct it or pairs_dir"),
        ({"train_pairs": ["P_2"], "validation_pairs": ["P_*"]}, r"train_pairs \['P_2'\] leaves none in .* to train on"),
        ({"validation_pairs": []}, "no image for validation_pairs; set pairs_dir and validation_pairs"),
        ({"pairs_dir": None}, "no image for train_pairs"),
        ({"patch_px": 96}, r"training image P_0 has 2 bands of 112 x 112 px, needs 1 bands and 144 px a side"),
        ({"patch_px": 68, "ratios": {2: 0.5, 4: 0.5}}, "training image P_0 .*, needs 1 bands and 116 px a side"),
        ({"network": {**TINY, "bands": 3}}, "training image P_0 has 2 bands .*, needs 3 bands"),
    ],
)
def test_data_that_cannot_work_are_refused_before_the_first_step(
    tmp_path: Path, pairs: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PancrafterError, match=problem):
        train(write_config(tmp_path, **on_pairs(pairs, **changes)), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_narrow_image_is_refused_before_the_first_step(tmp_path: Path, pairs: Path) -> None:
    _rewritten(pairs / "P_0.npz", lambda a: {"pan": a["pan"][:, :140], "ms": a["ms"][..., :70]})
    with pytest.raises(InvalidSceneError, match="image P_0 has 2 bands of 112 x 62 px, needs 1 bands and 72 px"):
        train(write_config(tmp_path, **on_pairs(pairs)), tmp_path / "run")


def test_validation_without_a_score_is_refused_before_the_first_step(tmp_path: Path, pairs: Path) -> None:
    def without_corner(arrays: dict[str, Array]) -> dict[str, Array]:
        arrays["ms"][1, :104, :104] = 0
        return arrays

    _rewritten(pairs / "P_2.npz", without_corner)
    path = write_config(tmp_path, **on_pairs(pairs))
    with pytest.raises(InvalidSceneError, match=r"validation image P_2: nothing but DN 0 .* in bands \[1\]"):
        train(path, tmp_path / "run")


@pytest.mark.parametrize("state", ["other network", "cut", "cut to nothing", "garbled", "a list", "empty"])
def test_folder_of_another_run_is_not_continued(tmp_path: Path, pairs: Path, state: str) -> None:
    (tmp_path / "run").mkdir()
    other = config(network={**TINY, "width": 32})
    network = randomise(PanCrafter(other.network), 0)
    Run(tmp_path / "run", network, torch.optim.AdamW(network.parameters()), made_from(other)).save()
    saved = tmp_path / "run" / "state.pt"
    whole = saved.read_bytes()
    damaged = {
        "cut": whole[:200],
        "cut to nothing": b"",
        "garbled": whole.replace(b"network", b"\xff" * 7, 1),
    }
    if state in damaged:
        saved.write_bytes(damaged[state])
    elif state != "other network":
        torch.save([1, 2] if state == "a list" else {}, saved)
    before = saved.read_bytes()
    path = write_config(tmp_path, **on_pairs(pairs))
    said = r"is damaged \(.+\)" if state in damaged else "cannot be continued with this configuration: .+"
    with pytest.raises(PancrafterError, match=rf"(?s)state\.pt {said}; .*use another folder, or delete"):
        train(path, tmp_path / "run")
    assert saved.read_bytes() == before
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_state_that_cannot_be_read_is_not_begun_over(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "run" / "state.pt").mkdir(parents=True)
    path = write_config(tmp_path, **on_pairs(pairs))
    with pytest.raises(PancrafterError, match=r"state\.pt cannot be read \(.*Is a directory"):
        train(path, tmp_path / "run")


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_goes_on_only_with_what_it_is_made_from(tmp_path: Path, pairs: Path) -> None:
    """What the weights never saw does not get into their record; more steps and another learning rate do."""
    given = on_pairs(pairs, steps=2)
    train(write_config(tmp_path, **given), tmp_path / "run")
    kept, pair = _content(tmp_path / "run"), (pairs / "P_0.npz").read_bytes()

    def refuses(problem: str, **changes: Any) -> None:
        with pytest.raises(
            PancrafterError, match=rf"cannot be continued .*{problem}.*only steps and learning_rate may"
        ):
            train(write_config(tmp_path, **(given | changes)), tmp_path / "run")
        assert _content(tmp_path / "run") == kept

    refuses("seed was 2025, is 7", seed=7)
    refuses("seed was 2025, is 7", seed=7, steps=4)
    refuses("network.attention was bottleneck, is none", network={**TINY, "attention": "none"})
    refuses(r"train_pairs was \['P_0'\], is \['P_1'\]; data_sha256.P_0.npz was \w+, is None", train_pairs=["P_1"])
    refuses(r"data_sha256.P_1.npz was None, is \w+", train_pairs=["P_0", "P_1"])
    elsewhere = [made_from(config(start=start, mean_with=other)) for start, other in (("a", "b"), ("c", "d"))]
    assert not elsewhere[0].differences(elsewhere[1])
    _rewritten(pairs / "P_0.npz", lambda a: {"ms": a["ms"] // 2})
    refuses(r"data_sha256.P_0.npz was \w+, is \w+;")
    (pairs / "P_0.npz").write_bytes(pair)

    train(write_config(tmp_path, **given | {"learning_rate": 1e-5}), tmp_path / "run")
    assert _content(tmp_path / "run") == kept  # nothing was left to do
    moved = pairs.rename(tmp_path / "moved")
    changed = {"steps": 4, "learning_rate": 1e-5, "pairs_dir": str(moved)}
    train(write_config(tmp_path, **given | changed), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["learning_rate"] == 1e-5
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4


def test_states_that_do_not_say_what_they_are_made_from_go_on(
    tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs that an earlier version began end as they would have, and the log says what is not checked."""
    given = on_pairs(pairs)
    for folder in ("old", "new"):
        train(write_config(tmp_path, **given, steps=2), tmp_path / folder)
    path = tmp_path / "old" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("made_from")["config"]["seed"] == 2025
    torch.save(state, path)
    assert not caplog.messages
    for folder in ("old", "new"):
        train(write_config(tmp_path, **given, steps=4), tmp_path / folder)
    assert caplog.messages == [f"{path} was written before runs kept what they are made from: going on unchecked"]
    old, new = (torch.load(tmp_path / folder / "state.pt", weights_only=True) for folder in ("old", "new"))
    assert old["made_from"] == new["made_from"]
    for key, value in old["network"].items():
        assert torch.equal(value, new["network"][key]), key


# --- the benchmark, what is logged, and where weights come from -----------------------------------------------------


def patches_of(count: int = 5, bands: int = 2, side: int = 64) -> Patches:
    truth = np.array([[landscape((side, side), 9 * n + b) for b in range(bands)] for n in range(count)], np.float32) / 4
    sensor = BenchmarkSensor("gaofen-2", 1023, (0.3,) * bands, tuple("ab"[:bands]))
    return Patches("train_gf2.h5", sensor, truth.mean(1), rebuild_ms(truth, sensor), truth, 0)


def test_turned_patches_of_the_benchmark_keep_their_phase() -> None:
    """Whichever way a patch is turned, cubic up-sampling at the told phase explains its truth, and at another less."""
    patches = patches_of()
    chosen = config(network=TINY | {"bands": 2}, augmentation=STILL)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        sample = draw_patch(patches, chosen, rng)
        (y, x), shape = sample.phases[0], sample.pan.shape
        seen.add((y, x))
        errors = {
            (dy, dx): np.abs(upsample(sample.ms[0], shape, 4, (y + dy, x + dx)) - sample.truth[0])[8:-8, 8:-8].mean()
            for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        }
        assert min(errors, key=lambda d: errors[d]) == (0, 0)
    assert seen == {(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (2.0, 2.0)}


def test_patches_of_the_benchmark_are_turned_every_way_and_pan_alone_is_varied() -> None:
    """PAN's detail is what a Gaussian of one pixel and seven taps leaves of it."""
    patches, ceiling = patches_of(1), ValueRange(low=0, high=1023)
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    smooth = patches.pan[0].astype(np.float64)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, taps / taps.sum(), axis=axis, mode="nearest")
    pan = smooth + 1.5 * (patches.pan[0] - smooth)
    parts = {"pan": pan, "ms": patches.ms[0], "truth": patches.truth[0]}
    ways = {name: turned(normalise(values, ceiling)) for name, values in parts.items()}
    vivid = config(network=TINY | {"bands": 2}, augmentation=STILL.model_copy(update={"pan_detail_gain": (1.5,)}))
    seen = set()
    for seed in range(60):
        sample = draw_patch(patches, vivid, np.random.default_rng(seed))
        (way,) = (k for k in range(8) if all(np.allclose(getattr(sample, n), ways[n][k], atol=1e-5) for n in ways))
        seen.add(way)
    assert seen == set(range(8))


def test_unknown_shift_of_the_benchmark_is_within_what_is_configured() -> None:
    jitter = STILL.model_copy(update={"large_residual_share": 1.0, "large_residual_px": 0.5})
    chosen = config(network=TINY | {"bands": 2}, augmentation=jitter)
    rng = np.random.default_rng(1)
    told = np.array([draw_patch(patches_of(), chosen, rng).phases[0] for _ in range(30)])
    off = np.abs(told - np.rint(told))
    assert 0.2 < off.max() <= 0.5


def write_benchmark(folder: Path, name: str, count: int, seed: int) -> Path:
    import h5py

    truth = np.array([[landscape((64, 64), seed + 9 * n + b) for b in range(4)] for n in range(count)], np.float32) / 4
    with h5py.File(folder / name, "w") as file:
        file["gt"], file["pan"] = truth, truth.mean(1, keepdims=True)
        file["ms"] = rebuild_ms(truth, SENSORS["gf2"])
    return folder / name


def test_training_on_benchmark_files_resumes_and_marks_its_weights(tmp_path: Path) -> None:
    seeds = {"train": 1, "more": 250, "valid": 500}
    files = [write_benchmark(tmp_path, f"{kind}_gf2.h5", 3, seed) for kind, seed in seeds.items()]
    data = {"train": [file.name for file in files[:2]], "validation": [files[2].name]}
    given: dict[str, Any] = {"network": TINY | {"bands": 4}, "validate_every": 3}
    made = train(write_config(tmp_path, **given, pancollection=data, steps=3), tmp_path / "run")
    best = load_checkpoint(str(made))
    assert network_method("n", NetworkSharpener(best)).fixed_ranges
    assert best.training["ergas"] > 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data_sha256"] == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    assert record["config"]["seed"] == 2025
    assert best.training["data_sha256"] == record["data_sha256"]
    assert set(record) >= {"commit", "version", "torch", "device", "start_sha256"}
    swapped = {"train": data["validation"], "validation": data["train"][1:]}
    with pytest.raises(InvalidSceneError, match=r"^more_gf2\.h5: to validate on, and the weights of start"):
        train(write_config(tmp_path, **given, pancollection=swapped, start=str(made)), tmp_path / "swapped")
    (tmp_path / "moved").mkdir()
    for file in files:
        file.rename(tmp_path / "moved" / file.name)
    moved = {kind: [f"moved/{name}" for name in names] for kind, names in data.items()}
    train(write_config(tmp_path, **given, pancollection=moved, steps=4), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4


def test_benchmark_score_is_ergas_of_the_clipped_result() -> None:
    patches = patches_of(3)
    network = PanCrafter(NetworkConfig.model_validate(TINY | {"bands": 2}))  # untrained: cubic up-sampling
    scores = patch_ergas(network, patches, "cpu", batch=2)
    cubic = [np.stack([upsample(b, (64, 64), 4, (2.0, 2.0)) for b in ms]).clip(0, 1023) for ms in patches.ms]
    assert scores["ergas"] == pytest.approx(
        np.mean([ergas(t, c, 4) for t, c in zip(patches.truth, cubic, strict=True)]), rel=1e-4
    )
    assert scores["ergas_cubic"] == pytest.approx(scores["ergas"], rel=1e-6)


def test_benchmark_score_passes_over_patches_with_an_empty_band() -> None:
    """ERGAS divides by the mean of each band, so of such a patch there is none."""
    network = PanCrafter(NetworkConfig.model_validate(TINY | {"bands": 2}))
    whole = patches_of(3)
    truth = whole.truth.copy()
    truth[1, 0] = 0
    scores = patch_ergas(network, replace(whole, truth=truth), "cpu")
    rest = replace(whole, **{name: getattr(whole, name)[[0, 2]] for name in ("pan", "ms", "truth")})
    assert scores == pytest.approx(patch_ergas(network, rest, "cpu"))


def test_benchmark_scores_patches_from_all_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    network, whole = PanCrafter(NetworkConfig.model_validate(TINY | {"bands": 2})), patches_of(3)
    ends = replace(whole, **{name: getattr(whole, name)[[0, 2]] for name in ("pan", "ms", "truth")})
    expected = patch_ergas(network, ends, "cpu")
    monkeypatch.setattr(validation, "VALIDATION_PATCHES", 2)
    assert patch_ergas(network, whole, "cpu") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"network": TINY | {"bands": 8}}, "network.bands is 8, the files have: train_gf2.h5 4"),
        ({"pancollection": {"train": ["gone_gf2.h5"], "validation": ["train_gf2.h5"]}}, "gone_gf2.h5: not a readable"),
        (
            {"pancollection": {"train": ["train_gf2.h5", "valid_gf2.h5"], "validation": ["valid_gf2.h5"]}},
            "valid_gf2.h5: to validate on, and the same file is to train on",
        ),
    ],
)
def test_benchmark_configurations_that_cannot_work(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    for seed, name in enumerate(("train_gf2.h5", "valid_gf2.h5")):
        write_benchmark(tmp_path, name, 2, seed)
    data = {"train": ["train_gf2.h5"], "validation": ["valid_gf2.h5"]}
    path = write_config(tmp_path, **({"network": TINY | {"bands": 4}, "pancollection": data} | change))
    with pytest.raises(PancrafterError, match=problem):
        train(path, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"simulated_scenes": 2}, "not together with pairs_dir or simulated_scenes"),
        ({"network": TINY | {"injected_detail": True}}, "too small to fit injected_detail"),
        ({"reprojection": True}, "knows no reprojection"),
        ({"network": TINY | {"matched_lowpass": True}}, "has a fixed MTF"),
    ],
)
def test_benchmark_does_not_mix_with_what_it_lacks(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(pancollection={"train": ["a"], "validation": ["b"]}, **change)


def test_patches_too_small_for_reprojection_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_px is 20, expected 32 or more"):
        config(reprojection=True, patch_px=20)


def test_event_files_hold_what_the_table_holds(tmp_path: Path) -> None:
    """Read back with the protocol buffers that TensorBoard reads, across a resumed run."""
    for first in (0, 3):
        with MetricsLog(tmp_path, first) as log:
            log.write(first + 3, {"loss": 0.5, "ergas": 2.0 + first, "ergas_cubic": 4.0, "learning_rate": 1e-4})
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["3", "6"]
    assert dict(scalars(tmp_path, "ergas")) == {3: 2.0, 6: 5.0}


def test_a_run_that_begins_anew_leaves_no_figures_of_the_one_before(tmp_path: Path) -> None:
    values = {"loss": 0.5, "ergas": 2.0, "ergas_cubic": 4.0}
    with MetricsLog(tmp_path, 0) as log:
        log.write(3, values)
        log.write(6, values)
    for path in tmp_path.glob("events.*"):
        path.rename(tmp_path / "events.out.tfevents.0")  # of another second
    before = _content(tmp_path)
    with MetricsLog(tmp_path, 0) as log:
        assert _content(tmp_path) == before, "nothing is lost, nor waits to be written, before the first state"
        log.begin()
    with MetricsLog(tmp_path, 4) as log:  # killed between its first state, of step 4, and its row
        log.write(5, values)
    assert [row.split(",")[0] for row in (tmp_path / "metrics.csv").read_text().splitlines()] == ["5"]
    assert scalars(tmp_path, "ergas") == [(5, 2.0)]


def test_a_state_is_saved_only_when_no_figures_of_the_run_before_are_left(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    table = tmp_path / "run" / "metrics.csv"
    table.write_text("9,0,0.5,2.0,4.0\n")
    path = write_config(tmp_path, **on_pairs(pairs))
    monkeypatch.setattr(MetricsLog, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train(path, tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").exists()
    assert table.read_text() == ""


def test_a_table_that_cannot_be_written_is_told_before_the_first_step(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
    path = write_config(tmp_path, **on_pairs(pairs))
    with pytest.raises(SinkError, match=r"cannot be written .*nothing was saved yet"):
        train(path, tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard shows them: a session that starts at a step takes back what was written from there on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: list[tuple[int, float]] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the record, its checksum
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            if event.session_log.status == SessionLog.START:
                found = [entry for entry in found if entry[0] < event.step]
            found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
            at += 16 + length
    return found


def test_training_works_without_the_event_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 0.5, "ergas": 2.0, "ergas_cubic": 4.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
