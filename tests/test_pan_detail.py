"""PAN's fine detail that the mix of a result's bands misses, and what putting it back is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from simulated_scenes import simulated_scene

from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import network_method
from pancrafter.metrics import ergas
from pancrafter.model import pan_detail
from pancrafter.model.pan_detail import Mix, pan_put_back
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import value_range
from pancrafter.tiles import Tile

MIX = Mix(weights=(0.5, 0.25), gains=(1.2, 1.6))  # 0.5 * 1.2 + 0.25 * 1.6 = 1, as those of a scene's fit


def test_pan_is_explained_better_by_the_share_that_is_put_back() -> None:
    rng = np.random.default_rng(1)
    bands, pan = (torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32)) for shape in ((2, 40, 44), (40, 44)))
    after = pan_put_back(bands, pan, 4, MIX)

    def fine(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(values - gaussian_filter(values, 1.6, mode="nearest", truncate=3))

    def missing(values: torch.Tensor) -> NDArray[np.floating]:
        return (pan - 0.5 * values[0] - 0.25 * values[1]).double().numpy()

    assert missing(after) == pytest.approx(missing(bands) - 0.75 * fine(missing(bands)), abs=1e-5)
    changes = (after - bands).numpy()
    assert changes[1] == pytest.approx(changes[0] * 1.6 / 1.2, abs=1e-5)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize(("wave_ms_px", "taken"), [(8, 0.05), (4, 0.18), (1.5, 0.755)])
def test_what_is_no_finer_than_ms_is_left_alone(ratio: int, wave_ms_px: float, taken: float) -> None:
    """Of waves that the mix does not explain, 1 - exp(-2 (pi 0.4 / wave)^2) is fine detail; of even light nothing."""
    bands, x = torch.zeros(2, 96, 96), torch.arange(96.0)
    even = pan_put_back(bands, torch.full((96, 96), 0.3), ratio, MIX)
    assert even.abs().max() < 1e-6
    waves = (2 * torch.pi * x / (wave_ms_px * ratio)).sin().expand(96, 96)
    inner = slice(16, -16)
    found = pan_put_back(bands, waves, ratio, MIX)[:, :, inner].std(dim=(1, 2)) / waves[:, inner].std()
    assert found.numpy() == pytest.approx(0.75 * taken * np.array([1.2, 1.6]), abs=0.02)


def test_nothing_beyond_the_stated_reach_counts() -> None:
    rng = np.random.default_rng(2)
    bands, pan = (torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32)) for shape in ((2, 60, 60), (60, 60)))
    for ratio in (2, 3, 4):
        reach = pan_detail.reach_px(ratio)
        cut = pan_put_back(bands[:, 10:50, 10:50], pan[10:50, 10:50], ratio, MIX)[:, reach:-reach, reach:-reach]
        whole = pan_put_back(bands, pan, ratio, MIX)[:, 10 + reach : 50 - reach, 10 + reach : 50 - reach]
        assert (cut - whole).abs().max() < 1e-6


@pytest.mark.parametrize("seed", [103, 104, 105])
def test_results_come_closer_to_the_truth(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    scene = simulated_scene(seed, all_bands=True, side_px=256)
    pair, model = scene.pair, scene.model
    pan, ms = pair.pan.astype(np.float32), pair.ms.astype(np.float32)
    phases = tuple((model.phase[0] + dy, model.phase[1] + dx) for dy, dx in model.shift_yx)
    tile = Tile(pan, ms, pair.ratio, phases, value_range(pan), tuple(value_range(band) for band in ms))
    mtfs = tuple(band.mtf for band in pair.contract.subset(pair.bands))
    method = network_method("pan-crafter", NetworkSharpener(load_checkpoint()))
    inner = (slice(None), slice(16, -16), slice(16, -16))

    def error() -> float:
        return ergas(scene.truth[inner], method.sharpen(tile, mtfs, pair.contract.pan_mtf)[inner], pair.ratio)

    with_detail = error()
    monkeypatch.setattr(pan_detail, "SHARE", 0.0)
    assert with_detail < 0.997 * error()
