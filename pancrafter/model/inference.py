"""MS mode of the network, forward only: what the engine runs in place of ``PanCrafter.forward``.

Same mathematics, less work: modulation and biases are folded into norms and convolutions, linear combinations of PAN
inputs into their weights, CM3A's three projections into one; every stage covers only the pixels that the wanted core
depends on; full-resolution stages run in strips, so that at most one of their maps is ever held whole. The plain
forward pass is the reference: tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, gelu, layer_norm, pad, silu

from pancrafter.model.conditions import Conditions
from pancrafter.model.config import NetworkConfig
from pancrafter.model.layers import NORM_EPS, CrossModalityAttention, ResBlock
from pancrafter.model.network import MS_MODE, PanCrafter, Stage

Span = tuple[int, int]
"""First and one past the last row (or column) of a region."""

Region = tuple[Span, Span]
"""Rows and columns."""

STRIP_PX = 2**17
"""Pixels of a full-resolution strip. Measured at 664 and 1176 px tiles: smaller costs overlap, larger only memory."""


@dataclass(frozen=True)
class Needed:
    """The span of each stage, along one axis, on which the core of a tile depends; at the stage's own scale.

    A stage computed on its span is right on what the next one reads; only the border pixels that nobody reads see the
    zero padding of the cut. At the border of the tile itself a span ends there, as the plain network does. What skips
    read lies within what the deeper stage reads.
    """

    core: Span
    decode0: Span
    decode1: Span
    bottleneck: Span
    encode1: Span
    encode0: Span

    @classmethod
    def by(cls, config: NetworkConfig, core: Span, size: int) -> Needed:
        """Follow the network backwards from ``core``; ``size`` is that of the tile at scale 0, a multiple of 4."""
        full, half, quarter = (2 * blocks for blocks in config.depth)
        half += 2 * config.attention_at(1)
        quarter += 2 * config.attention_at(2)
        decode0 = _grown(core, full + 1, size)
        decode1 = _grown(_halved(decode0), half, size // 2)
        bottleneck = _grown(_halved(decode1), quarter, size // 4)
        encode1 = _grown(_beneath(bottleneck), half, size // 2)
        encode0 = _grown(_beneath(encode1), full + 1, size)
        return cls(core, decode0, decode1, bottleneck, encode1, encode0)


def _grown(span: Span, margin: int, size: int) -> Span:
    """Wider by a margin, even, inside the tile."""
    return max(span[0] - margin, 0) // 2 * 2, min(-(-(span[1] + margin) // 2) * 2, size)


def _halved(span: Span) -> Span:
    return span[0] // 2, -(-span[1] // 2)


def _beneath(span: Span) -> Span:
    """What a 3x3 convolution of stride 2 reads to make a span."""
    return max(2 * span[0] - 1, 0), 2 * span[1]


class MsNetwork:
    """A trained network fixed to MS mode, on one device in one precision.

    Features, weights and norms are in ``dtype``, the residual base is float32. Norms accumulate in float32; those of
    centred maps on a CPU round what they divide by to ``dtype``.
    """

    def __init__(self, network: PanCrafter, dtype: torch.dtype = torch.float32) -> None:
        self.config = network.config
        self._dtype = dtype
        self._stem = _Convolution(_stem_weight(network), network.stem.bias, dtype)
        self._down1 = _Convolution.of(network.down1, dtype)
        self._down2 = _Convolution.of(network.down2, dtype)
        self._up1 = _Convolution.of(network.up1, dtype)
        self._up0 = _Convolution.of(network.up0, dtype)
        self._encode0, self._encode1, self._bottleneck, self._decode1 = (
            _MsStage(stage, network.config, dtype)
            for stage in (network.encode0, network.encode1, network.bottleneck, network.decode1)
        )
        self._decode0 = _MsStage(network.decode0, network.config, dtype, centred=True)
        self._head_norm = _CentredNorm(network.head_norm.weight, network.head_norm.bias, dtype)
        self._head = _Convolution.of(network.head, dtype)

    def __call__(self, conditions: Conditions, core: Region | None = None) -> Tensor:
        """Sharpened core of a tile, as of ``PanCrafter.forward``: (n, head channels, core rows, core columns) float32.

        Args:
            conditions: The tile's inputs on three scales; PAN may have one sample for all of MS.
            core: The part that is wanted, by default the whole tile.
        """
        base = conditions.ms[0]
        height, width = base.shape[-2:]
        (top, bottom), (left, right) = core or ((0, height), (0, width))
        rows = Needed.by(self.config, (top, bottom), height)
        cols = Needed.by(self.config, (left, right), width)
        skip0, x = self._encode_full(conditions, rows, cols)
        x = self._encode1(x, _at(conditions, 1, (rows.encode1, cols.encode1), self._dtype))
        skip1 = _cut(x, (rows.decode1, cols.decode1), (rows.encode1, cols.encode1))
        x = _cut_strided(self._down2, x, (rows.bottleneck, cols.bottleneck), (rows.encode1, cols.encode1))
        x = self._bottleneck(x, _at(conditions, 2, (rows.bottleneck, cols.bottleneck), self._dtype))
        quarter = _halved(rows.decode1), _halved(cols.decode1)
        x = self._up1.transposed(_cut(x, quarter, (rows.bottleneck, cols.bottleneck)))
        x = torch.cat([x, skip1], 1)
        del skip1
        x = self._decode1(x, _at(conditions, 1, (rows.decode1, cols.decode1), self._dtype))
        half = _halved(rows.decode0), _halved(cols.decode0)
        made = self._decode_full(_cut(x, half, (rows.decode1, cols.decode1)), skip0, rows, cols)
        made[:, : self.config.bands].add_(base[..., top:bottom, left:right])
        return made

    def _encode_full(self, conditions: Conditions, rows: Needed, cols: Needed) -> tuple[Tensor, Tensor]:
        """First skip on the spans of ``decode0`` and input of ``encode1``, strip by strip."""
        n, width, halo = len(conditions.ms[0]), self.config.width, 2 * self.config.depth[0] + 1
        skip = _empty((n, width, *_shape(rows.decode0, cols.decode0)), conditions, self._dtype)
        down = _empty((n, width, *_shape(rows.encode1, cols.encode1)), conditions, self._dtype)
        size = conditions.ms[0].shape[-2]
        for half in _strips(rows.encode1, (cols.encode0[1] - cols.encode0[0]) * 2 * n):
            kept = (2 * half[0], 2 * half[1])
            span = _grown(_beneath(half), halo, size)
            x = self._stem(self._stem_input(conditions, (span, cols.encode0)))
            x = self._encode0(x, ())
            made = _cut_strided(self._down1, x, (half, cols.encode1), (span, cols.encode0))
            down[..., half[0] - rows.encode1[0] : half[1] - rows.encode1[0], :] = made
            first, last = max(kept[0], rows.decode0[0]), min(kept[1], rows.decode0[1])
            if first < last:
                target = skip[..., first - rows.decode0[0] : last - rows.decode0[0], :]
                target.copy_(_cut(x, ((first, last), cols.decode0), (span, cols.encode0)))
        return skip, down

    def _stem_input(self, conditions: Conditions, region: Region) -> Tensor:
        ms, lowpass, pan = _at(conditions, 0, region, self._dtype)
        parts = [ms, lowpass, pan] if self.config.split_pan else [ms, pan]
        if conditions.injection is not None:
            (top, bottom), (left, right) = region
            parts.append(conditions.injection[..., top:bottom, left:right].to(self._dtype))
        if self.config.told_uncertainty:
            parts.append(conditions.uncertainty.to(self._dtype).expand(len(ms), 1, *ms.shape[2:]))
        return torch.cat(parts, 1)

    def _decode_full(self, x: Tensor, skip: Tensor, rows: Needed, cols: Needed) -> Tensor:
        """Last stage and head on the core, strip by strip; ``x`` is at half resolution on the spans of ``decode0``."""
        n, channels, halo = len(x), self.config.head_channels, 2 * self.config.depth[0] + 1
        out = torch.empty((n, channels, *_shape(rows.core, cols.core)), device=x.device)
        start, size = rows.decode0[0], rows.decode0[1]
        for strip in _strips(rows.core, (cols.decode0[1] - cols.decode0[0]) * n):
            span = _grown(strip, halo, size)
            above = slice((span[0] - start) // 2, (span[1] - start) // 2)
            up = self._up0.transposed(x[..., above, :])
            y = torch.cat([up, skip[..., span[0] - start : span[1] - start, :]], 1)
            del up
            y = self._decode0(y, ())
            y = self._head(silu(self._head_norm(y), inplace=True))
            out[..., strip[0] - rows.core[0] : strip[1] - rows.core[0], :] = _cut(
                y, (strip, cols.core), (span, cols.decode0)
            )
        return out


def working_bytes(
    config: NetworkConfig, dtype: torch.dtype, tile_px: int, core_px: int, bands: int, samples: int = 1
) -> int:
    """Memory of one pass of a ``MsNetwork`` over samples, and of the conditions of all bands: an upper estimate.

    Beside the first skip (on the core) there are either seven maps at half resolution, twice as wide two of them,
    or those of a strip.
    """
    feature = config.width * torch.finfo(dtype).bits // 8
    half, strip = 7 * tile_px // 4, 7 * min(STRIP_PX, tile_px)
    conditions = 4 * tile_px * (bands * (2 if config.injected_detail else 1) + 2) * 1.4
    made = 4 * core_px * config.head_channels
    return int(samples * (feature * (core_px + tile_px // 2 + max(half, strip)) + made) + conditions)


# --- stages ---------------------------------------------------------------------------------------------------------


class _MsStage:
    """ResBlocks and CM3A of a stage; consumes its input.

    ``centred`` leaves the mean over the channels of each pixel out of what its blocks give, for a stage that only norms
    read.
    """

    def __init__(self, stage: Stage, config: NetworkConfig, dtype: torch.dtype, *, centred: bool = False) -> None:
        self._blocks = [
            _MsResBlock(block, dtype, centred=centred) for block in stage.blocks if isinstance(block, ResBlock)
        ]
        self._attention = _MsAttention(stage.attention, config, dtype) if stage.attention is not None else None

    def __call__(self, x: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        for block in self._blocks:
            x = block(x)
        return x if self._attention is None else self._attention(x, conditions)


class _MsResBlock:
    """A ResBlock whose second norm holds the modulation: weight (1 + gamma) g, bias (1 + gamma) b + beta."""

    def __init__(self, block: ResBlock, dtype: torch.dtype, *, centred: bool) -> None:
        scale, shift = 1 + block.gamma[MS_MODE], block.beta[MS_MODE]
        given = _without_mean if centred else torch.Tensor.detach
        self._norm1 = _Norm(block.norm1.weight, block.norm1.bias, dtype)
        self._norm2 = _CentredNorm(scale * block.norm2.weight, scale * block.norm2.bias + shift, dtype)
        self._conv1 = _Convolution(_without_mean(block.conv1.weight), _without_mean(block.conv1.bias), dtype)  # type: ignore[arg-type]  # present
        skip = block.skip if isinstance(block.skip, torch.nn.Conv2d) else None
        bias = block.conv2.bias if skip is None else block.conv2.bias + skip.bias  # type: ignore[operator]  # present
        self._conv2 = _Convolution(given(block.conv2.weight), given(bias), dtype)  # type: ignore[arg-type]  # present
        self._skip = None if skip is None else _Pointwise(given(skip.weight), None, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        h = self._conv1(silu(self._norm1(x), inplace=True))
        h = self._conv2(silu(self._norm2(h), inplace=True))
        return h.add_(x if self._skip is None else self._skip(x))


class _MsAttention:
    """CM3A with one convolution for query, keys and values of both branches, and the gates folded into projections.

    Inputs of that convolution are MS (which is the query's condition too), features, low-pass PAN and PAN.
    """

    def __init__(self, attention: CrossModalityAttention, config: NetworkConfig, dtype: torch.dtype) -> None:
        self._heads, width = config.heads, config.width
        bands = config.bands
        query, ms = attention.query.weight.detach(), attention.key_value_ms.weight.detach()
        # without scale and shift torch takes twice the time
        self._norm = _Norm(query.new_ones(width), query.new_zeros(width), dtype)
        pan = attention.key_value_pan.weight.detach()
        guide = _fold_split(pan[:, width:]) if config.split_pan else pan[:, width:].sum(1, keepdim=True)
        guides = guide.shape[1]
        joint = query.new_zeros(5 * width, bands + width + guides, 3, 3)
        joint[:width, : bands + width] = query * (width // self._heads) ** -0.5
        joint[width : 3 * width, : bands + width] = ms
        joint[3 * width :, bands : bands + width] = pan[:, :width]
        joint[3 * width :, bands + width :] = guide
        self._split = config.split_pan
        self._project = _Convolution(joint, None, dtype)
        gates = attention.select_ms[MS_MODE].detach(), attention.select_pan[MS_MODE].detach()
        projections = attention.project_ms, attention.project_pan
        weights = [g[:, None, None, None] * p.weight for g, p in zip(gates, projections, strict=True)]
        biases = [g * p.bias for g, p in zip(gates, projections, strict=True)]  # type: ignore[operator]  # present
        self._out = _Pointwise(torch.cat(weights, 1), biases[0] + biases[1], dtype)
        self._expand = _Pointwise(attention.expand.weight, attention.expand.bias, dtype)
        self._contract = _Pointwise(attention.contract.weight, attention.contract.bias, dtype)

    def __call__(self, x: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        ms, lowpass, pan = conditions
        guides = [lowpass, pan] if self._split else [pan]
        projected = self._project(torch.cat([ms, self._norm(x), *guides], 1))
        query, key_ms, value_ms, key_pan, value_pan = projected.chunk(5, 1)
        branches = [(key_ms, value_ms), (key_pan, value_pan)]
        mixed = torch.cat([_local_attention(query, key, value, self._heads) for key, value in branches], 1)
        x = x.add_(self._out(mixed))
        return x.add_(self._contract(gelu(self._expand(self._norm(x)), approximate="tanh")))


def _local_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """As in ``layers``, channels last in place of channels first; ``query`` is scaled already."""
    _, c, height, width = query.shape
    q, k, v = (part.permute(0, 2, 3, 1).unflatten(-1, (heads, c // heads)) for part in (query, key, value))
    k, v = pad(k, (0, 0, 0, 0, 1, 1, 1, 1)), pad(v, (0, 0, 0, 0, 1, 1, 1, 1))
    shifts = [(dy, dx) for dy in range(3) for dx in range(3)]
    logits = torch.stack([(q * k[:, y : y + height, x : x + width]).sum(-1) for y, x in shifts])
    weights = logits.softmax(dim=0)[..., None]
    out = torch.zeros_like(q)
    for weight, (y, x) in zip(weights, shifts, strict=True):
        # torch multiplies bfloat16 eleven times as slowly by one that repeats along the last axis
        out.addcmul_(weight.expand_as(out).contiguous(), v[:, y : y + height, x : x + width])
    return out.flatten(-2).permute(0, 3, 1, 2)


# --- layers ---------------------------------------------------------------------------------------------------------


class _Norm:
    """LayerNorm over channels, of channels-last maps."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.detach().to(dtype), bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return layer_norm(last, last.shape[-1:], self._weight, self._bias, NORM_EPS).permute(0, 3, 1, 2)


class _CentredNorm(_Norm):
    """The same of maps whose mean over channels is 0 at every pixel; on a CPU in their place, in half the time."""

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().__call__(x)
        last, channels = x.permute(0, 2, 3, 1), x.shape[1]
        scale = torch.linalg.vector_norm(last, dim=-1, keepdim=True)
        scale = scale.square_().div_(channels).add_(NORM_EPS).rsqrt_()
        return torch.addcmul(self._bias, last.mul_(scale), self._weight, out=last).permute(0, 3, 1, 2)


def _without_mean(weight: Tensor) -> Tensor:
    """Weights or biases (channel, ...) of a convolution, less what they add to all the channels that it makes.

    A norm over these channels takes that away.
    """
    return weight.detach() - weight.detach().mean(0)


class _Convolution:
    """Weights of a convolution in channels-last memory and the precision of the run."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, stride: int = 1) -> None:
        self._weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._stride = stride

    @classmethod
    def of(cls, layer: torch.nn.Conv2d | torch.nn.ConvTranspose2d, dtype: torch.dtype) -> _Convolution:
        return cls(layer.weight, layer.bias, dtype, layer.stride[0])

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return conv2d(x, self._weight, self._bias, stride=self._stride, padding=self._weight.shape[-1] // 2)

    def transposed(self, x: Tensor) -> Tensor:
        """Every pixel becomes 2 x 2."""
        x = x.contiguous(memory_format=torch.channels_last)
        return conv_transpose2d(x, self._weight, self._bias, stride=self._stride)


class _Pointwise:
    """A 1x1 convolution; rows become samples, because torch sends one large sample to a slow path (2x, measured)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * height, 1, width, channels).permute(0, 3, 1, 2)
        out = conv2d(rows, self._weight, self._bias).permute(0, 2, 3, 1)
        return out.reshape(n, height, width, -1).permute(0, 3, 1, 2)


