"""Convolutions from a line's picture to a grid of tokens, blind to what lies beyond its width."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def line_stem(channels: Sequence[int]) -> "list[_StemLayer]":
    """Halves the line for each pair of channels; at last only its height, once more."""
    layers: list[_StemLayer] = []
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        if index > 1:  # where few places are left for it to cost
            layers.append(_StemLayer(before, before, (1, 1)))
        layers.append(_StemLayer(before, after, (2, 2)))
    return [*layers, _StemLayer(channels[-1], channels[-1], (2, 1))]


class _StemLayer(nn.Module):
    """A 3x3 convolution, norm over channels, ReLU; with stride 1, added to what came in."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = _ChannelNorm(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, widths: Tensor) -> Tensor:
        """(B, C, H, W) that is real in the first ``widths`` columns."""
        x = _cleared(x, widths)
        y = self.activation(self.norm(self.conv(x)))
        return x + y if self.stride == (1, 1) else y


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def within(widths: Tensor, size: int) -> Tensor:
    """(B, size), True for the first ``widths`` columns."""
    return torch.arange(size, device=widths.device) < widths[:, None]


def _cleared(x: Tensor, widths: Tensor) -> Tensor:
    """Filled, not multiplied: whatever lies beyond a width, NaN too, becomes 0."""
    return x.masked_fill(~within(widths, x.shape[3])[:, None, None], 0.0)
