"""The blocks of PAN-Crafter. All maps are (sample, channel, y, x) in channels-last memory.

Numbers of equations are those of the paper, arXiv 2505.23367v2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, pad, silu

NORM_EPS = 1e-6


def channel_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """LayerNorm over the channels of each pixel: nothing depends on other pixels, so tiles stay exact."""
    last = x.permute(0, 2, 3, 1)
    return layer_norm(last, last.shape[-1:], weight, bias, NORM_EPS).permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """:func:`channel_norm` with learned scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, channel, y, x)."""
        return channel_norm(x, self.weight, self.bias)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with per-pixel norms; the second norm is modulated by the mode (Eq. 5-6).

    ``h = Conv(SiLU(LN(x)))``, ``h = Conv(SiLU((1 + gamma_s) LN(h) + beta_s))``, ``out = skip(x) + h``.
    """

    def __init__(self, in_channels: int, channels: int, modes: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(modes, channels))
        self.beta = nn.Parameter(torch.zeros(modes, channels))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # present: bias=True

    def forward(self, x: Tensor, mode: Tensor) -> Tensor:
        """Map (n, in_channels, y, x) to (n, channels, y, x); ``mode`` is (n,) int64."""
        h = self.conv1(silu(self.norm1(x)))
        gamma, beta = self.gamma[mode][:, :, None, None], self.beta[mode][:, :, None, None]
        h = self.conv2(silu((1 + gamma) * self.norm2(h) + beta))
        out: Tensor = self.skip(x) + h
        return out


def local_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of each pixel over its 3x3 neighbourhood, zero padded, one softmax per head.

    The nine neighbours are visited one after the other, so nothing nine times the size of the input is built except
    the logits (heads x 9 per pixel).
    """
    n, c, height, width = query.shape
    query = query.reshape(n, heads, c // heads, height, width) * (c // heads) ** -0.5
    padded_key = pad(key, (1, 1, 1, 1)).unflatten(1, (heads, -1))
    padded_value = pad(value, (1, 1, 1, 1)).unflatten(1, (heads, -1))
    shifts = [(dy, dx) for dy in range(3) for dx in range(3)]
    logits = torch.stack(
        [(query * padded_key[..., dy : dy + height, dx : dx + width]).sum(2) for dy, dx in shifts], dim=2
    )
    weights = logits.softmax(dim=2)
    out = torch.zeros_like(query)
    for i, (dy, dx) in enumerate(shifts):
        out = out + weights[:, :, i, None] * padded_value[..., dy : dy + height, dx : dx + width]
    return out.reshape(n, c, height, width)


class CrossModalityAttention(nn.Module):
    """CM3A and feed-forward: pulls MS texture and PAN structure from the 3x3 neighbourhood (Eq. 7-12).

    One query serves both branches; MS and PAN have their own keys, values and softmax. ``select`` holds the learned
    gates per mode (Eq. 8); they start at zero, so attention enters gradually.
    """

    def __init__(self, channels: int, bands: int, pan_channels: int, modes: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(bands + channels, channels, 3, padding=1, bias=False)
        self.key_value_ms = nn.Conv2d(bands + channels, 2 * channels, 3, padding=1, bias=False)
        self.key_value_pan = nn.Conv2d(channels + pan_channels, 2 * channels, 3, padding=1, bias=False)
        self.project_ms = nn.Conv2d(channels, channels, 1)
        self.project_pan = nn.Conv2d(channels, channels, 1)
        self.select_ms = nn.Parameter(torch.zeros(modes, channels))
        self.select_pan = nn.Parameter(torch.zeros(modes, channels))
        self.expand = nn.Conv2d(channels, expansion * channels, 1)
        self.contract = nn.Conv2d(expansion * channels, channels, 1)

    def forward(self, x: Tensor, query_condition: Tensor, ms: Tensor, pan: Tensor, mode: Tensor) -> Tensor:
        """Mix ``x`` (n, C, y, x) with its neighbourhood.

        Args:
            x: Features at this scale.
            query_condition: (n, bands, y, x); MS in MS mode, repeated (low-pass) PAN in PAN mode.
            ms: (n, bands, y, x) MS at this scale.
            pan: (n, pan_channels, y, x) PAN condition at this scale.
            mode: (n,) index of each sample's mode.
        """
        n = channel_norm(x)
        query = self.query(torch.cat([query_condition, n], 1))
        key_ms, value_ms = self.key_value_ms(torch.cat([ms, n], 1)).chunk(2, 1)
        key_pan, value_pan = self.key_value_pan(torch.cat([n, pan], 1)).chunk(2, 1)
        x_ms = self.project_ms(local_attention(query, key_ms, value_ms, self.heads))
        x_pan = self.project_pan(local_attention(query, key_pan, value_pan, self.heads))
        x = x + self.select_ms[mode][:, :, None, None] * x_ms + self.select_pan[mode][:, :, None, None] * x_pan
        out: Tensor = x + self.contract(gelu(self.expand(channel_norm(x)), approximate="tanh"))
        return out
