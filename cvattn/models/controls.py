"""The attention blocks that a network can have by name, and controls at the cost of one."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d


def frozen_attention(channels: int) -> SelfAttention2d:
    """The common block whose gamma stays 0: its cost without its effect."""
    block = SelfAttention2d(channels)
    assert block.gamma is not None
    block.gamma.requires_grad_(False)
    return block


def unet_attention(channels: int) -> SelfAttention2d:
    """The form of U-Nets with at most 32 groups and heads of at most 64 channels."""
    return SelfAttention2d.unet(
        channels, groups=math.gcd(channels, 32), head_dim=math.gcd(channels, 64)
    )


# Name -> channels -> block.
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "common": SelfAttention2d,
    "pooled": partial(SelfAttention2d, kv_pool=2),
    "biggan": SelfAttention2d.biggan,
    "unet": unet_attention,
    "frozen": frozen_attention,
}


class ConvolutionControl(nn.Module):
    """``y = x + gamma * conv(GELU(conv(x)))`` with 3x3 convolutions; gamma starts at 0.

    The channels between the two are as many as give the multiplications of the common
    :class:`SelfAttention2d` on a map of that many positions, to the nearest channel.

    Args:
        channels: channels C of the map.
        positions: H * W of the maps it will see.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, positions: int) -> None:
        super().__init__()
        queries = max(1, channels // 8)
        # For each position: q, k and v, then a score and a weighted value for every key.
        attention = channels * (2 * queries + channels) + positions * (queries + channels)
        hidden = max(1, round(attention / (2 * 9 * channels)))
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, 3, padding=1)
        self.gamma = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.second(F.gelu(self.first(x)))
