"""The MS input put back into a result: what the sensor would see of it becomes what the sensor did see.

A step of iterative back-projection (Irani and Peleg 1991, "Improving resolution by image registration"): the result is
blurred and sampled as the sensor samples a band, what is missing there against the MS input is brought onto the PAN
grid and added. What lies beyond the MS resolution stays as the network made it. Why one step, and why the blur is
relative to PAN's: docs/decisions/0022-reprojection.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pancrafter.metrics import PhaseYX, shift_reach_px
from pancrafter.model.conditions import Reading, ms_at
from pancrafter.model.config import CUBIC_REACH_MS_PX
from pancrafter.resample import gaussian_taps, mtf_sigma

BLUR_RADIUS_MS_PX = 3
"""Support of the blur on each side, MS pixels: more than three standard deviations for any gain above 0.01."""


def reach_px(ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
    """Farthest pixel of the result before, per side, that one after depends on; PAN pixels."""
    return (BLUR_RADIUS_MS_PX + CUBIC_REACH_MS_PX) * ratio + shift_reach_px(phases_yx, ratio)


def reprojected(sharpened: Tensor, ms: Tensor, ratio: int, phases: Tensor, gains: Tensor) -> Tensor:
    """A result in agreement with its MS input.

    Args:
        sharpened: (n, B, H, W), in the units of ``ms``; H and W multiples of ``ratio``.
        ms: (n, B, H / ratio, W / ratio).
        ratio: PAN pixels per MS pixel.
        phases: (n, B, 2) where MS pixel 0 is centred on the PAN grid, in PAN pixels, rows first.
        gains: (n, B) MTF between the result and MS at the MS Nyquist frequency, 0 to 1 (``resample.relative_gain``).

    Returns:
        (n, B, H, W); at less than ``reach_px`` from the border it has seen the border, which repeats.
    """
    centres = phases.double().cpu().numpy()
    sigma = mtf_sigma(gains.double().cpu().numpy(), ratio)[..., None, None]
    rows, cols = (
        Reading.of(gaussian_taps(centres[..., axis, None], sigma, BLUR_RADIUS_MS_PX * ratio), ratio) for axis in (0, 1)
    )
    seen = cols.along(rows.along(sharpened, 2, ms.shape[2]), 3, ms.shape[3])
    return sharpened + ms_at(ms - seen, (sharpened.shape[2], sharpened.shape[3]), ratio, phases, 0)