def _fold_split(weight: Tensor) -> Tensor:
    """Weights for low-pass and PAN from those for low-pass, PAN and their difference."""
    low, pan, high = weight.split(1, 1)
    return torch.cat([low - high, pan + high], 1)


def _stem_weight(network: PanCrafter) -> Tensor:
    """Weights of the stem for MS, low-pass PAN, PAN and the rest, from those of the network's own order."""
    weight, bands = network.stem.weight.detach(), network.config.bands
    if not network.config.split_pan:
        return weight
    ms, pan, low, high, rest = weight.split([bands, 1, 1, 1, weight.shape[1] - bands - 3], 1)
    return torch.cat([ms, low - high, pan + high, rest], 1)


# --- regions --------------------------------------------------------------------------------------------------------


def _at(conditions: Conditions, scale: int, region: Region, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """MS, low-pass PAN and PAN of a region at a scale, each for every sample."""
    (top, bottom), (left, right) = region
    ms = conditions.ms[scale]
    parts = (ms, conditions.lowpass[scale], conditions.pan[scale])
    return tuple(part[..., top:bottom, left:right].expand(len(ms), -1, -1, -1).to(dtype) for part in parts)


def _strips(rows: Span, columns: int) -> Iterator[Span]:
    """Parts of ``rows`` of about ``STRIP_PX`` pixels, all but the last of an even number of rows."""
    step = max(STRIP_PX // columns // 2 * 2, 16)
    for first in range(rows[0], rows[1], step):
        yield first, min(first + step, rows[1])


def _shape(rows: Span, cols: Span) -> tuple[int, int]:
    return rows[1] - rows[0], cols[1] - cols[0]


def _cut(x: Tensor, region: Region, place: Region) -> Tensor:
    """The part of ``x``, which covers ``place``, that covers ``region``."""
    (rows, cols), (top, left) = region, (place[0][0], place[1][0])
    return x[..., rows[0] - top : rows[1] - top, cols[0] - left : cols[1] - left]


def _cut_strided(convolution: _Convolution, x: Tensor, region: Region, place: Region) -> Tensor:
    """A convolution of stride 2 on ``x``, which covers ``place`` (even), on the half-size ``region``."""
    halved = (place[0][0] // 2, 0), (place[1][0] // 2, 0)
    return _cut(convolution(x), region, halved)


def _empty(shape: tuple[int, ...], conditions: Conditions, dtype: torch.dtype) -> Tensor:
    device = conditions.ms[0].device
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
