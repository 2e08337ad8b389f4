"""The weights in the package: what they claim to be, and better than every textbook method on scenes they never saw."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pancrafter import engine
from pancrafter.classical import METHODS, PairInput, sharpen
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import WeightsError
from pancrafter.evaluate import AS_SHARP_AS_MS
from pancrafter.metrics import ergas
from pancrafter.model.names import file_sha256, planned_sha256, shipped_weights, weights_path, weights_sha256
from pancrafter.model.weights import load_checkpoint
from pancrafter.resample import degrade
from pancrafter.tiles import Tile
from pancrafter.training.images import simulate_image

UNSEEN_SEED = 77
PHASE_SHIFT = (0.4, -0.3)
GAIN = 0.30


def test_every_shipped_file_is_the_recorded_one() -> None:
    index = shipped_weights()
    assert index
    for name in index:
        assert weights_sha256(name) == index[name]["sha256"]
        assert load_checkpoint(name).name == name


def test_weights_that_cannot_be_read_are_named() -> None:
    unreadable = "/proc/self/mem"  # for root, too
    with pytest.raises(WeightsError, match=rf"{unreadable} cannot be read \(Input/output error\); mend its rights"):
        load_checkpoint(unreadable)


def test_a_plan_reads_weights_once_until_they_are_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"first")
    before, first = weights.stat(), file_sha256(weights)
    assert planned_sha256(str(weights)) == first
    weights.write_bytes(b"other")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing tells: only another read would
    assert planned_sha256(str(weights)) == first
    assert weights_sha256(str(weights)) == file_sha256(weights) != first
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert planned_sha256(str(weights)) == file_sha256(weights)
    (tmp_path / "third").write_bytes(b"third")
    os.utime(tmp_path / "third", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (tmp_path / "third").replace(weights)
    assert planned_sha256(str(weights)) == file_sha256(weights)


def test_scenes_check_weights_once_until_they_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "own.safetensors"
    shutil.copy(weights_path("open-compact"), weights)
    sha256, loaded = weights_sha256(str(weights)), list[str]()
    monkeypatch.setattr(engine, "load_checkpoint", lambda name: loaded.append(name) or load_checkpoint(name))
    for _ in range(2):
        engine.check_for_scenes(str(weights), sha256, 4)
    assert len(loaded) == 1
    weights.write_bytes(b"other")
    for _ in range(2):
        with pytest.raises(WeightsError):
            engine.check_for_scenes(str(weights), sha256, 4)
    assert len(loaded) == 3


@pytest.mark.parametrize("ratio", [2, 4])
def test_default_weights_beat_cubic_and_every_classical_method_on_unseen_scenes(ratio: int) -> None:
    """Mean ERGAS over simulated scenes; the classical methods are told the exact MTF and shift."""
    network = NetworkSharpener(load_checkpoint())
    phase = ((ratio - 1) / 2 + PHASE_SHIFT[0], (ratio - 1) / 2 + PHASE_SHIFT[1])
    scores: dict[str, list[float]] = {name: [] for name in ("ours", *METHODS)}
    for index in range(4):
        image = simulate_image(f"unseen-{index}", (UNSEEN_SEED, index), 256)
        small = (256 // ratio, 256 // ratio)
        ms = np.stack([np.rint(degrade(b, small, ratio, phase, GAIN)) for b in image.truth]).astype(np.float32)
        tile = Tile(image.pan, ms, ratio, (phase,) * len(ms), image.pan_range, image.truth_ranges)
        pair = PairInput(image.pan, ms, ratio, tile.phases_yx, (GAIN,) * len(ms))
        results = {"ours": network.fitted_to(tile, (GAIN,) * len(ms), AS_SHARP_AS_MS)(tile)} | {
            name: sharpen(name, pair) for name in METHODS
        }
        core = (slice(None), slice(16, -16), slice(16, -16))
        for name, result in results.items():
            scores[name].append(ergas(image.truth[core], result[core], ratio))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    ours = means.pop("ours")
    assert ours < min(means.values()), f"ours {ours:.3f}, others {means}"
