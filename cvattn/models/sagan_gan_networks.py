"""The two networks of SAGAN: one makes images from noise, the other judges them."""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.models.image_input import check_image_size, check_images
from cvattn.models.sagan_gan_checks import check_blocks, check_noise, sizes_of, width_at
from cvattn.models.sagan_gan_layers import (
    Attention,
    DiscriminatorBlock,
    GeneratorBlock,
    Init,
    Upsampling,
    attention_block,
    initialise,
)
from cvattn.models.unet_checks import check_condition, check_counts


class SAGANGenerator(nn.Module):
    """Images from noise: a linear layer to a small map, blocks that double it, a convolution.

    ``linear``; ``block1``, ``block2``, ... (:class:`GeneratorBlock
    <cvattn.models.sagan_gan_layers.GeneratorBlock>`) and, behind one of them, ``attention2`` say;
    ``norm``, ReLU, the 3x3 convolution ``head`` and tanh. For images of 32x32 it is StudioGAN's
    SAGAN, parameter for parameter. :class:`SAGAN` has the source and explains the arguments.

    Shape:
        noise (B, noise_dim), labels (B,) int64 or None -> (B, in_channels, H, W) in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        image_size: int | Sequence[int] = (32, 32),
        classes: int = 0,
        noise_dim: int = 128,
        width: int = 256,
        attention: Attention = "biggan",
        attention_at: int | None = None,
        spectral_norm: bool = True,
        spectral_norm_labels: bool = True,
        upsampling: Upsampling = "nearest",
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, noise_dim=noise_dim, width=width)
        _check_options(classes, attention, init)
        if upsampling not in get_args(Upsampling):
            raise ValueError(f"upsampling={upsampling!r}; expected one of {get_args(Upsampling)}")
        sizes = sizes_of(image_size)
        self.in_channels = in_channels
        self.image_size = sizes.image
        self.classes = classes
        self.noise_dim = noise_dim
        self.base = sizes.base
        self.blocks = sizes.doublings
        channels = width_at(width, sizes.base)
        self.linear = nn.Linear(noise_dim, channels * sizes.base[0] * sizes.base[1])
        attended, _ = sizes.blocks_at(attention_at)
        for number, size in enumerate(sizes.generated(), start=1):
            wide = width_at(width, size)
            block = GeneratorBlock(channels, wide, classes=classes, upsampling=upsampling)
            self.add_module(f"block{number}", block)
            channels = wide
            if number == attended and attention != "none":
                self.add_module(f"attention{number}", attention_block(attention, channels, size))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, in_channels, 3, padding=1)
        initialise(self, init, spectral_norm=spectral_norm, embeddings_too=spectral_norm_labels)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images in [-1, 1].

        Args:
            noise: (B, noise_dim), as ``torch.randn`` gives it.
            labels: (B,), int64, 0 to ``classes - 1``; needed if there are classes, else refused.

        Returns:
            (B, in_channels, H, W).

        Raises:
            ValueError: other shapes, labels missing or not expected.
            TypeError: noise or labels of another dtype.
            IndexError: torch's, on a CPU: a label that there is not.
        """
        check_noise(noise, self.noise_dim, labels, self.classes)
        x = self.linear(noise).unflatten(1, (-1, *self.base))
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f"block{number}")(x, labels)
            x = _attended(self, number, x)
        return torch.tanh(self.head(F.relu(self.norm(x))))


class SAGANDiscriminator(nn.Module):
    """How real images look: blocks that halve the map, a sum over it, a linear layer, a class.

    ``block1``, ``block2``, ... (:class:`DiscriminatorBlock
    <cvattn.models.sagan_gan_layers.DiscriminatorBlock>`) and, behind one of them, ``attention1``
    say; ReLU and h, the sum over all positions. The score is ``linear(h)``, and with classes
    ``+ label(y) . h``: Miyato and Koyama, "cGANs with Projection Discriminator" (2018).
    Images of up to 56 pixels a side are halved twice and go through two blocks more, larger ones
    are halved down to 4 to 7 pixels and go through one more. :class:`SAGAN` explains the arguments.

    Shape:
        images (B, in_channels, H, W) in [-1, 1], labels (B,) int64 or None -> scores (B,).
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        image_size: int | Sequence[int] = (32, 32),
        classes: int = 0,
        width: int = 128,
        attention: Attention = "biggan",
        attention_at: int | None = None,
        attention_after: Sequence[int] | None = None,
        rectified_shortcuts: bool = False,
        spectral_norm: bool = True,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, width=width)
        _check_options(classes, attention, init)
        sizes = sizes_of(image_size)
        self.in_channels = in_channels
        self.image_size = sizes.image
        self.classes = classes
        maps = sizes.judged()
        self.blocks = len(maps)
        _, attended = sizes.blocks_at(attention_at)
        after = [attended] if attention_after is None else list(attention_after)
        check_blocks(after, self.blocks)
        channels, before = in_channels, sizes.image
        for number, size in enumerate(maps, start=1):
            wide = width_at(width, size)
            block = DiscriminatorBlock(
                channels,
                wide,
                halve=size != before,
                first=number == 1,
                rectified=rectified_shortcuts,
            )
            self.add_module(f"block{number}", block)
            channels, before = wide, size
            if number in after and attention != "none":
                self.add_module(f"attention{number}", attention_block(attention, channels, size))
        self.linear = nn.Linear(channels, 1)
        self.label = nn.Embedding(classes, channels) if classes else None
        initialise(self, init, spectral_norm=spectral_norm)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores: the higher, the more real.

        Args:
            images: (B, in_channels, H, W) in [-1, 1], of the size that it was built for.
            labels: (B,), int64, 0 to ``classes - 1``; needed if there are classes, else refused.

        Returns:
            (B,).

        Raises:
            ValueError: other shapes, labels missing or not expected.
            TypeError: labels of another dtype.
            IndexError: torch's, on a CPU: a label that there is not.
        """
        check_images(images, self.in_channels)
        check_image_size(images, self.image_size)
        check_condition("labels", labels, images, wanted=self.classes > 0)
        x = images
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f"block{number}")(x)
            x = _attended(self, number, x)
        summed = F.relu(x).sum(dim=(2, 3))
        score = self.linear(summed).squeeze(1)
        if self.label is None or labels is None:
            return score
        return score + (self.label(labels) * summed).sum(dim=1)


def _attended(network: nn.Module, number: int, x: Tensor) -> Tensor:
    """Through the attention block behind a block, if there is one."""
    attention = network._modules.get(f"attention{number}")
    return x if attention is None else attention(x)


def _check_options(classes: int, attention: str, init: str) -> None:
    if classes < 0:
        raise ValueError(f"classes={classes} must be 0 (no labels) or more")
    for name, given, known in (("attention", attention, Attention), ("init", init, Init)):
        if given not in get_args(known):
            raise ValueError(f"{name}={given!r}; expected one of {get_args(known)}")
