"""PAN-Crafter (ICCV 2025): one U-Net on three scales that reconstructs MS or PAN, depending on the mode.

    stem -> Res -> down -> Res, CM3A -> down -> Res, CM3A -> up -> Res, CM3A -> up -> Res -> head

Built from a description of the published method; section numbers in comments refer to the paper's equations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pancrafter.model.conditions import Conditions
from pancrafter.model.config import NetworkConfig
from pancrafter.model.layers import ChannelNorm, CrossModalityAttention, ResBlock

MS_MODE = 0
PAN_MODE = 1


class Stage(nn.Module):
    """ResBlocks at one scale, then CM3A where the configuration has it."""

    def __init__(self, config: NetworkConfig, scale: int, in_channels: int) -> None:
        super().__init__()
        width, modes = config.width, config.modes
        channels = [in_channels] + [width] * (config.depth[scale] - 1)
        self.blocks = nn.ModuleList(ResBlock(c, width, modes) for c in channels)
        self.attention = (
            CrossModalityAttention(
                width, config.bands, config.pan_condition_channels, modes, config.heads, config.ffn_expansion
            )
            if scale > 0 and config.attention_at(scale)
            else None
        )

    def forward(self, x: Tensor, query: Tensor, ms: Tensor, pan: Tensor, mode: Tensor) -> Tensor:
        """Run the stage on (n, channel, y, x) features with the conditions of its scale."""
        for block in self.blocks:
            x = block(x, mode)
        return x if self.attention is None else self.attention(x, query, ms, pan, mode)


class PanCrafter(nn.Module):
    """The network. Untrained, it returns exactly its residual base (cubic MS, or low-pass PAN in PAN mode)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(config.stem_channels, width, 3, padding=1)
        self.encode0 = Stage(config, 0, width)
        self.down1 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.encode1 = Stage(config, 1, width)
        self.down2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.bottleneck = Stage(config, 2, width)
        self.up1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.decode1 = Stage(config, 1, 2 * width)
        self.up0 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.decode0 = Stage(config, 0, 2 * width)
        self.head_norm = ChannelNorm(width)
        self.head = nn.Conv2d(width, config.head_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]  # present: bias=True

    def forward(self, conditions: Conditions, mode: Tensor) -> Tensor:
        """Reconstruct MS (mode 0) or band-repeated PAN (mode 1) on the PAN grid.

        Args:
            conditions: The tile's inputs on three scales, normalised.
            mode: (n,) int64, one mode per sample.

        Returns:
            (n, bands, H, W) in the normalised units of the inputs, and ``weighs_ms`` times as many channels more, which
            say how far the first follow MS (``model.reprojection``).
        """
        bands = self.config.bands
        reconstruct_pan = (mode == PAN_MODE)[:, None, None, None]
        n = len(mode)
        queries, pans, mss = [], [], []
        for ms, pan, lowpass in zip(conditions.ms, conditions.pan, conditions.lowpass, strict=True):
            pan_guide = lowpass if self.config.split_pan else pan
            queries.append(torch.where(reconstruct_pan, pan_guide.expand(n, bands, -1, -1), ms))
            split = (
                torch.cat([lowpass, pan, pan - lowpass], 1) if self.config.split_pan else pan.expand(-1, bands, -1, -1)
            )
            pans.append(split.expand(n, -1, -1, -1))
            mss.append(ms)

        ms, pan, lowpass = conditions.ms[0], conditions.pan[0], conditions.lowpass[0]
        stem_pan = [pan, lowpass, pan - lowpass] if self.config.split_pan else [pan]
        injection = [] if conditions.injection is None else [conditions.injection]
        told = [conditions.uncertainty.expand(n, 1, *ms.shape[2:])] if self.config.told_uncertainty else []
        stem = torch.cat([ms, *(part.expand(n, -1, -1, -1) for part in stem_pan), *injection, *told], 1)
        x = self.stem(stem.contiguous(memory_format=torch.channels_last))
        skip0 = self.encode0(x, queries[0], mss[0], pans[0], mode)
        skip1 = self.encode1(self.down1(skip0), queries[1], mss[1], pans[1], mode)
        x = self.bottleneck(self.down2(skip1), queries[2], mss[2], pans[2], mode)
        x = self.decode1(torch.cat([self.up1(x), skip1], 1), queries[1], mss[1], pans[1], mode)
        x = self.decode0(torch.cat([self.up0(x), skip0], 1), queries[0], mss[0], pans[0], mode)
        made: Tensor = self.head(silu(self.head_norm(x))).float()
        base = torch.where(reconstruct_pan, lowpass.expand(n, bands, -1, -1), ms)
        return torch.cat([base + made[:, :bands], made[:, bands:]], 1)
