"""PAN and MS brought onto the three scales of the network, once per tile.

A scale s in {0, 1, 2} is a grid of pitch p = 2**s PAN pixels whose pixel i is centred at PAN index p*i + (p-1)/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pancrafter.classical import InjectionConstants
from pancrafter.model.config import LOWPASS_RADIUS_MS_PX
from pancrafter.resample import GENERIC_MTF_GAIN, Mtf, blur_taps, cubic_taps

SCALES = 3

BLOCK_OUTPUTS = 16
"""Outputs of a reading that one small matrix product makes: fewer cost calls, more are mostly products with zero."""


@dataclass(frozen=True)
class Conditions:
    """Inputs at the scales 1, 1/2, 1/4, each (n, channels, H/p, W/p), normalised to about [-1, 1].

    ``ms`` has one channel per band; ``pan`` and ``lowpass`` have one channel. ``injection``, at scale 1 only, has one
    channel per band: the PAN detail the band would take by Gram-Schmidt adaptive, in the band's normalised units.
    ``uncertainty`` (n or 1, 1, 1, 1) is as in ``tiles.Tile``: 1 as at full resolution, 0 where all is exact.
    """

    ms: tuple[Tensor, ...]
    pan: tuple[Tensor, ...]
    lowpass: tuple[Tensor, ...]
    uncertainty: Tensor
    injection: Tensor | None = None

    def samples(self, first: int, stop: int) -> Conditions:
        """Some of the samples; PAN that all of them share stays."""
        return Conditions(
            ms=tuple(part[first:stop] for part in self.ms),
            pan=tuple(part if len(part) == 1 else part[first:stop] for part in self.pan),
            lowpass=tuple(part if len(part) == 1 else part[first:stop] for part in self.lowpass),
            injection=None if self.injection is None else self.injection[first:stop],
            uncertainty=self.uncertainty if len(self.uncertainty) == 1 else self.uncertainty[first:stop],
        )


@dataclass(frozen=True)
class Reading:
    """Weights that read a row of pixels at equal steps: those of one period, which repeats ``advance`` pixels on.

    ``first`` (period) is the index of the first pixel read, ``weights`` (n or 1, c or 1, period, taps); samples and
    channels that start elsewhere have zeros in front.
    """

    first: tuple[int, ...]
    weights: NDArray[np.float32]
    advance: int

    @classmethod
    def of(cls, taps: tuple[NDArray[np.int64], NDArray[np.floating]], advance: int) -> Reading:
        """From the taps of one period, (n or 1, c or 1, period) and (n or 1, c or 1, period, taps)."""
        first, weights = taps
        start = first.min(axis=(0, 1))
        lag = first - start
        aligned = np.zeros((*first.shape, int(lag.max()) + weights.shape[-1]))
        np.put_along_axis(aligned, lag[..., None] + np.arange(weights.shape[-1]), weights, axis=-1)
        return cls(tuple(start.tolist()), aligned.astype(np.float32), advance)

    def along(self, image: Tensor, dim: int, count: int) -> Tensor:
        """``count`` outputs along axis 2 or 3 of (n, c, H, W); beyond the border pixels repeat."""
        matrix = torch.from_numpy(self._matrix).to(image.device)[:, :, None]
        block, seen = matrix.shape[-2:]
        step, start = self.advance * block // len(self.first), min(self.first)
        read = step * (-(-count // block) - 1) + seen
        before, after = max(0, -start), max(0, start + read - image.shape[dim])
        padded = pad(image, (0, 0, before, after) if dim == 2 else (before, after, 0, 0), mode="replicate")
        blocks = padded.narrow(dim, start + before, read).unfold(dim, seen, step)
        out = matrix @ blocks.transpose(-2, -1) if dim == 2 else blocks @ matrix.transpose(-2, -1)
        return out.flatten(dim, dim + 1).narrow(dim, 0, count)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        """Weights of about ``BLOCK_OUTPUTS`` outputs, some periods of them: (n or 1, c or 1, outputs, pixels read)."""
        period, taps = self.weights.shape[-2:]
        periods = max(1, BLOCK_OUTPUTS // period)
        first = [f - min(self.first) + self.advance * run for run in range(periods) for f in self.first]
        matrix = np.zeros((*self.weights.shape[:2], len(first), max(first) + taps), np.float32)
        for output, start in enumerate(first):
            matrix[..., output, start : start + taps] = self.weights[..., output % period, :]
        return matrix


def _cubic(pitch: int, ratio: int, starts: NDArray[np.floating]) -> Reading:
    """Reads at ``pitch / ratio`` of a pixel from ``starts`` (n or 1, c or 1), pixels, by cubic convolution."""
    step = Fraction(pitch, ratio)
    positions = starts[..., None] + pitch / ratio * np.arange(step.denominator)
    return Reading.of(cubic_taps(positions), step.numerator)


@lru_cache(maxsize=64)
def _shrinking(pitch: int) -> Reading:
    return _cubic(pitch, 1, np.full((1, 1), (pitch - 1) / 2))


@lru_cache(maxsize=64)
def _lowpass(ratio: int, mtfs: tuple[Mtf | float, ...]) -> Reading:
    gain, shape = np.array([Mtf.of(mtf) for mtf in mtfs]).T[..., None, None]
    centre = np.full((len(mtfs), 1, 1), (ratio - 1) / 2)
    return Reading.of(blur_taps(centre, ratio, gain, shape, LOWPASS_RADIUS_MS_PX * ratio), ratio)


def _shrunk(reading: Reading, image: Tensor, factor: int) -> Tensor:
    """Both axes of an image read at steps of ``factor`` pixels."""
    height, width = image.shape[-2:]
    return reading.along(reading.along(image, 2, height // factor), 3, width // factor)


def ms_at(ms: Tensor, shape_yx: tuple[int, int], ratio: int, phases: Tensor, scale: int) -> Tensor:
    """``ms`` (n, B, h, w) at a scale, at ``phases`` (n or 1, B or 1, 2), y and x, in PAN pixels."""
    pitch = 2**scale
    starts = ((pitch - 1) / 2 - phases.double().cpu().numpy()) / ratio
    wide = _cubic(pitch, ratio, starts[..., 1]).along(ms, 3, shape_yx[1] // pitch)
    return _cubic(pitch, ratio, starts[..., 0]).along(wide, 2, shape_yx[0] // pitch)


def unexplained_pan(pan: Tensor, ms: Tensor, ratio: int, phases: Tensor, constants: InjectionConstants) -> Tensor:
    """PAN minus the mix of bands that explains it at MS scale: the detail that ``classical.gsa`` injects.

    Args:
        pan: (n, 1, H, W) DN.
        ms: (n, B, H / ratio, W / ratio) DN, all bands of the scene.
        ratio: PAN pixels per MS pixel.
        phases: (n, B, 2) as in ``build_conditions``.
        constants: The scene's band weights.

    Returns:
        (n, 1, H, W) DN of PAN.
    """
    shape_yx = (pan.shape[-2], pan.shape[-1])
    detail = pan - constants.offset
    for b, weight in enumerate(constants.weights):
        detail = detail - weight * ms_at(ms[:, b : b + 1], shape_yx, ratio, phases[:, b : b + 1], 0)
    return detail


def build_conditions(
    pan: Tensor,
    ms: Tensor,
    ratio: int,
    phases: Tensor,
    injection: Tensor | None = None,
    mtfs: Sequence[Mtf | float] = (GENERIC_MTF_GAIN,),
    uncertainty: Sequence[float] = (1.0,),
) -> Conditions:
    """Bring a tile's PAN and MS onto the network's scales.

    Args:
        pan: (n, 1, H, W) float32, H and W multiples of 4 and of ``ratio``.
        ms: (n, B, H / ratio, W / ratio) float32; its nominal footprint is that of ``pan``.
        ratio: PAN pixels per MS pixel.
        phases: (n, B, 2) where MS pixel 0 is centred on the PAN grid, in PAN pixels, rows first; measured band
            shifts included.
        injection: (n, B, H, W) float32, for networks with ``injected_detail``; see ``Conditions``.
        mtfs: n or 1, MTF of the low-pass PAN; networks with ``matched_lowpass`` are told that of the scene's MS
            relative to PAN's.
        uncertainty: n or 1, see ``Conditions``; for networks with ``told_uncertainty``.

    Returns:
        Conditions whose low-pass PAN is blurred by that MTF and sampled at the edge-aligned MS positions, whatever
        ``phases`` are.
    """
    height, width = pan.shape[-2:]
    nominal = (ratio - 1) / 2
    lowpass = _shrunk(_lowpass(ratio, tuple(mtfs)), pan, ratio)
    lp_phase = torch.full((1, 1, 2), nominal)
    return Conditions(
        ms=tuple(ms_at(ms, (height, width), ratio, phases, s) for s in range(SCALES)),
        pan=(pan, *(_shrunk(_shrinking(2**s), pan, 2**s) for s in range(1, SCALES))),
        lowpass=tuple(ms_at(lowpass, (height, width), ratio, lp_phase, s) for s in range(SCALES)),
        injection=injection,
        uncertainty=torch.tensor(uncertainty, dtype=pan.dtype, device=pan.device)[:, None, None, None],
    )
