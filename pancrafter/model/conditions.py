"""PAN and MS brought onto the three scales of the network, once per tile.

A scale s in {0, 1, 2} is a grid of pitch p = 2**s PAN pixels whose pixel i is centred at PAN index p*i + (p-1)/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pancrafter.classical import InjectionConstants
from pancrafter.model.config import LOWPASS_RADIUS_MS_PX
from pancrafter.resample import GENERIC_MTF_GAIN, cubic_matrix, gaussian_matrix, mtf_sigma

SCALES = 3


@dataclass(frozen=True)
class Conditions:
    """Inputs at the scales 1, 1/2, 1/4, each (n, channels, H/p, W/p), normalised to about [-1, 1].

    ``ms`` has one channel per band; ``pan`` and ``lowpass`` have one channel. ``injection``, at scale 1 only, has one
    channel per band: the PAN detail the band would take by Gram-Schmidt adaptive, in the band's normalised units.
    """

    ms: tuple[Tensor, ...]
    pan: tuple[Tensor, ...]
    lowpass: tuple[Tensor, ...]
    injection: Tensor | None = None

    def samples(self, first: int, stop: int) -> Conditions:
        """Some of the samples; PAN that all of them share stays."""
        return Conditions(
            ms=tuple(part[first:stop] for part in self.ms),
            pan=tuple(part if len(part) == 1 else part[first:stop] for part in self.pan),
            lowpass=tuple(part if len(part) == 1 else part[first:stop] for part in self.lowpass),
            injection=None if self.injection is None else self.injection[first:stop],
        )


@lru_cache(maxsize=256)
def _ms_rows(n_pan: int, n_ms: int, ratio: int, phase: float, scale: int) -> Tensor:
    pitch = 2**scale
    matrix = cubic_matrix(n_pan // pitch, n_ms, pitch / ratio, ((pitch - 1) / 2 - phase) / ratio)
    return torch.from_numpy(matrix.toarray()).float()


@lru_cache(maxsize=64)
def _pan_rows(n_pan: int, scale: int) -> Tensor:
    pitch = 2**scale
    return torch.from_numpy(cubic_matrix(n_pan // pitch, n_pan, pitch, (pitch - 1) / 2).toarray()).float()


@lru_cache(maxsize=64)
def _lowpass_rows(n_pan: int, ratio: int) -> Tensor:
    sigma = mtf_sigma(GENERIC_MTF_GAIN, ratio)
    matrix = gaussian_matrix(n_pan // ratio, n_pan, float(ratio), (ratio - 1) / 2, sigma, LOWPASS_RADIUS_MS_PX * ratio)
    return torch.from_numpy(matrix.toarray()).float()


def _resample(rows_y: Tensor, rows_x: Tensor, image: Tensor) -> Tensor:
    """Apply (..., H', H) and (..., W', W) matrices to (n, c, H, W); leading axes broadcast over (n, c)."""
    device = image.device
    return rows_y.to(device) @ image @ rows_x.to(device).transpose(-1, -2)


def ms_at(ms: Tensor, shape_yx: tuple[int, int], ratio: int, phases: Tensor, scale: int) -> Tensor:
    """``ms`` (n, B, h, w) at a scale, at ``phases`` (n or 1, B or 1, 2), y and x, in PAN pixels."""
    height, width = ms.shape[-2:]
    flat = phases.reshape(-1, 2).tolist()
    rows_y = torch.stack([_ms_rows(shape_yx[0], height, ratio, y, scale) for y, _ in flat])
    rows_x = torch.stack([_ms_rows(shape_yx[1], width, ratio, x, scale) for _, x in flat])
    samples_bands = phases.shape[:2]
    return _resample(rows_y.unflatten(0, samples_bands), rows_x.unflatten(0, samples_bands), ms)


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
    pan: Tensor, ms: Tensor, ratio: int, phases: Tensor, injection: Tensor | None = None
) -> Conditions:
    """Bring a tile's PAN and MS onto the network's scales.

    Args:
        pan: (n, 1, H, W) float32, H and W multiples of 4 and of ``ratio``.
        ms: (n, B, H / ratio, W / ratio) float32; its nominal footprint is that of ``pan``.
        ratio: PAN pixels per MS pixel.
        phases: (n, B, 2) where MS pixel 0 is centred on the PAN grid, in PAN pixels, rows first; measured band
            shifts included.
        injection: (n, B, H, W) float32, for networks with ``injected_detail``; see ``Conditions``.

    Returns:
        Conditions whose low-pass PAN is a Gaussian of the generic MTF sampled at the nominal MS positions (3.3).
    """
    height, width = pan.shape[-2:]
    nominal = (ratio - 1) / 2
    lowpass = _resample(_lowpass_rows(height, ratio), _lowpass_rows(width, ratio), pan)
    lp_phase = torch.full((1, 1, 2), nominal)
    return Conditions(
        ms=tuple(ms_at(ms, (height, width), ratio, phases, s) for s in range(SCALES)),
        pan=(pan, *(_resample(_pan_rows(height, s), _pan_rows(width, s), pan) for s in range(1, SCALES))),
        lowpass=tuple(ms_at(lowpass, (height, width), ratio, lp_phase, s) for s in range(SCALES)),
        injection=injection,
    )
