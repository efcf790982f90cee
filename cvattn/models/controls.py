"""The attention blocks that a network can have by name, and controls at the cost of one."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d, WindowAttention2d
from cvattn.core.initial_values import start_at_zero


def frozen_attention(channels: int) -> SelfAttention2d:
    """The common block whose gamma stays 0: its cost without its effect."""
    return _held(SelfAttention2d(channels))


def frozen_biggan_attention(channels: int) -> SelfAttention2d:
    """The released form, without spectral norm, whose gamma stays 0."""
    return _held(SelfAttention2d.biggan(channels, spectral_norm=False))


def unet_attention(channels: int) -> SelfAttention2d:
    """The form of U-Nets: see :func:`norm_groups`; heads of at most 64 channels."""
    return SelfAttention2d.unet(channels, **_unet_sizes(channels))


def frozen_unet_attention(channels: int) -> SelfAttention2d:
    """The form of U-Nets whose output projection stays 0: its cost without its effect."""
    block = unet_attention(channels)
    assert block.proj is not None
    block.proj.requires_grad_(False)
    return block


def unet_window_attention(
    channels: int, *, window: int, shift: tuple[int, int]
) -> WindowAttention2d:
    """:func:`unet_attention` inside windows."""
    return WindowAttention2d.unet(channels, window=window, shift=shift, **_unet_sizes(channels))


# Name -> channels -> block.
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "common": SelfAttention2d,
    "pooled": partial(SelfAttention2d, kv_pool=2),
    "biggan": SelfAttention2d.biggan,
    "unet": unet_attention,
    "frozen": frozen_attention,
}


class ConvolutionControl(nn.Module):
    """``y = x + gamma * second(GELU(first(x)))``, 3x3 convolutions; gamma starts at 0.

    The channels between the two are as many as give the multiplications of the common
    :class:`SelfAttention2d` on a map of that many positions, to the nearest channel.

    Args:
        channels: channels C of the map.
        positions: H * W of the maps it will see.
        pooled_keys: None = the common block; else the released one
            (:meth:`SelfAttention2d.biggan <cvattn.SelfAttention2d.biggan>`), each position of
            which attends to so many pooled ones. The second convolution is 1x1 then, as that
            block's last is: so its usual widths are met to the last multiplication.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, positions: int, pooled_keys: int | None = None) -> None:
        super().__init__()
        queries = max(1, channels // 8)
        # For each position: q, k and v, then a score and a weighted value for every key.
        attention = channels * (2 * queries + channels) + positions * (queries + channels)
        last = 3
        if pooled_keys is not None:  # and an output projection
            values = max(1, channels // 2)
            attention = 2 * channels * (queries + values) + pooled_keys * (queries + values)
            last = 1
        hidden = max(1, round(attention / (channels * (9 + last**2))))
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, last, padding=last // 2)
        self.gamma = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.second(F.gelu(self.first(x)))


class WideConvolution(nn.Module):
    """``y = x + out(GELU(wide(norm(x))))``: a far look without attention; ``out`` starts at zero.

    ``norm`` is a group norm, ``wide`` a dilated square filter, ``out`` a 1x1 convolution. The
    channels between the two are as many as give the multiplications of the form of U-Nets
    (:meth:`SelfAttention2d.unet <cvattn.SelfAttention2d.unet>`) on a map of that many positions,
    to the nearest channel. That form also costs a softmax, which is not counted.

    Where a convolution of 3x3 lacks context, this is the control that an attention block has to
    beat: in segmentation a dilated head brings most of what a non-local block does
    (mmsegmentation's tables of FCN, dilated FCN and NonLocal Net).

    Args:
        channels: channels C of the map.
        positions: H * W of the maps it will see.
        kernel_size: side of the filter; odd, so that the map keeps its size.
        dilation: steps between its taps: it reaches ``dilation * (kernel_size // 2)`` positions.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self, channels: int, *, positions: int, kernel_size: int = 7, dilation: int = 1
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: the map keeps its size")
        # For each position: q, k, v and the output; a score and a weighted value for every key.
        attention = channels * (4 * channels + 2 * positions)
        hidden = max(1, round(attention / (channels * (kernel_size**2 + 1))))
        self.norm = nn.GroupNorm(norm_groups(channels), channels)
        reach = dilation * (kernel_size // 2)
        self.wide = nn.Conv2d(channels, hidden, kernel_size, padding=reach, dilation=dilation)
        self.out = nn.Conv2d(hidden, channels, 1)
        start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.wide(self.norm(x))))


def norm_groups(channels: int) -> int:
    """Groups of a group norm: at most 32, of at least 4 channels each.

    Groups of one channel would take from each map its mean: a network could not tell how bright an
    image is, nor an attention block how strong a channel is in it. Karras et al., "Elucidating the
    Design Space of Diffusion-Based Generative Models" (2022), have the same bounds in their code.
    """
    # A power of 2 that divides the channels, or at most a quarter of them, which then does too.
    return max(1, min(math.gcd(channels, 32), channels // 4))


def _held(block: SelfAttention2d) -> SelfAttention2d:
    assert block.gamma is not None
    block.gamma.requires_grad_(False)
    return block


def _unet_sizes(channels: int) -> dict[str, int]:
    return {"groups": norm_groups(channels), "head_dim": math.gcd(channels, 64)}
