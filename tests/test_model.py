"""The network against its specification, slow independent formulations, and the properties tiling leans on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_network, randomise, zero_parameters
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import pancrafter
from pancrafter.classical import InjectionConstants
from pancrafter.errors import WeightsError
from pancrafter.model.conditions import SCALES, Conditions, build_conditions, unexplained_pan
from pancrafter.model.config import LOWPASS_RADIUS_MS_PX, NetworkConfig
from pancrafter.model.layers import CrossModalityAttention, ResBlock, channel_norm, local_attention
from pancrafter.model.network import MS_MODE, PAN_MODE, PanCrafter
from pancrafter.model.reprojection import FURTHER_STEPS, reprojected
from pancrafter.model.weights import load_checkpoint, save_checkpoint
from pancrafter.resample import (
    GENERIC_MTF_GAIN,
    Mtf,
    apply_yx,
    cubic_matrix,
    degrade,
    gaussian_matrix,
    mtf_sigma,
    upsample,
)

RATIOS = (2, 3, 4)


def random_inputs(
    ratio: int, ms_px: int = 24, bands: int = 1, samples: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pan = torch.randn((samples, 1, ms_px * ratio, ms_px * ratio), generator=generator)
    return pan, torch.randn((samples, bands, ms_px, ms_px), generator=generator)


def nominal(ratio: int, bands: int = 1, samples: int = 1) -> Tensor:
    return torch.full((samples, bands, 2), (ratio - 1) / 2, dtype=torch.float64)


def modes(*values: int) -> Tensor:
    return torch.tensor(values)


def run(network: PanCrafter, pan: Tensor, ms: Tensor, ratio: int, mode: int = MS_MODE) -> Tensor:
    conditions = build_conditions(pan, ms, ratio, nominal(ratio, ms.shape[1], len(ms)))
    with torch.no_grad():
        result: Tensor = network(conditions, torch.full((len(ms),), mode))
    return result


# --- size and shape -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"split_pan": False}, 7_207_816),
        ({"split_pan": False, "bands": 4}, 7_129_476),
        ({}, 7_175_560),
        ({"bands": 4}, 7_124_868),
        ({"depth": (1, 2, 4)}, 6_583_176),
        ({"depth": (1, 1, 8)}, 7_175_560),
        ({"attention": "bottleneck"}, 5_301_384),
        ({"attention": "bottleneck", "depth": (1, 2, 4)}, 4_709_000),
        ({"attention": "none", "depth": (1, 2, 4)}, 3_771_912),
        ({"attention": "none", "depth": (1, 2, 4), "width": 96}, 2_128_520),
        ({"attention": "none", "depth": (1, 2, 2), "width": 104}, 2_104_136),
    ],
)
def test_parameter_counts_are_those_of_the_method(config: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        network = PanCrafter(NetworkConfig.model_validate(config))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_the_defaults_are_the_recommended_network() -> None:
    config = NetworkConfig()
    assert (config.bands, config.width, config.depth, config.heads) == (8, 128, (2, 2, 4), 8)
    assert (config.attention, config.split_pan, config.mars, config.modes) == ("all", True, True, 2)


@pytest.mark.parametrize("change", [{"depth": (1, 0, 1)}, {"width": 40}, {"bands": 0}, {"dropout": 0.2}])
def test_impossible_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        NetworkConfig.model_validate(change)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("split_pan", [True, False])
def test_untrained_network_returns_exactly_its_residual_base(ratio: int, *, split_pan: bool) -> None:
    torch.manual_seed(1)
    network = PanCrafter(NetworkConfig(bands=3, width=16, depth=(1, 1, 1), split_pan=split_pan)).eval()
    pan, ms = random_inputs(ratio, bands=3)
    conditions = build_conditions(pan, ms, ratio, nominal(ratio, 3))
    with torch.no_grad():
        assert torch.equal(network(conditions, modes(MS_MODE)), conditions.ms[0])
        assert torch.equal(network(conditions, modes(PAN_MODE)), conditions.lowpass[0].expand(1, 3, -1, -1))


def test_zero_initialised_layers_are_the_ones_the_method_names_and_no_gradient_is_dead() -> None:
    """Selects start at zero, so their projections must not, or neither would ever learn."""
    torch.manual_seed(2)
    network = PanCrafter(NetworkConfig(bands=2, width=16, depth=(1, 1, 1)))
    zeros = {name.split(".", 1)[-1] if "attention" in name else name for name in zero_parameters(network)}
    assert {"head.weight", "head.bias", "encode0.blocks.0.conv2.weight", "encode0.blocks.0.gamma"} <= zeros
    assert {"attention.select_ms", "attention.select_pan"} <= zeros
    assert not any("project" in name or "key" in name or "query" in name for name in zeros)
    randomise(network, 3).requires_grad_(requires_grad=True)
    pan, ms = random_inputs(4, 16, bands=2, samples=2)
    network(build_conditions(pan, ms, 4, nominal(4, 2, 2)), modes(MS_MODE, PAN_MODE)).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # Scale 0 has no attention; the two gates of each mode all take part.
    assert dead == []


# --- layers against slow formulations ---------------------------------------------------------------------------------


def attention_by_unfold(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    n, c, height, width = query.shape
    split = (n, heads, c // heads, 9, height * width)
    neighbours = [functional.unfold(t, 3, padding=1).reshape(n, c, 9, -1).reshape(split) for t in (key, value)]
    logits = torch.einsum("nhcp,nhckp->nhkp", query.reshape(n, heads, c // heads, -1), neighbours[0])
    weights = torch.softmax(logits / (c // heads) ** 0.5, dim=2)
    return torch.einsum("nhkp,nhckp->nhcp", weights, neighbours[1]).reshape(n, c, height, width)


@pytest.mark.parametrize(("heads", "channels"), [(1, 16), (2, 32), (4, 16)])
def test_local_attention_equals_unfolded_neighbourhoods(heads: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    query, key, value = (torch.randn((2, channels, 7, 9), generator=generator, dtype=torch.float64) for _ in range(3))
    expected = attention_by_unfold(query, key, value, heads)
    assert (local_attention(query, key, value, heads) - expected).abs().max() < 1e-12
    single = local_attention(query.float(), key.float(), value.float(), heads)
    assert (single - expected).abs().max() < 1e-5


def test_pixels_outside_count_as_zero_keys_in_the_softmax() -> None:
    """With all keys zero the nine weights are equal, also at a corner, where five neighbours are outside."""
    value = torch.ones((1, 16, 4, 4))
    out = local_attention(torch.ones_like(value), torch.zeros_like(value), value, 1)
    assert out[0, 0, 1, 1].item() == pytest.approx(1)
    assert out[0, 0, 0, 0].item() == pytest.approx(4 / 9)


def test_norm_is_over_the_channels_of_each_pixel() -> None:
    x = torch.randn((2, 16, 5, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    assert (channel_norm(x) - expected).abs().max() < 1e-12


def test_res_block_follows_its_equation() -> None:
    block = ResBlock(32, 16, modes=2).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((2, 32, 5, 5), generator=generator, dtype=torch.float64)
    assert isinstance(block.skip, nn.Conv2d)
    assert block.skip.bias is not None
    skip = torch.einsum("oi,nihw->nohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias[:, None, None]

    def norm(t: Tensor, module: Any) -> Tensor:
        centred = t - t.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        affine: Tensor = scaled * module.weight[:, None, None] + module.bias[:, None, None]
        return affine

    for mode in (MS_MODE, PAN_MODE):
        inner = functional.conv2d(
            functional.silu(norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1
        )
        modulated = (1 + block.gamma[mode][:, None, None]) * norm(inner, block.norm2) + block.beta[mode][:, None, None]
        h = functional.conv2d(functional.silu(modulated), block.conv2.weight, block.conv2.bias, padding=1)
        assert (block(x, modes(mode, mode)) - (skip + h)).abs().max() < 1e-12


def test_attention_block_has_separate_keys_and_gates_per_branch() -> None:
    """Eq. 7-12 written out: one query, MS keys for the MS branch, PAN keys for the PAN branch, gates per mode."""
    block = CrossModalityAttention(32, bands=3, pan_channels=3, modes=2, heads=2, expansion=4).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, q, ms, pan = (torch.randn((2, c, 6, 6), generator=generator, dtype=torch.float64) for c in (32, 3, 3, 3))

    def conv(t: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(t, weight, padding=weight.shape[-1] // 2)

    n = functional.layer_norm(x.movedim(1, -1), (32,), eps=1e-6).movedim(-1, 1)
    query = conv(torch.cat([q, n], 1), block.query.weight)
    branches = []
    for condition, convolution, project in (
        (torch.cat([ms, n], 1), block.key_value_ms, block.project_ms),
        (torch.cat([n, pan], 1), block.key_value_pan, block.project_pan),
    ):
        key = conv(condition, convolution.weight[:32])
        value = conv(condition, convolution.weight[32:])
        branches.append(project(attention_by_unfold(query, key, value, 2)))
    for mode in (MS_MODE, PAN_MODE):
        gates = [gate[mode][:, None, None] for gate in (block.select_ms, block.select_pan)]
        mixed = x + gates[0] * branches[0] + gates[1] * branches[1]
        normed = functional.layer_norm(mixed.movedim(1, -1), (32,), eps=1e-6).movedim(-1, 1)
        expected = mixed + block.contract(functional.gelu(block.expand(normed), approximate="tanh"))
        assert (block(x, q, ms, pan, modes(mode, mode)) - expected).abs().max() < 1e-12


# --- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", RATIOS)
def test_edge_aligned_conditions_are_the_bicubic_of_torch(ratio: int) -> None:
    pan, ms = random_inputs(ratio, bands=2, samples=2)
    conditions = build_conditions(pan, ms, ratio, nominal(ratio, 2, 2))
    for scale in range(3):
        size = tuple(side // 2**scale for side in pan.shape[-2:])
        expected = pan if scale == 0 else functional.interpolate(pan, size, mode="bicubic")
        assert (conditions.pan[scale] - expected).abs().max() < 1e-5
        # Torch enlarges any ratio, and reduces (ratio 2 or 3 at scale 2) without antialias, like us.
        assert (conditions.ms[scale] - functional.interpolate(ms, size, mode="bicubic")).abs().max() < 1e-5


@pytest.mark.parametrize("ratio", RATIOS)
def test_low_pass_pan_is_pan_as_a_generic_sensor_saw_it(ratio: int) -> None:
    pan, ms = random_inputs(ratio)
    conditions = build_conditions(pan, ms, ratio, nominal(ratio))
    centre = ((ratio - 1) / 2,) * 2
    sampled = degrade(pan[0, 0].double().numpy(), (24, 24), ratio, centre, 0.30)
    expected = functional.interpolate(torch.from_numpy(sampled)[None, None], scale_factor=ratio, mode="bicubic")
    assert (conditions.lowpass[0] - expected).abs().max() < 1e-4
    assert conditions.lowpass[0].std() < 0.6 * pan.std()


def crest(image: np.ndarray[Any, Any], period: float) -> float:
    turns = np.exp(-2j * np.pi * np.arange(image.shape[-1]) / period)
    return float(-np.angle((image * turns).sum()) / (2 * np.pi) * period)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("axis", [0, 1])
def test_each_bands_own_phase_moves_it_by_sub_pixels(ratio: int, axis: int) -> None:
    """A wave sampled where each band really looks lies at one place on every scale, to 0.02 PAN px.

    Where a scale is no finer than MS, all its samples fall at one place between MS pixels, and there the cubic with
    a = -0.75 (its slopes are 1.5 times true) displaces by up to 0.048 MS px; on finer scales that averages out.
    """
    n, period_ms, at = 72, 12, 7.3
    period = ratio * period_ms
    phases = torch.tensor([[[0.0, 0.0], [1.37, -0.4], [-2.2, 3.9]]], dtype=torch.float64)
    bands = []
    for phase in phases[0, :, axis]:
        row = np.cos(2 * np.pi * (ratio * np.arange(n) + float(phase) - at) / period)
        bands.append(np.repeat(row[None], n, 0) if axis == 1 else np.repeat(row[:, None], n, 1))
    ms = torch.from_numpy(np.stack(bands)).float()[None]
    conditions = build_conditions(torch.zeros((1, 1, n * ratio, n * ratio)), ms, ratio, phases)
    for scale, image in enumerate(conditions.ms):
        pitch = 2**scale
        tolerance = 0.05 * ratio if pitch % ratio == 0 else 0.02
        whole_periods = slice(period // pitch, 5 * period // pitch)
        for band in image[0]:
            row = (band[:, 100 // pitch] if axis == 0 else band[100 // pitch]).numpy().astype(np.float64)
            found = crest(row[whole_periods], period / pitch) + whole_periods.start
            position = pitch * found + (pitch - 1) / 2
            assert (position - at + period / 2) % period - period / 2 == pytest.approx(0, abs=tolerance)


# --- modes ----------------------------------------------------------------------------------------------------------


def test_modes_differ_and_do_not_mix_in_a_batch() -> None:
    network = random_network(bands=2)
    pan, ms = random_inputs(4, bands=2, samples=2)
    conditions = build_conditions(pan, ms, 4, nominal(4, 2, 2))
    results = {pair: network(conditions, modes(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert (results[0, 0] - results[1, 1]).abs().mean() > 0.1
    for sample in range(2):
        for mode in range(2):
            same = [result[sample] for pair, result in results.items() if pair[sample] == mode]
            for one, other in pairwise(same):
                assert (one - other).abs().max() < 1e-5
    alone = network(build_conditions(pan[1:], ms[1:], 4, nominal(4, 2)), modes(PAN_MODE))
    assert (alone[0] - results[0, 1][1]).abs().max() < 1e-4


def test_weights_of_the_pan_mode_never_touch_the_ms_mode() -> None:
    network = random_network(bands=2)
    pan, ms = random_inputs(4, bands=2)
    before = {mode: run(network, pan, ms, 4, mode) for mode in (MS_MODE, PAN_MODE)}
    changed = 0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.rsplit(".", 1)[-1] in ("gamma", "beta", "select_ms", "select_pan"):
                parameter[PAN_MODE] += 1.0
                changed += 1
    assert changed == 5 * 2 + 3 * 2
    assert torch.equal(run(network, pan, ms, 4, MS_MODE), before[MS_MODE])
    assert (run(network, pan, ms, 4, PAN_MODE) - before[PAN_MODE]).abs().mean() > 0.01


def test_network_without_mars_has_one_mode() -> None:
    network = random_network(mars=False)
    assert {len(p) for name, p in network.named_parameters() if name.endswith(("gamma", "select_ms"))} == {1}
    pan, ms = random_inputs(4)
    assert run(network, pan, ms, 4).isfinite().all()


# --- what tiling leans on -------------------------------------------------------------------------------------------


def reach_of(network: PanCrafter, ratio: int) -> int:
    """Farthest PAN pixel outside a step-aligned core that its output depends on, measured by gradients.

    An MS pixel is as far away as the nearest PAN pixel of its footprint.
    """
    bands, bound = network.config.bands, network.config.reach_px(ratio)
    step = int(np.lcm(4, ratio))
    start = -(-(bound + 12) // step) * step
    side = 2 * start + step
    pan, ms = random_inputs(ratio, side // ratio, bands)
    pan.requires_grad_()
    ms.requires_grad_()
    output = network(build_conditions(pan, ms, ratio, nominal(ratio, bands)), modes(MS_MODE))
    core = slice(start, start + step)
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn((bands, step, step), generator=generator)
    # The farthest taps are faint: a large factor keeps their gradients out of float32's subnormal range.
    (output[0, :, core, core] * weights).sum().mul(1e12).backward()
    reaches = []
    for gradient, pitch in ((pan.grad, 1), (ms.grad, ratio)):
        assert gradient is not None
        touched = gradient[0].abs().amax(0)
        for axis in (0, 1):
            indices = torch.nonzero(touched.amax(1 - axis))[:, 0] * pitch
            reaches += [start - (int(indices.min()) + pitch - 1), int(indices.max()) - (start + step - 1)]
    return max(reaches)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    "config",
    [
        {"depth": (1, 1, 1), "attention": "none"},
        {"depth": (1, 2, 2), "attention": "bottleneck"},
        {"depth": (2, 1, 1), "attention": "all", "bands": 3},
        {"depth": (1, 1, 2), "attention": "all", "bands": 2, "split_pan": False},
    ],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)
def test_nothing_beyond_the_stated_reach_influences_an_output(ratio: int, config: dict[str, Any]) -> None:
    network = random_network(7, **config)
    bound = network.config.reach_px(ratio)
    assert bound * 0.6 < reach_of(network, ratio) <= bound


def test_reach_of_the_quality_network_is_tight() -> None:
    network = random_network(7, depth=(2, 2, 4), attention="all")
    bound = network.config.reach_px(4)
    found = reach_of(network, 4)
    assert 80 <= found <= bound <= 112


@pytest.mark.parametrize("ratio", RATIOS)
def test_moving_the_scene_moves_the_result(ratio: int) -> None:
    """Equivariant to shifts by lcm(4, ratio) PAN pixels: tiles cut there see what the whole scene sees."""
    network = random_network(4, bands=2)
    step = int(np.lcm(4, ratio))
    reach = -(-network.config.reach_px(ratio) // step) * step
    ms_px = (2 * reach + 4 * step) // ratio
    pan, ms = random_inputs(ratio, ms_px, bands=2)
    k = step // ratio
    whole = run(network, pan, ms, ratio)
    moved = run(network, pan[..., step:, 2 * step :], ms[..., k:, 2 * k :], ratio)
    core = moved[..., reach - step : -reach, reach - 2 * step : -reach]
    difference = core[..., step:, 2 * step :] - whole[..., step:, 2 * step :][..., reach:-reach, reach:-reach]
    assert core.shape[-1] > 2 * step
    assert difference.abs().max() < 2e-5
    # Shifted by less than the step it is another network: the check above could fail.
    if ratio != 3:
        other = run(network, pan.roll((ratio, ratio), (2, 3)), ms.roll((1, 1), (2, 3)), ratio)
        off = (
            other[..., reach + ratio : -reach, reach + ratio : -reach]
            - whole[..., reach : -reach - ratio, reach : -reach - ratio]
        )
        assert (off.abs().max() > 1e-3) == (ratio % 4 != 0)


def test_band_wise_weights_know_no_band_order() -> None:
    network = random_network(bands=1)
    pan, ms = random_inputs(4, bands=5)
    order = [3, 0, 4, 1, 2]

    def bands_in_turn(images: Tensor) -> Tensor:
        return torch.cat([run(network, pan, images[:, [b]], 4) for b in range(images.shape[1])], 1)

    assert torch.equal(bands_in_turn(ms[:, order]), bands_in_turn(ms)[:, order])


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, random_network(1, bands=2), {"steps": 7, "seed": 2025})
    return path


def test_checkpoint_round_trip(saved: Path) -> None:
    (saved.parent / "plain").touch()
    assert saved.stat().st_mode == (saved.parent / "plain").stat().st_mode, "as readable as any file"
    checkpoint = load_checkpoint(str(saved))
    original = random_network(1, bands=2)
    assert checkpoint.network.config == original.config
    for key, value in original.state_dict().items():
        assert torch.equal(checkpoint.network.state_dict()[key], value)
    assert checkpoint.training == {"steps": 7, "seed": 2025}
    assert (checkpoint.name, len(checkpoint.sha256)) == ("small", 64)
    assert not checkpoint.network.training
    assert not any(parameter.requires_grad for parameter in checkpoint.network.parameters())
    assert not list(saved.parent.glob("*.partial"))


def test_shipped_weights_load_by_name() -> None:
    checkpoint = load_checkpoint("open-compact")
    assert checkpoint.name == "open-compact"
    pan, ms = random_inputs(4, 16, bands=checkpoint.network.config.bands)
    conditions = build_conditions(pan, ms, 4, nominal(4, ms.shape[1]), torch.zeros(1, ms.shape[1], *pan.shape[-2:]))
    with torch.no_grad():
        assert checkpoint.network(conditions, modes(MS_MODE)).isfinite().all()


def test_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'no-such' not found: expected one of \['open-compact'.*or a .safetensors"):
        load_checkpoint("no-such")
    with pytest.raises(WeightsError, match="not found"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_checkpoint(str(saved))


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no network description; expected a checkpoint written by"):
        load_checkpoint(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("description", ["{", "{}x", '{"bands": 0}', '{"layers": 12}', "null"])
def test_description_of_another_kind(tmp_path: Path, description: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3, 3)}, path, {"network": description})
    with pytest.raises(WeightsError, match=r"other\.safetensors.*network description"):
        load_checkpoint(str(path))


def test_a_network_does_not_change_with_a_file_that_is_written_over(saved: Path) -> None:
    network = load_checkpoint(str(saved)).network
    with saved.open("r+b") as file:
        file.write(bytes(saved.stat().st_size))
    for key, value in random_network(1, bands=2).state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


@pytest.mark.parametrize("damage", ["shape", "missing", "unexpected"])
def test_tensors_that_do_not_fit_the_description(saved: Path, damage: str) -> None:
    tensors = load_file(saved)
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    if damage == "shape":
        tensors["head.weight"] = tensors["head.weight"][:1]
    elif damage == "missing":
        del tensors["stem.bias"]
    else:
        tensors["fourth_scale.weight"] = torch.zeros(1)
    save_file(tensors, saved, metadata)
    with pytest.raises(WeightsError, match="does not fit its own description"):
        load_checkpoint(str(saved))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"width": 20_000, "attention": "none"}, "tensors differ; .* is of shape"),
        ({"depth": [10**9, 1, 1]}, r"it has \d+ tensors for 1000000002 blocks or more"),
        ({"width": 16 * 10**30}, "[Oo]verflow"),
    ],
)
def test_a_description_that_asks_for_more_than_memory_holds(saved: Path, asked: dict[str, Any], found: str) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    metadata["network"] = json.dumps(json.loads(metadata["network"]) | asked)
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(WeightsError, match=f"does not fit its own description .*: .*{found}"):
        load_checkpoint(str(saved))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite(tmp_path: Path, value: float) -> None:
    """They would make every pixel of a product 0."""
    network = random_network(1)
    network.head.weight.detach()[0, 0, 1, 1] = value
    save_checkpoint(tmp_path / "broken.safetensors", network, {})
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors hold values that are not finite \(head\.weight\)"):
        load_checkpoint(str(tmp_path / "broken.safetensors"))


def test_shipped_file_with_another_hash(tmp_path: Path) -> None:
    """In a copy of the package, one changed byte of the weights is noticed before anything is loaded."""
    copy = tmp_path / "pancrafter"
    shutil.copytree(Path(pancrafter.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    weights = copy / "weights" / "open-compact.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(damaged)
    script = "from pancrafter.model.names import weights_sha256; weights_sha256('open-compact')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WeightsError: open-compact.safetensors has SHA-256" in done.stderr
    assert "the file is damaged; reinstall" in done.stderr


def test_conditions_are_three_scales_of_one_field() -> None:
    pan, ms = random_inputs(4, 16, bands=2)
    conditions = build_conditions(pan, ms, 4, nominal(4, 2))
    assert isinstance(conditions, Conditions)
    for scale in range(3):
        side = 64 // 2**scale
        assert conditions.ms[scale].shape == (1, 2, side, side)
        assert conditions.pan[scale].shape == conditions.lowpass[scale].shape == (1, 1, side, side)
    assert torch.equal(conditions.pan[0], pan)
    assert (conditions.ms[2] - ms).abs().max() < 1e-6


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("scale", range(SCALES))
def test_scales_hold_what_the_sparse_matrices_of_resampling_give(ratio: int, scale: int) -> None:
    """Every pixel, borders included, of bands and samples that each lie elsewhere; PAN lies at its own positions."""
    generator = np.random.default_rng(ratio)
    h, w, pitch = 24, 36, 2**scale
    pan, ms = generator.normal(size=(2, 1, h * ratio, w * ratio)), generator.normal(size=(2, 3, h, w))
    phases = generator.uniform(-5, 5, (2, 3, 2)) + (ratio - 1) / 2
    gains = (GENERIC_MTF_GAIN, 0.07)
    made = build_conditions(
        torch.from_numpy(pan).float(), torch.from_numpy(ms).float(), ratio, torch.from_numpy(phases), mtfs=gains
    )
    for n, band in np.ndindex(2, 3):
        expected = cubic_read(ms[n, band], made.ms[scale].shape[2:], pitch / ratio, phases[n, band], ratio)
        np.testing.assert_allclose(made.ms[scale][n, band], expected, atol=3e-6)
    centre = (ratio - 1) / 2
    for n in range(2):
        sigma, radius = mtf_sigma(gains[n], ratio), LOWPASS_RADIUS_MS_PX * ratio
        rows, cols = (gaussian_matrix(m, m * ratio, float(ratio), centre, sigma, radius) for m in (h, w))
        low = apply_yx(rows, cols, pan[n, 0])
        expected = cubic_read(low, made.lowpass[scale].shape[2:], pitch / ratio, (centre, centre), ratio)
        np.testing.assert_allclose(made.lowpass[scale][n, 0], expected, atol=3e-6)
        expected = cubic_read(pan[n, 0], made.pan[scale].shape[2:], pitch, (0, 0), 1)
        np.testing.assert_allclose(made.pan[scale][n, 0], expected, atol=3e-6)


def cubic_read(
    image: np.ndarray, shape_yx: tuple[int, ...], step: float, phase_yx: tuple[float, float], ratio: int
) -> np.ndarray:
    """``image`` at steps of so many of its pixels, where pixels of that pitch are centred."""
    first = (step * ratio - 1) / 2
    matrices = (
        cubic_matrix(n, size, step, (first - phase) / ratio)
        for n, size, phase in zip(shape_yx, image.shape, phase_yx, strict=True)
    )
    return apply_yx(*matrices, image)


def test_conditions_made_for_inference_do_not_spoil_later_gradients() -> None:
    pan, ms = random_inputs(4)
    with torch.inference_mode():
        build_conditions(pan, ms, 4, nominal(4))
    pan.requires_grad_()
    build_conditions(pan, ms, 4, nominal(4)).lowpass[2].sum().backward()
    assert pan.grad is not None
    assert pan.grad.sum() > 0


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("mtf", [Mtf(0.05), Mtf(0.3), Mtf(0.8), Mtf.of_half(0.7, 3.5)])
def test_all_of_what_a_step_leaves_is_a_second_step(ratio: int, mtf: Mtf) -> None:
    """As near as five pixels of MS allow; no share is one step, and shares end at 2."""
    image, stepped = back_projection(ratio, mtf)
    once = stepped(image)
    twice = stepped(once)
    inner = (slice(None), slice(None), slice(3 * ratio, -3 * ratio), slice(3 * ratio, -3 * ratio))
    assert (stepped(image, 1.0) - twice)[inner].norm() < 0.1 * (twice - once)[inner].norm()
    torch.testing.assert_close(stepped(image, 0.0), once)
    torch.testing.assert_close(stepped(image, 7.0), stepped(image, 2.0))


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("mtf", [Mtf(0.05), Mtf(0.3), Mtf(0.8), Mtf.of_half(0.7, 3.5)])
def test_all_of_what_further_steps_would_add_is_those_steps(ratio: int, mtf: Mtf) -> None:
    """Six steps one after the other; a share is of what each place would get, and what is even needs one step only."""
    image, stepped = back_projection(ratio, mtf)
    result = [image]
    for _ in range(2 + FURTHER_STEPS):
        result.append(stepped(result[-1]))
    margin = 4 * ratio
    inner = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    assert (stepped(image, 1.0, 1.0) - result[-1])[inner].norm() < 0.06 * (result[-1] - result[2])[inner].norm()
    half = (stepped(image, 0.3, 0.0) + stepped(image, 0.3, 1.0)) / 2
    torch.testing.assert_close(stepped(image, 0.3, 0.5), half, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stepped(image, 0.3, 0.0), stepped(image, 0.3))
    torch.testing.assert_close(stepped(image, 0.3, -7.0), stepped(image, 0.3, -1.0))
    flat, mtfs = torch.ones_like(image), torch.tensor([[mtf, mtf]], dtype=torch.float64)
    given = torch.cat([0 * flat, flat, flat], 1)
    levelled = reprojected(given, flat[..., ::ratio, ::ratio], ratio, nominal(ratio, 2), mtfs)
    torch.testing.assert_close(levelled, flat, atol=1e-5, rtol=0)


def test_configurations_of_before_have_one_share() -> None:
    """It was a choice of yes or no, in configurations and beside weights."""
    assert NetworkConfig.model_validate_json('{"weighs_ms": true}') == NetworkConfig(weighs_ms=1)
    assert NetworkConfig.model_validate_json('{"weighs_ms": false}').head_channels == NetworkConfig().bands


def back_projection(ratio: int, mtf: Mtf) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
    """An image, MS that it does not agree with, and a step of an image, with the shares that are given."""
    generator = torch.Generator().manual_seed(ratio)
    image = torch.randn(1, 2, 24 * ratio, 24 * ratio, generator=generator)
    ms = torch.randn(1, 2, 24, 24, generator=generator)
    phases, mtfs = nominal(ratio, 2), torch.tensor([[mtf, mtf]], dtype=torch.float64)

    def stepped(given: torch.Tensor, *shares: float) -> torch.Tensor:
        made = torch.cat([given, *(torch.full_like(given, share) for share in shares)], 1)
        return reprojected(made, ms, ratio, phases, mtfs)

    return image, stepped


def test_nothing_of_pan_is_unexplained_where_bands_make_it_each_at_its_place() -> None:
    rng, phases = np.random.default_rng(3), ((1.5, 1.5), (0.2, 3.1))
    ms = rng.normal(500, 50, (2, 8, 9)).astype(np.float32)
    pan = sum(w * upsample(band, (32, 36), 4, at) for w, band, at in zip((0.3, 0.6), ms, phases, strict=True)) + 40
    made = InjectionConstants(weights=(0.3, 0.6), offset=40, gains=(1, 1), explained=1)
    given = torch.tensor(pan[None, None], dtype=torch.float32), torch.from_numpy(ms[None])
    assert unexplained_pan(*given, 4, torch.tensor([phases], dtype=torch.float64), made).abs().max() < 1e-2
