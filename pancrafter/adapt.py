"""Adapting a network to one scene with nothing but the scene: a few patches, a few parameters, a bounded time.

Three terms are lowered together: the scene one scale down, where its own MS is the truth (Scarpa, Vitale and Cozzolino
2018, "Target-adaptive CNN-based pansharpening"); the distance of the degraded result from the MS input; and local
correlation with PAN as far as the low-pass pair has it already (Ciotola et al. 2022, "Pansharpening by convolutional
neural networks in the full resolution framework"). Other patches of the scene decide whether the outcome is kept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pancrafter.assess import BORDER_REDUCED_PX, reduce_tile
from pancrafter.engine import (
    Floats,
    NetworkSharpener,
    ScenePixels,
    SharpenerSpec,
    Tile,
    band_phases,
    build_sharpener,
    valid_window,
)
from pancrafter.errors import WeightsError
from pancrafter.evaluate import Method, network_method, sharpen_tile
from pancrafter.model.network import MS_MODE
from pancrafter.model.weights import save_checkpoint
from pancrafter.resample import degrading_matrix, upsample
from pancrafter.types import Record, ValueRange

ADAPTED_PARAMETERS = ("gamma", "beta", "select_ms", "select_pan", "head.weight", "head.bias")
"""Ends of the names of what is adapted: modulation, attention gates and the last convolution."""

MIN_PATCH_PX = 96
"""Smaller scenes leave no patch whose core is free of its border."""

MARGIN_MS_PX = 6
"""MS pixels at the border of a patch that the full-resolution terms leave out: they have seen the border."""


class AdaptLimits(Record):
    """How much may be spent."""

    steps: int = 60
    seconds: float = 60.0
    patches: int = Field(default=8, description="A third of them validate.")
    patch_px: int = 256
    crop_px: int = 128
    learning_rate: float = 5e-4
    spatial_weight: float = 0.05
    check_every: int = 10
    seed: int = 0


DEFAULT_LIMITS = AdaptLimits()


class Terms(Record):
    """The three terms on the validation patches, in normalised units; lower is better."""

    reduced: float | None = Field(description="None where no patch is large enough for it.")
    reprojection: float
    spatial: float

    def total(self, spatial_weight: float) -> float:
        """What is lowered."""
        return (self.reduced or 0.0) + self.reprojection + spatial_weight * self.spatial

    def no_worse_than(self, other: Terms) -> bool:
        """Whether neither distance grew."""
        return self.reprojection <= other.reprojection and (self.reduced or 0.0) <= (other.reduced or 0.0)


@dataclass(frozen=True, eq=False)
class Adapted:
    """The sharpener to use, and why it is the one: ``kept`` says that the adapted parameters won."""

    sharpener: NetworkSharpener
    kept: bool
    reason: str
    steps: int
    seconds: float
    before: Terms | None = None
    after: Terms | None = None


def adapted_method(name: str, sharpener: NetworkSharpener, limits: AdaptLimits | None = None) -> Method:
    """A contestant of ``evaluate`` that adapts to each pair it is given; it never sees the truth it is scored with."""
    plain = network_method(name, sharpener)

    def run(tile: Tile, gains: tuple[float, ...], pan_gain: float) -> Floats:
        fitted = sharpener.fitted_to(tile, gains, pan_gain)
        return sharpen_tile(adapt(fitted, cut_patches(tile, limits), gains, limits).sharpener, tile)

    return replace(plain, sharpen=run)


def adapt_to_scene(
    spec: SharpenerSpec, store: ScenePixels, gains: Sequence[float], path: Path, limits: AdaptLimits | None = None
) -> tuple[SharpenerSpec, Adapted]:
    """Adapt the network of ``spec`` to a staged scene and write it to ``path``, where workers find it.

    Returns:
        The specification to sharpen with, which is ``spec`` itself where adapting was of no use, and what was done.

    Raises:
        WeightsError: The weights cannot be loaded, or take another number of bands than the scene has.
    """
    sharpener = build_sharpener(spec)
    assert isinstance(sharpener, NetworkSharpener), "only networks adapt"
    done = adapt(sharpener, patches_of_store(store, limits), gains, limits)
    if not done.kept:
        return spec, done
    checkpoint = done.sharpener.checkpoint
    save_checkpoint(path, checkpoint.network, {**checkpoint.training, "adapted_from": checkpoint.sha256})
    return spec.model_copy(update={"weights": str(path)}), done


def cut_patches(tile: Tile, limits: AdaptLimits | None = None) -> list[Tile]:
    """The patches of an in-memory pair with the most PAN texture, spread without overlap; none if it is too small."""
    limits = limits or DEFAULT_LIMITS
    side = _patch_side(tile.pan.shape, tile.ratio, limits)
    if side < MIN_PATCH_PX:
        return []
    patches = [_cut(tile, corner, side) for corner in _corners(tile.pan.shape, side)]
    return _most_textured(patches, limits.patches)


def patches_of_store(store: ScenePixels, limits: AdaptLimits | None = None) -> list[Tile]:
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
        if on_ms[0].stop > store.ms_shape_yx[0] or on_ms[1].stop > store.ms_shape_yx[1]:
            continue
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
    sharpener: NetworkSharpener, patches: Sequence[Tile], gains: Sequence[float], limits: AdaptLimits | None = None
) -> Adapted:
    """Fine-tune a copy of the network on some patches of a scene and keep it only if other patches agree.

    Args:
        sharpener: The network as it is; never changed.
        patches: Parts of one scene; every third one validates.
        gains: MTF at the MS Nyquist frequency, per band.
        limits: What may be spent.

    Returns:
        The adapted sharpener, or the one given where there are fewer than three patches, nothing was gained on the
        validation patches, or either distance there (reduced scale, reprojection) grew.

    Raises:
        WeightsError: The network takes another number of bands than the scene has.
    """
    limits, started = limits or DEFAULT_LIMITS, time.perf_counter()
    _require_bands(sharpener, patches)
    if len(patches) < 3:
        return Adapted(sharpener, kept=False, reason="too few patches", steps=0, seconds=0)
    validation, training = list(patches[1::3]), [p for i, p in enumerate(patches) if i % 3 != 1]
    network = copy.deepcopy(sharpener.checkpoint.network).to(sharpener.device)
    copied = replace(sharpener, checkpoint=replace(sharpener.checkpoint, network=network))
    before = best = _measured(copied, validation, gains)
    best_state: dict[str, Tensor] | None = None
    step = 0
    for step in _descend(copied, training, gains, limits, started):
        if step % limits.check_every == 0 or step == limits.steps:
            now = _measured(copied, validation, gains)
            if now.no_worse_than(before) and now.total(limits.spatial_weight) < best.total(limits.spatial_weight):
                best, best_state = now, {k: v.detach().clone() for k, v in network.state_dict().items()}
    seconds = time.perf_counter() - started
    if best_state is None:
        return Adapted(
            sharpener, kept=False, reason="no gain on other patches", steps=step, seconds=seconds, before=before
        )
    network.load_state_dict(best_state)
    network.eval().requires_grad_(requires_grad=False)
    return Adapted(
        copied, kept=True, reason="better on other patches", steps=step, seconds=seconds, before=before, after=best
    )


def _require_bands(sharpener: NetworkSharpener, patches: Sequence[Tile]) -> None:
    wanted = sharpener.checkpoint.network.config.bands
    if patches and len(patches[0].ms) % wanted:
        raise WeightsError(
            f"weights {sharpener.checkpoint.name} take {wanted} bands at once, the scene has {len(patches[0].ms)}; "
            "choose weights for this sensor or band-wise ones"
        )


def _descend(
    sharpener: NetworkSharpener, patches: Sequence[Tile], gains: Sequence[float], limits: AdaptLimits, started: float
) -> Iterator[int]:
    """Take steps until one of the limits is reached, yielding how many were taken."""
    chosen = [p for name, p in sharpener.checkpoint.network.named_parameters() if name.endswith(ADAPTED_PARAMETERS)]
    for parameter in chosen:
        parameter.requires_grad = True
    optimiser = torch.optim.Adam(chosen, limits.learning_rate)
    rng = np.random.default_rng(limits.seed)
    for step in range(1, limits.steps + 1):
        if time.perf_counter() - started > limits.seconds:
            return
        patch = patches[int(rng.integers(len(patches)))]
        loss = _loss(sharpener, patch, _random_crop(patch, limits.crop_px, rng), gains, limits.spatial_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(chosen, 1.0)
        optimiser.step()
        yield step


def _loss(
    sharpener: NetworkSharpener, patch: Tile, crop: Tile, gains: Sequence[float], spatial_weight: float
) -> Tensor:
    reprojection, spatial = _full_terms(sharpener, crop, gains)
    loss = reprojection + spatial_weight * spatial
    reduced = _reduced_term(sharpener, patch, gains)
    return loss if reduced is None else loss + reduced


@torch.no_grad()
def _measured(sharpener: NetworkSharpener, patches: Sequence[Tile], gains: Sequence[float]) -> Terms:
    full = [[float(term) for term in _full_terms(sharpener, patch, gains)] for patch in patches]
    reduced = [
        float(term) for term in (_reduced_term(sharpener, patch, gains) for patch in patches) if term is not None
    ]
    reprojection, spatial = np.mean(full, axis=0)
    return Terms(
        reduced=float(np.mean(reduced)) if reduced else None, reprojection=float(reprojection), spatial=float(spatial)
    )


def _reduced_term(sharpener: NetworkSharpener, patch: Tile, gains: Sequence[float]) -> Tensor | None:
    """Mean absolute error against the patch's own MS, one scale down."""
    reduced = reduce_tile(patch, gains, float(np.mean(sharpener.relative_mtf or gains)))
    if reduced is None:
        return None
    sharpened = _forward(sharpener.one_scale_down(gains), reduced.tile)
    truth = _normalised(reduced.truth, patch.ms_ranges).to(sharpened.device)
    inner = slice(BORDER_REDUCED_PX, -BORDER_REDUCED_PX)
    return (sharpened - truth)[:, inner, inner].abs().mean()


