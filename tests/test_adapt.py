"""Adapting lowers what it says it lowers, changes only what it may, and is dropped where other patches disagree."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from command import call, fails, parsed
from networks import random_checkpoint
from numpy.typing import NDArray
from small_archive import add_scene
from staged_scenes import landscape, observed, overlap, stage_arrays

from pancrafter import adapt as adapt_module
from pancrafter.adapt import AdaptLimits, _turned, adapt, cut_patches, patches_of_store
from pancrafter.assess import reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import BandCountError
from pancrafter.model.weights import save_checkpoint
from pancrafter.resample import Mtf, degrade
from pancrafter.tiles import Tile
from pancrafter.types import ValueRange

Array = NDArray[Any]
GAINS = (0.3, 0.3)
QUICK = AdaptLimits(steps=6, patch_px=128, check_every=2, patches=4, learning_rate=5e-3)


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


def test_adapting_lowers_the_error_on_patches_it_never_trained_on(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(), QUICK)
    done = adapt(spoiled, patches, GAINS, QUICK)
    assert done.kept, done.reason
    assert done.before is not None
    assert done.after is not None
    assert done.after < 0.9 * done.before
    for sharpener, said in ((spoiled, done.before), (done.sharpener, done.after)):
        assert said == pytest.approx(error_of(sharpener, patches[1], Mtf(GAINS[0])), rel=1e-4)


def error_of(sharpener: NetworkSharpener, patch: Tile, blur: Mtf) -> float:
    """Its mean absolute error on a patch whose PAN is brought one scale down by this blur, normalised units."""
    pair = reduce_tile(patch, GAINS, blur, least_px=0)
    assert pair is not None
    width = np.array([limits.high - limits.low for limits in pair.tile.ms_ranges])[:, None, None]
    error = 2 * np.abs(sharpener.one_scale_down(GAINS)(pair.tile) - pair.truth) / width
    return float(error[:, 4:-4, 4:-4].mean())


def test_a_scene_is_learnt_from_as_it_is_one_scale_down() -> None:
    """PAN is blurred by what MS is blurrier than it, MS by its own MTF: the latter is what puts MS back there."""
    network = NetworkSharpener(random_checkpoint(attention="none"))
    patches, fitted = cut_patches(scene(), QUICK), network.fitted_to(scene(), GAINS, 0.01)
    assert fitted.relative_mtf is not None
    before = adapt(fitted, patches, GAINS, QUICK.model_copy(update={"seconds": 0.0})).before
    assert before == pytest.approx(error_of(fitted, patches[1], fitted.relative_mtf[0]), rel=1e-4)


def test_the_best_network_is_kept_and_not_the_last() -> None:
    """One whose head's bias alone can learn: its first step goes where it is best, the others beyond."""
    checkpoint = random_checkpoint(attention="none")
    with torch.no_grad():
        for parameter in checkpoint.network.parameters():
            parameter.zero_()
        checkpoint.network.head.bias.fill_(1.0)
    patches, limits = cut_patches(scene(), QUICK), QUICK.model_copy(update={"steps": 4, "learning_rate": 1.17})
    best, last = (
        adapt(NetworkSharpener(checkpoint), patches, GAINS, limits.model_copy(update={"check_every": often}))
        for often in (1, 4)
    )
    biases = [abs(float(done.sharpener.checkpoint.network.head.bias)) for done in (best, last)]
    assert biases[0] < 0.1 < 0.2 < biases[1]


