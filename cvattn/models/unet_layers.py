"""What a U-Net is made of: residual blocks under an embedding, with attention behind them."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.initial_values import start_at_zero
from cvattn.models.controls import (
    BLOCKS,
    WideConvolution,
    frozen_unet_attention,
    norm_groups,
    unet_window_attention,
)

Attention = Literal["unet", "common", "window", "none", "frozen", "convolution"]
WINDOW = 8  # side of the windows of "window"
FILTER = 7  # side of the filters of "convolution"
STEPS = 1000  # of Ho et al.'s diffusion: time 1 is their last step


class TimeEmbedding(nn.Module):
    """:func:`time_waves`, and two linear layers with a SiLU between them.

    Args:
        waves: n; the first layer takes 2 n numbers.
        embed_dim: width D.

    Shape:
        (B,) -> (B, embed_dim), in ``dtype``; the waves are computed in float32 at least.
    """

    def __init__(self, waves: int, embed_dim: int) -> None:
        super().__init__()
        self.waves = waves
        self.linear1 = nn.Linear(2 * waves, embed_dim)
        self.linear2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear2(F.silu(self.linear1(time_waves(times, self.waves).to(dtype))))


class ResidualBlock(nn.Module):
    """``y = shortcut(x) + conv2(dropout(SiLU(h)))``, ``h = norm2(conv1(SiLU(norm1(x))))``.

    Convolutions are 3x3; ``conv2`` starts at 0, so that a new block is its shortcut: the identity,
    or a 1x1 convolution where the widths differ. An embedding gives each channel of h a scale and
    a shift, ``h * (1 + scale) + shift``. Ho et al., "Denoising Diffusion Probabilistic Models"
    (2020), who add the embedding before ``norm2``; the scale and shift behind it are from Dhariwal
    and Nichol, "Diffusion Models Beat GANs" (2021). Their blocks begin with a SiLU of the
    embedding; here it has to come through one, the same for all blocks.

    Args:
        in_channels, out_channels: of the maps.
        embed_dim: width D of the embedding; None = no embedding.
        dropout: probability of dropping a number before ``conv2``, in training only.

    Shape:
        x (B, in_channels, H, W), embedding (B, D) -> (B, out_channels, H, W).

    Raises:
        ValueError: an embedding that is missing, or not expected.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embed_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = None if embed_dim is None else nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        start_at_zero(self.conv2)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if (embedding is None) != (self.embed is None):
            raise ValueError(
                f"embedding={embedding if embedding is None else tuple(embedding.shape)}: a block "
                "takes one if and only if it was built with embed_dim"
            )
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.embed is not None:
            scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class UNetStage(nn.Module):
    """A residual block, and the attention behind it where there is some.

    Args:
        in_channels, out_channels, embed_dim, dropout: of the block.
        size: (H, W) of most maps.
        attention: as in :class:`cvattn.models.UNet`.
        number: how many blocks of the same level run before it: every second one has shifted
            windows, where the map is larger than a window.

    Shape:
        x (B, in_channels, H, W), embedding (B, D) -> (B, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: tuple[int, int],
        attention: Attention = "none",
        number: int = 0,
        embed_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(
            in_channels, out_channels, embed_dim=embed_dim, dropout=dropout
        )
        self.attention = _attention_block(attention, out_channels, size, number)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = self.residual(x, embedding)
        return x if self.attention is None else self.attention(x)


def time_waves(times: Tensor, waves: int) -> Tensor:
    """(B, 2 * waves) of times (B,) in [0, 1]: cosines, then sines.

    Of ``1000 * time * 10000^(-i / waves)``, i = 0 ... waves - 1. Ho et al. (2020), whose 1000 steps
    these times are; the frequencies are those of Dhariwal and Nichol's released code (2021), where
    Ho et al.'s divides i by waves - 1. In float32 at least: half precision does not tell the angles
    of one step from those of the next.
    """
    times = times.to(torch.promote_types(times.dtype, torch.float32))
    index = torch.arange(waves, dtype=times.dtype, device=times.device)
    angle = STEPS * times[:, None] * torch.exp(index * (-math.log(10000.0) / waves))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(norm_groups(channels), channels)


def upsampling(in_channels: int, out_channels: int) -> nn.Sequential:
    """Doubles a map: every position four times, then a 3x3 convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
    )


def _attention_block(
    attention: Attention, channels: int, size: tuple[int, int], number: int
) -> nn.Module | None:
    if attention == "none":
        return None
    if attention == "frozen":
        return frozen_unet_attention(channels)
    if attention == "window":
        rows, columns = (WINDOW // 2 if number % 2 and side > WINDOW else 0 for side in size)
        return unet_window_attention(channels, window=WINDOW, shift=(rows, columns))
    if attention == "convolution":
        # Its outermost taps reach half of the map's smaller side.
        dilation = max(1, round(min(size) / 2 / (FILTER // 2)))
        return WideConvolution(
            channels, positions=math.prod(size), kernel_size=FILTER, dilation=dilation
        )
    return BLOCKS[attention](channels)