def _full_terms(sharpener: NetworkSharpener, tile: Tile, gains: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Distance of the degraded result from MS, and the local correlation with PAN that is missing.

    Degraded by the MTF relative to PAN's where the sharpener is told it, otherwise by ``gains``.
    """
    sharpened = _forward(sharpener, tile)
    device, ratio, margin = sharpened.device, tile.ratio, MARGIN_MS_PX
    between = sharpener.relative_mtf or gains
    ms = _normalised(tile.ms, tile.ms_ranges).to(device)
    degraded = torch.stack(
        [
            _matrix(ms.shape[1], tile.pan.shape[0], ratio, phase[0], gain).to(device)
            @ band
            @ _matrix(ms.shape[2], tile.pan.shape[1], ratio, phase[1], gain).to(device).T
            for band, phase, gain in zip(sharpened, tile.phases_yx, between, strict=True)
        ]
    )
    reprojection = (degraded - ms)[:, margin:-margin, margin:-margin].abs().mean()
    pan = _normalised(tile.pan[None], [tile.pan_range]).to(device)
    expanded, low = _low_pass_pair(tile, gains)
    wanted = _local_correlation(expanded.to(device), low.to(device), ratio)
    found = _local_correlation(sharpened, pan.expand_as(sharpened), ratio)
    inner = slice(margin * ratio, -margin * ratio)
    spatial = (wanted - found).clamp(min=0)[:, inner, inner].mean()
    return reprojection, spatial


def _low_pass_pair(tile: Tile, gains: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Each band, and PAN as the band's optics would have seen it, both up-sampled to the PAN grid."""
    shape, ratio = (tile.pan.shape[0], tile.pan.shape[1]), tile.ratio
    expanded, lows = [], []
    for band, phase, gain in zip(tile.ms, tile.phases_yx, gains, strict=True):
        rows = degrading_matrix(tile.ms.shape[1], shape[0], ratio, phase[0], gain)
        cols = degrading_matrix(tile.ms.shape[2], shape[1], ratio, phase[1], gain)
        expanded.append(upsample(band, shape, ratio, phase))
        lows.append(upsample((cols @ (rows @ tile.pan).T).T, shape, ratio, phase))
    return torch.from_numpy(np.stack(expanded)).float(), torch.from_numpy(np.stack(lows)).float()


def _local_correlation(a: Tensor, b: Tensor, ratio: int) -> Tensor:
    """Correlation of two (band, y, x) images in windows of 2 ratio + 1 pixels around every pixel, -1 to 1."""
    size = 2 * ratio + 1

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x[None], size, stride=1, padding=ratio, count_include_pad=False)[0]

    a, b = a - a.mean(dim=(1, 2), keepdim=True), b - b.mean(dim=(1, 2), keepdim=True)
    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    var_a, var_b = (mean(a * a) - mean_a**2).clamp(min=0), (mean(b * b) - mean_b**2).clamp(min=0)
    return covariance / (var_a * var_b + 1e-8).sqrt()


