"""Adapting a network to one scene with nothing but the scene: one scale down, its own MS is the truth.

Patches of the scene are degraded as its sensor would have degraded them (``assess.reduce_tile``, by the MTF measured on
the scene), the network is taught to restore them, and other patches decide whether what it learnt is kept: Scarpa,
Vitale and Cozzolino (2018), "Target-adaptive CNN-based pansharpening".
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pancrafter.assess import Reduced, reduce_tile
from pancrafter.engine import NetworkSharpener, SharpenerSpec, build_sharpener, to_unit
from pancrafter.evaluate import Method, network_method, sharpen_tile
from pancrafter.model.names import file_sha256
from pancrafter.model.network import MS_MODE
from pancrafter.model.weights import save_checkpoint
from pancrafter.resample import Mtf, mean_mtf
from pancrafter.store import whole_window
from pancrafter.tiles import Floats, ScenePixels, Tile, band_phases, valid_window
from pancrafter.types import Record

MIN_PATCH_PX = 96
"""Smaller scenes leave no patch that is worth degrading."""

EDGE_PX = 4
"""Pixels at the border of a degraded patch that do not count: beyond it the patch is only repeated."""


class AdaptLimits(Record):
    """How much may be spent."""

    steps: int = 60
    seconds: float = 60.0
    patches: int = Field(default=12, description="A third of them validate.")
    patch_px: int = 512
    learning_rate: float = 1e-4
    check_every: int = 10
    seed: int = 0


DEFAULT_LIMITS = AdaptLimits()


@dataclass(frozen=True, eq=False)
class Adapted:
    """The sharpener to use, and why it is the one: ``kept`` says that the adapted parameters won."""

    sharpener: NetworkSharpener
    kept: bool
    reason: str
    steps: int
    seconds: float
    before: float | None = None
    """Mean absolute error on the patches that decide, normalised units."""
    after: float | None = None


def adapted_method(name: str, sharpener: NetworkSharpener) -> Method:
    """A contestant of ``evaluate`` that adapts to each pair it is given; it never sees the truth it is scored with."""
    plain = network_method(name, sharpener)

    def run(tile: Tile, mtfs: tuple[Mtf | float, ...], pan_gain: float) -> Floats:
        fitted = sharpener.fitted_to(tile, mtfs, pan_gain)
        return sharpen_tile(adapt(fitted, cut_patches(tile), mtfs).sharpener, tile)

    return replace(plain, sharpen=run)


def adapt_to_scene(
    spec: SharpenerSpec, store: ScenePixels, mtfs: Sequence[Mtf | float], path: Path, limits: AdaptLimits | None = None
) -> tuple[SharpenerSpec, Adapted]:
    """Adapt the network of ``spec`` to a staged scene and write it to ``path``, where workers find it.

    Returns:
        The specification to sharpen with, which is ``spec`` itself where adapting was of no use, and what was done.

    Raises:
        WeightsError: The weights cannot be loaded.
        BandCountError: They take another number of bands than the scene has.
    """
    sharpener = build_sharpener(spec)
    assert isinstance(sharpener, NetworkSharpener), "only networks adapt"
    done = adapt(sharpener, patches_of_store(store, limits), mtfs, limits)
    if not done.kept:
        return spec, done
    save_checkpoint(path, done.sharpener.checkpoint.network, done.sharpener.checkpoint.training)
    return spec.model_copy(update={"weights": str(path), "weights_sha256": file_sha256(path)}), done


def cut_patches(tile: Tile, limits: AdaptLimits | None = None) -> list[Tile]:
    """The patches of an in-memory pair with the most PAN texture, spread without overlap; none if it is too small."""
    limits = limits or DEFAULT_LIMITS
    side = _patch_side(tile.pan.shape, tile.ratio, limits)
    if side < MIN_PATCH_PX:
        return []
    patches = [_cut(tile, corner, side) for corner in _corners(tile.pan.shape, side)]
    return _most_textured(patches, limits.patches)


def patches_of_store(store: ScenePixels, limits: AdaptLimits | None) -> list[Tile]:
    """The same of a staged scene, from up to five times as many candidates over the scene, all fully valid."""
    limits, staged = limits or DEFAULT_LIMITS, store.staged
    side, ratio = _patch_side(store.pan_shape_yx, staged.grid.ratio, limits), staged.grid.ratio
    if side < MIN_PATCH_PX:
        return []
    corners = _corners(store.pan_shape_yx, side)
    picks = np.linspace(0, len(corners) - 1, min(5 * limits.patches, len(corners))).round().astype(int)
    tiles = []
    for y, x in (corners[i] for i in dict.fromkeys(picks.tolist())):
        window = (slice(y, y + side), slice(x, x + side))
        on_ms = (slice(y // ratio, (y + side) // ratio), slice(x // ratio, (x + side) // ratio))
        if valid_window(store, window).all():
            tiles.append(
                Tile(
                    pan=store.read_pan(window).astype(np.float32),
                    ms=store.read_ms(on_ms).astype(np.float32),
                    ratio=ratio,
                    phases_yx=band_phases(staged),
                    pan_range=staged.pan_range,
                    ms_ranges=staged.ms_ranges,
                )
            )
    return _most_textured(tiles, limits.patches)


def adapt(
    sharpener: NetworkSharpener, patches: Sequence[Tile], mtfs: Sequence[Mtf | float], limits: AdaptLimits | None = None
) -> Adapted:
    """Fine-tune a copy of the network on some patches of a scene and keep it only if other patches agree.

    Args:
        sharpener: The network as it is; never changed.
        patches: Parts of one scene; every third one decides.
        mtfs: MTF per band.
        limits: What may be spent.

    Returns:
        The adapted sharpener, or the one given where there are fewer than three patches or nothing was gained on those
        that decide.

    Raises:
        BandCountError: The network takes another number of bands than the scene has.
    """
    limits, started = limits or DEFAULT_LIMITS, time.perf_counter()
    if patches:
        sharpener.require_bands(len(patches[0].ms))
    blur = mean_mtf(sharpener.relative_mtf or mtfs)
    pairs = [pair for pair in (reduce_tile(patch, mtfs, blur, least_px=0) for patch in patches) if pair is not None]
    if len(pairs) < 3:
        return Adapted(sharpener, kept=False, reason="too few patches", steps=0, seconds=0)
    deciding, training = pairs[1::3], [pair for i, pair in enumerate(pairs) if i % 3 != 1]
    network = copy.deepcopy(sharpener.checkpoint.network).to(sharpener.device)
    copied = replace(sharpener, checkpoint=replace(sharpener.checkpoint, network=network))
    copied = copied.one_scale_down(mtfs)
    before = best = _error_on(copied, deciding)
    best_state: dict[str, Tensor] | None = None
    step = 0
    for due in _descend(copied, training, limits, started):
        step += 1
        if due:
            now = _error_on(copied, deciding)
            if now < best:
                best, best_state = now, {k: v.detach().clone() for k, v in network.state_dict().items()}
    seconds = time.perf_counter() - started
    if best_state is None:
        return Adapted(
            sharpener, kept=False, reason="no gain on other patches", steps=step, seconds=seconds, before=before
        )
    network.load_state_dict(best_state)
    network.eval().requires_grad_(requires_grad=False)
    adapted = replace(sharpener, checkpoint=replace(sharpener.checkpoint, network=network))
    return Adapted(
        adapted, kept=True, reason="better on other patches", steps=step, seconds=seconds, before=before, after=best
    )


def _descend(
    sharpener: NetworkSharpener, pairs: Sequence[Reduced], limits: AdaptLimits, started: float
) -> Iterator[bool]:
    """Take steps until one of the limits is reached, yielding after each whether to judge what was learnt now."""
    parameters = list(sharpener.checkpoint.network.requires_grad_().parameters())
    optimiser = torch.optim.Adam(parameters, limits.learning_rate)
    rng = np.random.default_rng(limits.seed)
    for step in range(1, limits.steps + 1):
        optimiser.param_groups[0]["lr"] = limits.learning_rate * 0.5 * (1 + math.cos(math.pi * step / limits.steps))
        loss = _error(sharpener, _turned(pairs[int(rng.integers(len(pairs)))], rng))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        is_last = step == limits.steps or time.perf_counter() - started > limits.seconds
        yield is_last or step % limits.check_every == 0
        if is_last:
            return


@torch.no_grad()
def _error_on(sharpener: NetworkSharpener, pairs: Sequence[Reduced]) -> float:
    return float(np.mean([float(_error(sharpener, pair)) for pair in pairs]))


def _error(sharpener: NetworkSharpener, pair: Reduced) -> Tensor:
    """Mean absolute error against the truth of a degraded patch, in normalised units."""
    sharpened = _forward(sharpener, pair.tile)
    truth = to_unit(torch.from_numpy(pair.truth), pair.tile.ms_ranges).to(sharpened.device)
    inner = slice(EDGE_PX, -EDGE_PX)
    return (sharpened - truth)[:, inner, inner].abs().mean()


def _turned(pair: Reduced, rng: np.random.Generator) -> Reduced:
    """The pair mirrored and transposed at random; degraded MS lies edge-aligned, so phases stay."""
    flip_y, flip_x, turn = rng.integers(2, size=3).astype(bool)

    def oriented(values: Floats) -> Floats:
        values = values[..., ::-1, :] if flip_y else values
        values = values[..., ::-1] if flip_x else values
        return np.ascontiguousarray(np.swapaxes(values, -1, -2) if turn else values)

    return Reduced(replace(pair.tile, pan=oriented(pair.tile.pan), ms=oriented(pair.tile.ms)), oriented(pair.truth))


def _forward(sharpener: NetworkSharpener, tile: Tile) -> Tensor:
    """The result in normalised units, (band, y, x), with gradients where they are wanted."""
    network = sharpener.checkpoint.network
    mode = torch.full((1,), MS_MODE, device=sharpener.device)
    given = torch.cat([network(conditions, mode) for conditions in sharpener.conditions(tile)])
    return torch.cat([made for _, made in sharpener.finished(given, tile, whole_window(tile.pan.shape))])


def _patch_side(shape_yx: Sequence[int], ratio: int, limits: AdaptLimits) -> int:
    """As large as wanted, but at least two fit along each axis; a multiple of 4 and the ratio."""
    step = 4 * ratio
    return min(limits.patch_px, *(n // 2 for n in shape_yx)) // step * step


def _corners(shape_yx: Sequence[int], side: int) -> list[tuple[int, int]]:
    rows, cols = (range(0, n - side + 1, side) for n in shape_yx)
    return [(y, x) for y in rows for x in cols]


def _cut(tile: Tile, start_yx: tuple[int, int], side: int) -> Tile:
    r = tile.ratio
    y, x = start_yx
    return replace(
        tile,
        pan=tile.pan[y : y + side, x : x + side],
        ms=tile.ms[:, y // r : (y + side) // r, x // r : (x + side) // r],
    )


def _most_textured(patches: list[Tile], count: int) -> list[Tile]:
    """The ``count`` patches with the largest mean step between PAN neighbours, in their order over the scene."""
    texture = [float(np.abs(np.diff(patch.pan, axis=1)).mean()) for patch in patches]
    keep = sorted(np.argsort(texture)[::-1][:count].tolist())
    return [patches[i] for i in keep]
