"""A compact CNN classifier with SAGAN self-attention between its stages."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cvattn.core.initial_values import reset_with
from cvattn.models.controls import BLOCKS, ConvolutionControl
from cvattn.models.image_input import check_images
from cvattn.models.whitening import PatchWhitening

Attention = Literal["common", "pooled", "biggan", "unet", "frozen", "convolution", "none"]
# One node each in a graph of torch.fx, whose tracer knows no shapes.
torch.fx.wrap("check_images")
torch.fx.wrap("_check_large_enough")

SMALLEST = 9  # pixels: one is left after the stem and three stages


class SAGANClassifier(nn.Module):
    """Whitened 2x2 patches, three stages of two 3x3 convolutions that halve the map, a linear head.

    The trunk is that of airbench (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024):
    a frozen first layer that whitens patches, filters that start as the identity where they can,
    batch norms without a scale, pooling before the first norm of each stage, max-pooled features.
    The attention block is SAGAN's. "SAGAN" names the attention: this is a classifier, not a GAN.

    Call :meth:`fit_to_images` once before training (the harness does).

    Args:
        num_classes: number of logits.
        in_channels: of the images.
        image_size: (H, W) of most images, 9 pixels or more each way; others of such sizes work too.
        widths: channels of stage1, stage2 and stage3; the stem has 8 for each of the image's.
        attention: which block. "common" (:class:`cvattn.SelfAttention2d`), "pooled" (with keys and
            values 2x2-pooled), "biggan" (its released form), "unet" (the form of U-Nets),
            "none"; or a control at the cost of "common": "frozen" (gamma stays 0) or "convolution"
            (:class:`ConvolutionControl`).
        attention_after: names of the layers that a block follows ("stem", "stage1", ...). For
            32x32 images these have maps of 31, 15, 7 and 3.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes); any H, W >= 9.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        widths: Sequence[int] = (64, 256, 256),
        attention: Attention = "common",
        attention_after: Sequence[str] = ("stage2",),
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"widths={list(widths)}: expected 3, one for each stage")
        if attention not in get_args(Attention):
            raise ValueError(f"attention={attention!r}; expected one of {get_args(Attention)}")
        self.in_channels = in_channels
        self.image_size = (image_size[0], image_size[1])
        _check_large_enough(self.image_size)
        stem = PatchWhitening(in_channels)
        channels = {"stem": stem.out_channels}
        self.layers = nn.ModuleDict({"stem": nn.Sequential(stem, nn.GELU())})
        for index, width in enumerate(widths, start=1):
            before = channels[next(reversed(channels))]
            self.layers[f"stage{index}"] = _stage(before, width)
            channels[f"stage{index}"] = width
        unknown = [name for name in attention_after if name not in channels]
        if unknown:
            raise ValueError(f"attention_after={unknown}: the layers are {list(channels)}")
        sizes = self._map_sizes()
        self.attention = nn.ModuleDict(
            {
                name: _block(attention, channels[name], positions=math.prod(sizes[name]))
                for name in attention_after
                if attention != "none"
            }
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def _map_sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of the map behind each layer."""
        height, width = (side - 1 for side in self.image_size)
        sizes = {"stem": (height, width)}
        for name in list(self.layers)[1:]:
            height, width = height // 2, width // 2
            sizes[name] = (height, width)
        return sizes

    def fit_to_images(self, images: Tensor) -> None:
        """Set the stem's filters from normalised training images (N, C, H, W)."""
        for module in self.layers["stem"].modules():
            if isinstance(module, PatchWhitening):
                module.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels)
        _check_large_enough((images.shape[-2], images.shape[-1]))
        x = images
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.attention:
                x = self.attention[name](x)
        return self.head(x.amax(dim=(2, 3)))


def _check_large_enough(image_size: tuple[int, int]) -> None:
    if min(image_size) < SMALLEST:
        raise ValueError(
            f"image_size={image_size}: the three stages halve the map each, so images need at "
            f"least {SMALLEST} x {SMALLEST} pixels"
        )


def _block(attention: Attention, channels: int, *, positions: int) -> nn.Module:
    if attention == "convolution":
        return ConvolutionControl(channels, positions=positions)
    return BLOCKS[attention](channels)


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(in_channels, out_channels),
        nn.MaxPool2d(2),
        _norm(out_channels),
        nn.GELU(),
        _conv(out_channels, out_channels),
        _norm(out_channels),
        nn.GELU(),
    )


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    _fill_identity(conv)
    reset_with(conv, _fill_convolution)
    return conv


def _fill_convolution(conv: nn.Conv2d) -> None:
    nn.Conv2d.reset_parameters(conv)
    _fill_identity(conv)


def _fill_identity(conv: nn.Conv2d) -> None:
    nn.init.dirac_(conv.weight[: conv.in_channels])  # the first filters copy their channel


def _norm(channels: int) -> nn.BatchNorm2d:
    # Runs are of a few hundred steps: the running moments have to follow quickly.
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
