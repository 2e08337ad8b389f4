"""The MS input put back into a result: what the sensor would see of it becomes what the sensor did see.

A step of iterative back-projection (Irani and Peleg 1991, "Improving resolution by image registration"): the result is
blurred and sampled as the sensor samples a band, what is missing there against the MS input is brought onto the PAN
grid and added. What lies beyond the MS resolution stays as the network made it. Why the blur is relative to PAN's:
docs/decisions/0022-reprojection.md. A step leaves some of what is missing, because up-sampling and blur weaken fine
detail; how much of that is added too the network says, pixel by pixel: docs/decisions/0027-how-far-to-follow-ms.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pancrafter.metrics import PhaseYX, shift_reach_px
from pancrafter.model.conditions import Reading, ms_at
from pancrafter.model.config import CUBIC_REACH_MS_PX
from pancrafter.resample import blur_taps, cubic_taps, spread

SHARES = (-1.0, 2.0)
"""Least and largest share of what one step leaves that is added."""

BLUR_RADIUS_MS_PX = 3
"""Support of the blur on each side, MS pixels: more than three standard deviations of a Gaussian of gain above 0.01."""

SEEN_RADIUS_MS_PX = 2
"""Support of what the sensor sees of one up-sampled MS pixel, per side, MS pixels; a Gaussian loses less than 1 %."""


def reach_px(ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
    """Farthest pixel of the result before, per side, that one after depends on; PAN pixels."""
    return (BLUR_RADIUS_MS_PX + SEEN_RADIUS_MS_PX + CUBIC_REACH_MS_PX) * ratio + shift_reach_px(phases_yx, ratio)


def reprojected(made: Tensor, ms: Tensor, ratio: int, phases: Tensor, mtfs: Tensor) -> Tensor:
    """A result in agreement with its MS input.

    Args:
        made: What the network gives, (n, B or 2 B, H, W): the result in the units of ``ms``, then the share of what one
            step leaves that is added, none where there is no more; H and W multiples of ``ratio``.
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
    sharpened, share = made[:, : ms.shape[1]], made[:, ms.shape[1] :]
    seen = cols.along(rows.along(sharpened, 2, ms.shape[2]), 3, ms.shape[3])
    missing, shape_yx = ms - seen, (made.shape[2], made.shape[3])
    once = sharpened + ms_at(missing, shape_yx, ratio, phases, 0)
    if share.shape[1] == 0:
        return once
    seen_again = _seen_again(gain, shape, ratio)
    left = missing - seen_again.along(seen_again.along(missing, 2, ms.shape[2]), 3, ms.shape[3])
    return once.addcmul(share.clamp(*SHARES), ms_at(left, shape_yx, ratio, phases, 0))


def _seen_again(gain: NDArray[np.float64], shape: NDArray[np.float64], ratio: int) -> Reading:
    """What a sensor of this MTF sees of an image that was up-sampled from its own pixels, along one axis.

    ``gain`` and ``shape`` are (n, B, 1).
    """
    radius = BLUR_RADIUS_MS_PX * ratio
    places = np.arange(-radius, radius + 1) + (ratio - 1) % 2 / 2  # of PAN pixels around an MS pixel
    blur = spread(places / ratio, gain, shape)
    first, weights = cubic_taps(places / ratio)
    read = np.zeros((len(places), 2 * (BLUR_RADIUS_MS_PX + 3) + 1))
    np.put_along_axis(read, first[:, None] + np.arange(4) + read.shape[1] // 2, weights, axis=1)
    around = slice(read.shape[1] // 2 - SEEN_RADIUS_MS_PX, read.shape[1] // 2 + SEEN_RADIUS_MS_PX + 1)
    seen = (blur @ read)[..., around]
    seen /= seen.sum(axis=-1, keepdims=True)
    return Reading((-SEEN_RADIUS_MS_PX,), seen[..., None, :].astype(np.float32), 1)