def test_patches_that_decide_are_not_learnt_from(spoiled: NetworkSharpener) -> None:
    first, _, *rest = cut_patches(scene(), QUICK)
    limits = QUICK.model_copy(update={"check_every": QUICK.steps})
    one, other = (adapt(spoiled, [first, deciding, *rest], GAINS, limits) for deciding in rest)
    assert one.after != other.after
    states = [done.sharpener.checkpoint.network.state_dict() for done in (one, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_network_that_was_given_stays_as_it_is(spoiled: NetworkSharpener) -> None:
    original = {k: v.clone() for k, v in spoiled.checkpoint.network.state_dict().items()}
    done = adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK)
    adapted = done.sharpener.checkpoint.network.state_dict()
    assert any(not torch.equal(value, original[name]) for name, value in adapted.items())
    assert all(torch.equal(v, original[k]) for k, v in spoiled.checkpoint.network.state_dict().items())
    assert not any(p.requires_grad for p in done.sharpener.checkpoint.network.parameters())


@pytest.mark.parametrize("seed", range(8))
def test_turned_pairs_are_what_the_turned_scene_would_give(seed: int) -> None:
    tile = scene()
    pair, turned = (reduce_tile(t, GAINS, 0.3, least_px=0) for t in (tile, _turned_scene(tile, seed)))
    assert pair is not None
    assert turned is not None
    found = _turned(pair, np.random.default_rng(seed))
    for one, other in ((found.tile.pan, turned.tile.pan), (found.tile.ms, turned.tile.ms), (found.truth, turned.truth)):
        np.testing.assert_allclose(one, other, atol=1e-3)


def _turned_scene(tile: Tile, seed: int) -> Tile:
    flip_y, flip_x, turn = np.random.default_rng(seed).integers(2, size=3)

    def oriented(image: Array) -> Array:
        image = np.flip(image, -2) if flip_y else image
        image = np.flip(image, -1) if flip_x else image
        return image.swapaxes(-1, -2) if turn else image

    return replace(tile, pan=oriented(tile.pan), ms=oriented(tile.ms))


def test_same_scene_gives_the_same_parameters(spoiled: NetworkSharpener) -> None:
    one, two = (adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK) for _ in range(2))
    states = [done.sharpener.checkpoint.network.state_dict() for done in (one, two)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_harmful_steps_are_dropped(spoiled: NetworkSharpener) -> None:
    done = adapt(spoiled, cut_patches(scene(), QUICK), GAINS, QUICK.model_copy(update={"learning_rate": 100.0}))
    assert not done.kept
    assert done.sharpener is spoiled
    assert done.reason == "no gain on other patches"


def test_time_and_steps_are_bounded(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(), QUICK)
    slow = adapt(spoiled, patches, GAINS, QUICK.model_copy(update={"seconds": 0.0}))
    assert (slow.steps, slow.kept) == (1, True), "what time allows is judged"
    assert adapt(spoiled, patches, GAINS, QUICK.model_copy(update={"steps": 2})).steps == 2


def test_small_scenes_keep_the_network_as_it_is(spoiled: NetworkSharpener) -> None:
    patches = cut_patches(scene(128), QUICK)
    assert patches == []
    done = adapt(spoiled, patches, GAINS, QUICK)
    assert (done.kept, done.reason, done.sharpener is spoiled) == (False, "too few patches", True)


def test_wrong_band_count_is_refused() -> None:
    three = NetworkSharpener(random_checkpoint(bands=3))
    with pytest.raises(BandCountError, match="take 3 bands at once, the scene has 2"):
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
    index[144:, :120] *= 2
    (roughest,) = cut_patches(tile, QUICK.model_copy(update={"patches": 1}))
    assert np.ptp(roughest.pan[-1, :9]) == 16, "its PAN is the one with steps of 2"


def test_patches_of_a_staged_scene_hold_no_pixel_that_was_not_measured(tmp_path: Path) -> None:
    grid = overlap((256, 256), 4)
    pan, ms = observed(grid, 2, seed=1)
    pan[128:, 128::2] //= 2
    valid = np.ones(pan.shape, np.bool_)
    valid[130, 7] = False
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, pan_valid=valid, nodata=0.0)
    found = [patch.pan for patch in patches_of_store(store, QUICK)]
    assert np.array_equal(found, [pan[:128, :128], pan[:128, 128:], pan[128:, 128:]])
    (roughest,) = patches_of_store(store, QUICK.model_copy(update={"patches": 1}))
    assert np.array_equal(roughest.pan, pan[128:, 128:])


# --- the command ----------------------------------------------------------------------------------------------------


def sharpened(tmp_path: Path, *words: object) -> tuple[dict[str, Any], Array, dict[str, str]]:
    """What ``pancrafter sharpen --json`` says, and pixels and tags of the file it wrote."""
    out = tmp_path / "out.tif"
    files = [tmp_path / "files" / "scene" / name for name in ("pan.tif", "ms.tif")]
    asked = ["sharpen", *files, out, "--sensor", "geoeye-1", "--threads", 1, "--json", "--overwrite"]
    said = parsed(*asked, *words)
    with rasterio.open(out) as source:
        return said, source.read(), source.tags()


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
    honest, adapting = adapt_module.adapt, []

    def adapt_here(*arguments: Any) -> adapt_module.Adapted:
        adapting.append(threading.current_thread())
        return honest(*arguments)

    monkeypatch.setattr(adapt_module, "adapt", adapt_here)
    said, adapted, tags = sharpened(tmp_path, "--weights", weights, "--adapt")
    assert [thread.is_alive() for thread in adapting] == [False], "its helpers of torch would slow the sharpening"
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
    pair = (tmp_path / "files" / "scene" / name for name in ("pan.tif", "ms.tif"))
    told = call("sharpen", *pair, tmp_path / "told.tif", "--weights", weights, "--adapt")
    assert f"\n  {said['adapted']}\n" in told.stdout


def test_classical_methods_have_nothing_to_adapt(tmp_path: Path) -> None:
    words = ["sharpen", "pan.tif", "ms.tif", tmp_path / "out.tif", "--method", "mtf-glp-fs", "--adapt"]
    assert "--adapt: mtf-glp-fs has nothing to adapt" in fails(2, *words)
