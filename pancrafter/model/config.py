"""What a network looks like, as one frozen value that is stored beside its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pancrafter.types import Record

LOWPASS_RADIUS_MS_PX = 3
"""Support of the low-pass PAN on each side, in MS pixels: six standard deviations at the generic gain."""

CUBIC_REACH_MS_PX = 2

_HEAD_CHANNELS = 16
"""Channels of an attention head: 8 heads of the 128 channels of PAN-Crafter (arXiv 2505.23367v2)."""


class NetworkConfig(Record):
    """Hyperparameters of one PAN-Crafter network; defaults are the quality build for 8-band sensors.

    ``bands`` is how many MS bands the network takes at once. With 1 the same weights are applied to each band in
    turn, so any band set and order works; the published network has one set of weights per band count.
    """

    bands: int = Field(default=8, ge=1)
    width: int = Field(
        default=128, ge=16, description="Channels C at every scale; where there is attention, a multiple of 16."
    )
    depth: tuple[int, int, int] = Field(default=(2, 2, 4), description="ResBlocks per stage at scale 1, 1/2, 1/4.")
    attention: Literal["none", "bottleneck", "all"] = Field(default="all", description="Where CM3A blocks stand.")
    split_pan: bool = Field(default=True, description="Give low- and high-pass PAN to the stem and to K, V of PAN.")
    injected_detail: bool = Field(
        default=False, description="Give the stem the detail each band would take from PAN by Gram-Schmidt adaptive."
    )
    matched_lowpass: bool = Field(
        default=False, description="Low-pass PAN is as blurred as the scene's MS is, in place of by the generic MTF."
    )
    told_uncertainty: bool = Field(
        default=False,
        description="Tell the stem how uncertain shift, MTF and DN are: 1 as at full resolution, 0 exact.",
    )
    weighs_ms: int = Field(
        default=0,
        ge=0,
        le=2,
        description="Further outputs per band that say how far the result follows what is missing against MS: of what "
        "one step of reprojection leaves, and of what further steps would add.",
    )
    mars: bool = Field(default=True, description="Second mode that reconstructs PAN during training.")
    ffn_expansion: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> NetworkConfig:
        if self.attention != "none" and self.width % _HEAD_CHANNELS:
            raise ValueError(
                f"width {self.width}: heads of attention have {_HEAD_CHANNELS} channels each; choose a multiple of it, "
                'or attention "none"'
            )
        return self

    @model_validator(mode="after")
    def _depth_is_positive(self) -> NetworkConfig:
        if min(self.depth) < 1:
            raise ValueError(f"depth {self.depth}: each stage needs at least one ResBlock")
        return self

    @property
    def heads(self) -> int:
        """Attention heads, where there is attention."""
        return self.width // _HEAD_CHANNELS

    @property
    def modes(self) -> int:
        """Number of MARs modes: MS, and PAN when it is trained."""
        return 2 if self.mars else 1

    @property
    def stem_channels(self) -> int:
        """Input channels: MS and PAN, low- and high-pass PAN, injected detail per band, how uncertain all that is."""
        pan = 3 if self.split_pan else 1
        return self.bands * (2 if self.injected_detail else 1) + pan + self.told_uncertainty

    @property
    def head_channels(self) -> int:
        """Output channels: the bands, then how far each follows MS (``weighs_ms``)."""
        return self.bands * (1 + self.weighs_ms)

    @property
    def pan_condition_channels(self) -> int:
        """Channels beside the features in the PAN key/value convolution."""
        return 3 if self.split_pan else self.bands

    def attention_at(self, scale: int) -> bool:
        """Whether the stage at 1/2 (``scale`` 1) or 1/4 (``scale`` 2) has an attention block."""
        return self.attention == "all" or (self.attention == "bottleneck" and scale == 2)

    def reach_px(self, ratio: int) -> int:
        """Farthest PAN pixel, per side, that can influence an output pixel: an upper bound by summing every step."""
        full, half, quarter = self.depth
        convs = 2 * (2 * full) + 2 + 2 * (2 * 2 * half) + 4 * 2 * quarter
        local = 2 * 2 * 2 * self.attention_at(1) + 2 * 4 * self.attention_at(2)
        rescale = (1 + 2) + (1 + 2)
        inputs = CUBIC_REACH_MS_PX * ratio
        if self.split_pan:
            inputs += LOWPASS_RADIUS_MS_PX * ratio + ratio // 2
        return convs + local + rescale + inputs
