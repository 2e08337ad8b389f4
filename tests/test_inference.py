"""The engine's forward pass computes what the plain network computes, on any part of a tile, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_checkpoint, random_network

from pancrafter.engine import NetworkSharpener
from pancrafter.model import inference
from pancrafter.model.conditions import Conditions, build_conditions
from pancrafter.model.inference import MsNetwork, Needed
from pancrafter.model.weights import load_checkpoint

FLOAT32 = 1e-5
"""Largest difference to the plain pass with random weights; outputs reach about 5. Only the order of sums differs."""

CONFIGS: list[dict[str, Any]] = [
    {},
    {"bands": 2, "injected_detail": True},
    {"attention": "none", "depth": (1, 2, 1), "width": 20},
    {"split_pan": False, "bands": 3},
    {"attention": "bottleneck", "mars": False, "depth": (2, 1, 1)},
    {"width": 32, "depth": (2, 2, 2), "injected_detail": True},
    {"bands": 2, "weighs_ms": 1},
    {"injected_detail": True, "told_uncertainty": True, "weighs_ms": 2},
]


def inputs(shape_yx: tuple[int, int], bands: int, samples: int = 1, *, injection: bool = False) -> Conditions:
    generator = torch.Generator().manual_seed(sum(shape_yx) + bands)
    pan = torch.randn(1, 1, *shape_yx, generator=generator)
    ms = torch.randn(samples, bands, shape_yx[0] // 4, shape_yx[1] // 4, generator=generator)
    phases = 1.5 + torch.rand(samples, bands, 2, generator=generator, dtype=torch.float64)
    detail = torch.randn(samples, bands, *shape_yx, generator=generator) if injection else None
    uncertainty = torch.rand(samples, generator=generator).tolist()
    return build_conditions(pan, ms, 4, phases, detail, uncertainty=uncertainty)


def plain(network: torch.nn.Module, conditions: Conditions) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network(conditions, torch.zeros(len(conditions.ms[0]), dtype=torch.long))
    return output


@pytest.mark.parametrize("strip_px", [inference.STRIP_PX, 500])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_whole_tile_equals_the_plain_pass(
    config: dict[str, Any], strip_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "STRIP_PX", strip_px)
    network = random_network(3, **config)
    conditions = inputs((92, 116), network.config.bands, 2, injection=network.config.injected_detail)
    expected = plain(network, conditions)
    found = MsNetwork(network)(conditions)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < FLOAT32 < 1e-3 * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    tile=st.tuples(st.integers(3, 36), st.integers(3, 36)),
    corners=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    strip_px=st.sampled_from([300, 2000, 10**6]),
)
def test_any_core_is_cut_from_the_whole(
    config: dict[str, Any], tile: tuple[int, int], corners: tuple[float, ...], strip_px: int
) -> None:
    """Cores of any size and parity, at the borders of the tile too, need no alignment."""
    height, width = 4 * tile[0], 4 * tile[1]
    network = random_network(1, **config)
    conditions = inputs((height, width), network.config.bands, injection=network.config.injected_detail)
    top, bottom = sorted(int(c * (height - 1)) for c in corners[:2])
    left, right = sorted(int(c * (width - 1)) for c in corners[2:])
    expected = plain(network, conditions)[..., top : bottom + 1, left : right + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "STRIP_PX", strip_px)
        found = MsNetwork(network)(conditions, ((top, bottom + 1), (left, right + 1)))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < FLOAT32


@pytest.mark.parametrize("stage", ["decode0", "decode1", "bottleneck", "encode1", "encode0"])
def test_every_stage_needs_its_whole_span(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: two pixels less on each side of one stage change the core."""
    network = random_network(2, attention="none")
    conditions = inputs((192, 192), 1)
    core = (80, 112)
    expected = plain(network, conditions)[..., 80:112, 80:112]
    exact = Needed.by(network.config, core, 192)
    spans = {name: getattr(exact, name) for name in ("decode0", "decode1", "bottleneck", "encode1", "encode0")}
    start, stop = spans[stage]
    spans[stage] = (start + 2, stop - 2)
    assert start > 0
    assert (MsNetwork(network)(conditions, (core, core)) - expected).abs().max() < FLOAT32
    monkeypatch.setattr(Needed, "by", lambda *_: Needed(core=core, **spans))
    try:
        difference = (MsNetwork(network)(conditions, (core, core)) - expected).abs().max()
    except RuntimeError:
        return  # a later stage asks for more than is left
    assert difference > 10 * FLOAT32


def test_shipped_weights_within_a_ten_thousandth() -> None:
    network = load_checkpoint().network
    conditions = inputs((160, 128), network.config.bands, 2, injection=network.config.injected_detail)
    assert (MsNetwork(network)(conditions) - plain(network, conditions)).abs().max() < 1e-4


def test_bfloat16_is_close_and_float32_at_its_base() -> None:
    """Eight bits of mantissa in every layer: within 1 % of the range on average, and the residual base is exact."""
    network = random_network(4)
    conditions = inputs((96, 96), 1)
    expected = plain(network, conditions)
    found = MsNetwork(network, torch.bfloat16)(conditions)
    assert found.dtype == torch.float32
    error = (found - expected).abs()
    assert 0 < error.mean() < 0.01 * (expected.max() - expected.min())
    for layer in (network.head.weight, network.head.bias):
        layer.detach().zero_()  # type: ignore[union-attr]  # present
    assert torch.equal(MsNetwork(network, torch.bfloat16)(conditions), conditions.ms[0])


def test_features_that_are_all_zero_stay_finite() -> None:
    network = random_network(5)
    for layer in (network.decode0.blocks[0].conv1.weight, network.decode0.blocks[0].conv1.bias):
        layer.detach().zero_()  # type: ignore[union-attr]  # present
    conditions = inputs((16, 16), 1)
    assert (MsNetwork(network)(conditions) - plain(network, conditions)).abs().max() < FLOAT32


def test_float32_is_not_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's default for convolutions on CUDA is TF32, off by up to 1 DN; building one in bfloat16 changes nothing."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    NetworkSharpener(random_checkpoint(1), precision="bfloat16")
    assert torch.backends.cudnn.allow_tf32
    NetworkSharpener(random_checkpoint(1))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_the_plain_pass_on_the_cpu() -> None:
    checkpoint = random_checkpoint(3)
    conditions = inputs((96, 96), 1, 2)
    expected = plain(checkpoint.network, conditions)
    moved = Conditions(
        *(tuple(part.cuda() for part in parts) for parts in (conditions.ms, conditions.pan, conditions.lowpass)),
        conditions.uncertainty.cuda(),
    )
    found = NetworkSharpener(checkpoint, "cuda")._network(moved).cpu()
    assert (found - expected).abs().max() < 1e-3
