"""The MS input put back into a result: what the sensor would see of it becomes what the sensor did see.

A step of iterative back-projection (Irani and Peleg 1991, "Improving resolution by image registration"): the result is
blurred and sampled as the sensor samples a band, what is missing there against the MS input is brought onto the PAN
grid and added. What lies beyond the MS resolution stays as the network made it. Why the blur is relative to PAN's:
docs/decisions/0022-reprojection.md. A step leaves some of what is missing, because up-sampling and blur weaken fine
detail; how much of that is added too, and of what further steps would add, the network says, pixel by pixel:
docs/decisions/0027-how-far-to-follow-ms.md and 0030-further-steps.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pancrafter.metrics import PhaseYX, shift_reach_px
from pancrafter.model.conditions import Reading, ms_at
from pancrafter.model.config import CUBIC_REACH_MS_PX
from pancrafter.resample import SHAPED_RADIUS_MS_PX, blur_taps, cubic_taps, spread

SHARES = (-1.0, 2.0)
"""Least and largest share of what one step leaves, and of what further steps would add, that is added."""

BLUR_RADIUS_MS_PX = SHAPED_RADIUS_MS_PX
"""Support of the blur on each side, MS pixels: more than three standard deviations of a Gaussian of gain above 0.01."""

SEEN_RADIUS_MS_PX = 2
"""Support of what the sensor sees of one up-sampled MS pixel, per side, MS pixels; a Gaussian loses less than 1 %."""

FURTHER_STEPS = 4
"""Steps after the second whose sum is added by a share of its own."""

FURTHER_RADIUS_MS_PX = 4
"""Support of that sum's kernel on each side, MS pixels."""


def reach_px(ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
    """Farthest pixel of the result before, per side, that one after depends on; PAN pixels."""
    return (BLUR_RADIUS_MS_PX + FURTHER_RADIUS_MS_PX + CUBIC_REACH_MS_PX) * ratio + shift_reach_px(phases_yx, ratio)


def reprojected(made: Tensor, ms: Tensor, ratio: int, phases: Tensor, mtfs: Tensor) -> Tensor:
    """A result in agreement with its MS input.

    Args:
        made: What the network gives, (n, B to 3 B, H, W): the result in the units of ``ms``, then the share that is
            added of what one step leaves, then of what ``FURTHER_STEPS`` would add after that; what it does not give
            is not added. H and W are multiples of ``ratio``.
        ms: (n, B, H / ratio, W / ratio).
        ratio: PAN pixels per MS pixel.
        phases: (n, B, 2) where MS pixel 0 is centred on the PAN grid, in PAN pixels, rows first.
        mtfs: (n, B, 2) MTF between the result and MS (``resample.relative_mtf``), gain and shape.

    Returns:
        (n, B, H, W); at less than ``reach_px`` from the border it has seen the border, which repeats.
    """
    centres = phases.double().cpu().numpy()
    gain, shape = (mtfs[..., [i]].double().cpu().numpy() for i in (0, 1))
    rows, cols = (
        Reading.of(blur_taps(centres[..., [axis]], ratio, gain, shape, BLUR_RADIUS_MS_PX * ratio), ratio)
        for axis in (0, 1)
    )
    sharpened, *shares = made.split(ms.shape[1], dim=1)
    seen = cols.along(rows.along(sharpened, 2, ms.shape[2]), 3, ms.shape[3])
    missing, shape_yx = ms - seen, (made.shape[2], made.shape[3])
    result: Tensor = sharpened + ms_at(missing, shape_yx, ratio, phases, 0)
    seen_again = _seen_again(gain, shape, ratio)
    for share, more in zip(shares, (_left, _further), strict=False):
        result.addcmul_(share.clamp(*SHARES), ms_at(more(missing, seen_again), shape_yx, ratio, phases, 0))
    return result


def _seen_again(gain: NDArray[np.float64], shape: NDArray[np.float64], ratio: int) -> Reading:
    """What a sensor of this MTF sees of an image that was up-sampled from its own pixels, along one axis.

    ``gain`` and ``shape`` are (n, B, 1).
    """
    radius = BLUR_RADIUS_MS_PX * ratio
    places = np.arange(-radius, radius + 1) if ratio % 2 else np.arange(-radius, radius) + 0.5  # around an MS pixel
    blur = spread(places / ratio, gain, shape)
    first, weights = cubic_taps(places / ratio)
    read = np.zeros((len(places), 2 * (BLUR_RADIUS_MS_PX + 3) + 1))
    np.put_along_axis(read, first[:, None] + np.arange(4) + read.shape[1] // 2, weights, axis=1)
    around = slice(read.shape[1] // 2 - SEEN_RADIUS_MS_PX, read.shape[1] // 2 + SEEN_RADIUS_MS_PX + 1)
    seen = (blur @ read)[..., around]
    seen /= seen.sum(axis=-1, keepdims=True)
    return Reading((-SEEN_RADIUS_MS_PX,), seen[..., None, :].astype(np.float32), 1)


def _left(missing: Tensor, seen_again: Reading) -> Tensor:
    """What is still missing after one step, on the MS grid."""
    _, _, rows, cols = missing.shape
    return missing - seen_again.along(seen_again.along(missing, 2, rows), 3, cols)


def _further(missing: Tensor, seen_again: Reading) -> Tensor:
    """What ``FURTHER_STEPS`` steps after the second would add, on the MS grid.

    Each adds what the one before left, which is (1 - K) of what that added, K what is seen of an up-sampled image: the
    sum of the second and further powers of 1 - K.
    """
    n, bands, radius = *missing.shape[:2], FURTHER_RADIUS_MS_PX
    edge = 4 * FURTHER_STEPS * SEEN_RADIUS_MS_PX  # the highest power fits, so that nothing wraps around
    kernel = seen_again.weights[:, :, 0]
    along = np.zeros((*kernel.shape[:2], edge))
    along[..., np.arange(-SEEN_RADIUS_MS_PX, SEEN_RADIUS_MS_PX + 1)] = kernel
    response = np.fft.fft(along).real  # symmetric
    unseen = 1 - response[..., :, None] * response[..., None, :]
    summed = np.fft.ifft2(sum(unseen ** (2 + step) for step in range(FURTHER_STEPS))).real
    around = np.arange(-radius, radius + 1)
    further = summed[..., around[:, None], around]
    further[..., radius, radius] -= further.sum(axis=(-2, -1))  # what is missing everywhere is added by one step
    weights = torch.from_numpy(np.broadcast_to(further, (n, bands, *further.shape[2:])).astype(np.float32))
    padded = pad(missing, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    return conv2d(padded, weights.flatten(0, 1)[:, None].to(missing.device), groups=n * bands).view_as(missing)