def _forward(sharpener: NetworkSharpener, tile: Tile) -> Tensor:
    """The result in normalised units, (band, y, x), with gradients where they are wanted."""
    network = sharpener.checkpoint.network
    mode = torch.full((1,), MS_MODE, device=sharpener.device)
    whole = slice(0, tile.pan.shape[0]), slice(0, tile.pan.shape[1])
    made = [(bands, network(conditions, mode)) for bands, conditions in sharpener.conditions(tile)]
    return torch.cat([sharpener.reprojected(result, tile, whole, bands)[0] for bands, result in made])


def _normalised(values: Floats, ranges: Sequence[ValueRange]) -> Tensor:
    low = np.array([r.low for r in ranges], np.float32)[:, None, None]
    high = np.array([r.high for r in ranges], np.float32)[:, None, None]
    return torch.from_numpy((2 * (values - low) / (high - low) - 1).astype(np.float32))


def _matrix(n_ms: int, n_pan: int, ratio: int, phase: float, gain: float) -> Tensor:
    return torch.from_numpy(degrading_matrix(n_ms, n_pan, ratio, phase, gain).toarray()).float()


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


def _random_crop(patch: Tile, side_px: int, rng: np.random.Generator) -> Tile:
    step = 4 * patch.ratio
    side = min(side_px, patch.pan.shape[0]) // step * step
    y, x = (int(rng.integers(0, (n - side) // patch.ratio + 1)) * patch.ratio for n in patch.pan.shape)
    return _cut(patch, (y, x), side)


def _most_textured(patches: list[Tile], count: int) -> list[Tile]:
    """The ``count`` patches with the largest mean step between PAN neighbours, in their order over the scene."""
    texture = [float(np.abs(np.diff(patch.pan, axis=1)).mean()) for patch in patches]
    keep = sorted(np.argsort(texture)[::-1][:count].tolist())
    return [patches[i] for i in keep]
