"""PAN put back into a result: fine detail that PAN has and the mix of the sharpened bands has not goes to the bands.

The mix of a scene's bands that explains its PAN (``classical.fit_injection``) must explain PAN of a sharp image too. A
network that sees one band at a time cannot know what the others have taken of PAN's detail; what all of them together
have taken too much or too little is seen once they are mixed. Only detail finer than MS counts: a mix that explains
PAN less well in some places is no error of the result. docs/decisions/0032-pan-put-back.md
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

SHARE = 0.75
"""Share of what is missing that is put back."""

BLUR_MS_PX = 0.4
"""Standard deviation of the Gaussian that fine detail is left of, MS pixels; cut at three of them."""


@dataclass(frozen=True)
class Mix:
    """How bands make PAN, and what they take of its detail, all in normalised units.

    ``weights`` (band) give PAN from the bands up to a constant; a band takes ``gains`` (band) times what is missing.
    """

    weights: tuple[float, ...]
    gains: tuple[float, ...]


def reach_px(ratio: int) -> int:
    """Farthest pixel, per side, that what is put back depends on; PAN pixels."""
    return int(3 * BLUR_MS_PX * ratio + 0.5)


def pan_put_back(bands: Tensor, pan: Tensor, ratio: int, mix: Mix) -> Tensor:
    """All bands of a scene with what their mix misses of PAN's fine detail.

    Args:
        bands: (band, H, W), normalised.
        pan: (H, W), normalised.
        ratio: PAN pixels per MS pixel.
        mix: The scene's.

    Returns:
        (band, H, W); at less than ``reach_px`` from the border it has seen the border, which repeats.
    """
    weights, gains = (torch.tensor(values, device=bands.device) for values in (mix.weights, mix.gains))
    missing = pan - torch.tensordot(weights, bands, 1)
    fine = missing - _blurred(missing, ratio)
    return torch.addcmul(bands, gains[:, None, None], fine, value=SHARE)


def _blurred(image: Tensor, ratio: int) -> Tensor:
    radius = reach_px(ratio)
    places = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device) / (BLUR_MS_PX * ratio)
    taps = torch.exp(-places.square() / 2)
    taps /= taps.sum()
    padded = pad(image[None, None], (radius,) * 4, mode="replicate")
    return conv2d(conv2d(padded, taps[None, None, :, None]), taps[None, None, None])[0, 0]
