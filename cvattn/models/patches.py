"""From an image to a map of tokens: one convolution, or several small ones."""

from typing import Any, Literal

from torch import nn

Stem = Literal["patch", "conv"]


def make_stem(
    stem: Stem, in_channels: int, embed_dim: int, patch_size: int, *, bias: bool, **made: Any
) -> nn.Module:
    """(B, in_channels, H, W) -> (B, embed_dim, H / patch_size, W / patch_size).

    Args:
        stem: "patch" or "conv", see :class:`cvattn.models.VisionTransformer`.
        bias: of its last convolution.
        made: device and dtype.

    Raises:
        ValueError: a convolutional stem whose ``patch_size`` is no power of 2.
    """
    if stem == "patch":
        return nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size, bias=bias, **made)
    halvings = patch_size.bit_length() - 1
    if 2**halvings != patch_size or halvings < 1:
        raise ValueError(f"stem='conv' needs a patch_size of 2, 4, 8, ..., got {patch_size}")
    # Halve the map by pooling, doubling the channels on the way.
    layers: list[nn.Module] = []
    before = in_channels
    for index in range(halvings):
        width = max(1, embed_dim >> (halvings - index))
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False, **made), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(width, **made), nn.GELU()]
        before = width
    last = nn.Conv2d(before, embed_dim, 3, padding=1, bias=bias, **made)
    return nn.Sequential(*layers, last)


def check_divisible(image_size: tuple[int, int], patch_size: int) -> None:
    """ValueError unless patches of that size tile the image."""
    if patch_size < 1 or image_size[0] % patch_size or image_size[1] % patch_size:
        raise ValueError(f"image_size={image_size} is not divisible by patch_size={patch_size}")
