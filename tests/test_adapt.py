"""Adapting lowers what it says it lowers, changes only what it may, and is dropped where other patches disagree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from networks import random_checkpoint
from numpy.typing import NDArray
from small_archive import add_scene
from staged_scenes import landscape
from typer.testing import CliRunner

from pancrafter import adapt as adapt_module
from pancrafter import cli
from pancrafter.adapt import (
    ADAPTED_PARAMETERS,
    AdaptLimits,
    Terms,
    _full_terms,
    _local_correlation,
    _measured,
    adapt,
    cut_patches,
)
from pancrafter.engine import NetworkSharpener, Tile
from pancrafter.errors import WeightsError
from pancrafter.model.weights import save_checkpoint
from pancrafter.resample import degrade, upsample
from pancrafter.types import ValueRange

Array = NDArray[Any]
GAINS = (0.3, 0.3)
QUICK = AdaptLimits(steps=6, patch_px=128, crop_px=96, check_every=2, patches=4, learning_rate=1e-3)


def scene(side: int = 256, ratio: int = 4) -> Tile:
    truth = np.stack([landscape((side, side), seed) for seed in (3, 4)])
    nominal = ((ratio - 1) / 2, (ratio - 1) / 2)
    small = (side // ratio, side // ratio)
    ms = np.stack([degrade(band, small, ratio, nominal, 0.3) for band in truth]).astype(np.float32)
    ranges = tuple(ValueRange(low=float(b.min()), high=float(b.max())) for b in ms)
    pan = truth.mean(0).astype(np.float32)
    limits = ValueRange(low=float(pan.min()), high=float(pan.max()))
    return Tile(pan, ms, ratio, (nominal,) * 2, limits, ranges)


@pytest.fixture(scope="module")
def spoiled() -> NetworkSharpener:
    """A network that returns cubic MS, all of it too bright: the head alone can mend that."""
    checkpoint = random_checkpoint(attention="bottleneck")
    with torch.no_grad():
        checkpoint.network.head.weight.zero_()
        checkpoint.network.head.bias.fill_(0.1)
    return NetworkSharpener(checkpoint)


def test_adapting_lowers_both_distances_on_patches_it_never_trained_on(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(), QUICK)
    done = adapt(spoiled, patches, GAINS, QUICK)
    assert done.kept, done.reason
    assert done.before is not None
    assert done.after is not None
    assert done.after.no_worse_than(done.before)
    assert done.after.total(0.05) < done.before.total(0.05)
    again = _measured(done.sharpener, patches[1::3], GAINS)
    assert again.reprojection == pytest.approx(done.after.reprojection, rel=1e-5)


def test_only_the_named_parameters_move_and_the_original_stays(spoiled: NetworkSharpener) -> None:
    original = {k: v.clone() for k, v in spoiled.checkpoint.network.state_dict().items()}
    done = adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK)
    adapted = done.sharpener.checkpoint.network.state_dict()
    moved = {name for name, value in adapted.items() if not torch.equal(value, original[name])}
    assert moved
    assert all(name.endswith(ADAPTED_PARAMETERS) for name in moved)
    assert all(torch.equal(v, original[k]) for k, v in spoiled.checkpoint.network.state_dict().items())
    assert not any(p.requires_grad for p in done.sharpener.checkpoint.network.parameters())


def test_same_scene_gives_the_same_parameters(spoiled: NetworkSharpener) -> None:
    one, two = (adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK) for _ in range(2))
    states = [done.sharpener.checkpoint.network.state_dict() for done in (one, two)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_harmful_steps_are_dropped(spoiled: NetworkSharpener) -> None:
    done = adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK.model_copy(update={"learning_rate": 100.0}))
    assert not done.kept
    assert done.sharpener is spoiled
    assert done.reason == "no gain on other patches"


def test_gain_in_one_distance_does_not_buy_loss_in_the_other(
    spoiled: NetworkSharpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = iter(
        [Terms(reduced=0.5, reprojection=0.1, spatial=0.9), *[Terms(reduced=0.1, reprojection=0.11, spatial=0.1)] * 9]
    )
    monkeypatch.setattr(adapt_module, "_measured", lambda *_: next(terms))
    assert not adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK).kept


def test_time_and_steps_are_bounded(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(), QUICK)
    assert adapt(spoiled, patches, GAINS, QUICK.model_copy(update={"seconds": 0.0})).steps == 0
    assert adapt(spoiled, patches, GAINS, QUICK.model_copy(update={"steps": 2})).steps == 2


def test_small_scenes_keep_the_network_as_it_is(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(128), QUICK)
    assert patches == []
    done = adapt(spoiled, patches, GAINS, QUICK)
    assert (done.kept, done.reason, done.sharpener is spoiled) == (False, "too few patches", True)


def test_wrong_band_count_is_refused() -> None:
    three = NetworkSharpener(random_checkpoint(bands=3))
    with pytest.raises(WeightsError, match="take 3 bands at once, the scene has 2"):
        adapt(three, cut_patches(scene(), QUICK), GAINS, QUICK)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_patches_keep_pan_and_ms_in_step(ratio: int) -> None:
    tile = scene(288, ratio)
    index = np.indices(tile.pan.shape).sum(0).astype(np.float32)
    tile = replace(tile, pan=index, ms=np.stack([index[::ratio, ::ratio]] * 2))
    patches = cut_patches(tile, QUICK)
    assert len(patches) == 4
    for patch in patches:
        np.testing.assert_array_equal(patch.pan[::ratio, ::ratio], patch.ms[0])
        assert all(n % (4 * ratio) == 0 for n in patch.pan.shape)


def test_reprojection_is_the_distance_of_the_degraded_result_from_ms() -> None:
    """An untrained network returns cubic MS, so the term follows from resample alone."""
    from pancrafter.model.config import NetworkConfig
    from pancrafter.model.network import PanCrafter
    from pancrafter.model.weights import Checkpoint

    tile = scene(128)
    network = PanCrafter(NetworkConfig(bands=1, width=16, depth=(1, 1, 1), attention="none")).eval()
    for told, gain in ((None, 0.3), ((0.45,) * len(tile.ms), 0.45)):  # results are to be as sharp as PAN
        untrained = NetworkSharpener(Checkpoint("untrained", "0" * 64, network, {}), relative_mtf=told)
        reprojection, spatial = (float(term.detach()) for term in _full_terms(untrained, tile, GAINS))
        wanted = []
        for band, limits, phase in zip(tile.ms, tile.ms_ranges, tile.phases_yx, strict=True):
            result = upsample(band, (128, 128), 4, phase)
            if told is not None:  # one step of back-projection
                result += upsample(band - degrade(result, (32, 32), 4, phase, gain), (128, 128), 4, phase)
            missing = degrade(result, (32, 32), 4, phase, gain) - band
            wanted.append(2 * np.abs(missing)[6:-6, 6:-6] / (limits.high - limits.low))
        assert reprojection == pytest.approx(np.mean(wanted), rel=1e-3 if told is None else 2e-2)
        assert 0 <= spatial <= 1


def test_local_correlation_equals_a_loop_over_windows() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 14))
    found = _local_correlation(torch.from_numpy(a)[None], torch.from_numpy(b)[None], 2)[0].numpy()
    for y, x in ((2, 2), (5, 7), (9, 11)):
        window = (slice(y - 2, y + 3), slice(x - 2, x + 3))
        assert found[y, x] == pytest.approx(np.corrcoef(a[window].ravel(), b[window].ravel())[0, 1], abs=1e-6)


# --- the command ----------------------------------------------------------------------------------------------------


def sharpened(tmp_path: Path, *words: object) -> tuple[dict[str, Any], Array, dict[str, str]]:
    """What ``pancrafter sharpen --json`` says, and pixels and tags of the file it wrote."""
    out = tmp_path / "out.tif"
    files = [tmp_path / "files" / "scene" / name for name in ("pan.tif", "ms.tif")]
    asked = ["sharpen", *files, out, "--sensor", "geoeye-1", "--threads", 1, "--json", "--overwrite", *words]
    result = CliRunner().invoke(cli.app, [str(word) for word in asked])
    assert result.exit_code == 0, result.output
    with rasterio.open(out) as source:
        return json.loads(result.stdout), source.read(), source.tags()


def test_sharpen_adapts_to_the_scene_and_says_so(
    tmp_path: Path, spoiled: NetworkSharpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt_module, "DEFAULT_LIMITS", QUICK.model_copy(update={"steps": 20, "learning_rate": 5e-3}))
    add_scene(tmp_path, "scene", side_px=256, seed=1)
    weights = tmp_path / "spoiled.safetensors"
    save_checkpoint(weights, spoiled.checkpoint.network, {})
    said, plain, tags = sharpened(tmp_path, "--weights", weights)
    assert said["adapted"] is None
    assert "PANCRAFTER_ADAPTED" not in tags
    said, adapted, tags = sharpened(tmp_path, "--weights", weights, "--adapt")
    assert said["adapted"].startswith("adapted: better on other patches")
    assert tags["PANCRAFTER_ADAPTED"] == "to this scene"
    assert tags["PANCRAFTER_WEIGHTS"] == "spoiled.safetensors"
    assert (adapted != plain).mean() > 0.2


def test_scene_too_small_to_adapt_to_is_sharpened_all_the_same(tmp_path: Path, spoiled: NetworkSharpener) -> None:
    add_scene(tmp_path, "scene", side_px=128, seed=1)
    weights = tmp_path / "spoiled.safetensors"
    save_checkpoint(weights, spoiled.checkpoint.network, {})
    said, _, tags = sharpened(tmp_path, "--weights", weights, "--adapt")
    assert said["adapted"].startswith("not adapted: too few patches")
    assert "PANCRAFTER_ADAPTED" not in tags


def test_classical_methods_have_nothing_to_adapt(tmp_path: Path) -> None:
    words = ["sharpen", "pan.tif", "ms.tif", str(tmp_path / "out.tif"), "--method", "mtf-glp-fs", "--adapt"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    assert "--adapt: mtf-glp-fs has nothing to adapt" in result.stderr
