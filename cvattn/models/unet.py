"""A compact U-Net with attention, for generative models and for maps from images."""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.initial_values import start_at_zero
from cvattn.models.image_input import check_images
from cvattn.models.unet_checks import (
    check_condition,
    check_counts,
    check_divisible,
    check_levels,
    size_multiple,
)
from cvattn.models.unet_layers import (
    Attention,
    TimeEmbedding,
    UNetStage,
    group_norm,
    upsampling,
)


class UNet(nn.Module):
    """Residual blocks on maps that are halved and doubled again, with skips and attention.

    ``stem``; for each level its stages on the way down (``down0``, ``down1``, ...); ``middle``, one
    stage on the last level's maps; for each level as many stages on the way up (``up1``, ``up0``),
    each on its input beside the output of its mirror image on the way down; ``norm``, SiLU and the
    convolution ``head``, which starts at 0, as the output then does. A stage is a residual block
    and, where it was asked for, the attention behind it, ``down1.attention`` say. ``halve1`` leads
    from level 0 to 1 (a 3x3 convolution of stride 2), ``double0`` back (nearest positions, then a
    3x3 convolution).

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), with the scales and shifts of
    Dhariwal and Nichol, "Diffusion Models Beat GANs" (2021). It is smaller than Ho et al.'s: they
    have a block more on each level on the way up, for skips from the stem and the halvings, and a
    second block in the middle; there the width changes in the blocks, here where the size does.

    Args:
        in_channels: of the images.
        out_channels: of the maps that come out: the classes of a segmentation. None = in_channels:
            the velocity or the noise that a generative model predicts.
        image_size: (H, W) of most images. Others work too; "convolution" costs what attention does
            at this size, and windows are shifted where its maps are larger than one.
        classes: the network is told one of so many classes, or none of them, which is the label
            ``classes`` (for classifier-free guidance); 0 = it takes no labels.
        timed: conditioned on a time.
        patch_size: side of the squares of pixels that are one position of level 0; 2 makes the
            network four times as cheap.
        width: channels of a multiplier of 1; embeddings have 4 times as many.
        multipliers: level i has ``width * multipliers[i]`` channels. Level 0 has the images' size
            in patches, each further one half of the one before.
        blocks: stages of a level, each way. Of several the second is ``down0_2``.
        attention: which block. "unet" (:meth:`SelfAttention2d.unet
            <cvattn.SelfAttention2d.unet>`), "common" (:class:`cvattn.SelfAttention2d`), "window"
            (:class:`cvattn.WindowAttention2d` in the form of U-Nets, windows of 8, shifted by 4 in
            every second block of a level), "none"; or a control at the cost of "unet": "frozen"
            (its output projection stays 0) or "convolution"
            (:class:`cvattn.models.controls.WideConvolution`, whose 7x7 taps reach half of the map).
        attention_at: the levels of whose stages each has a block, each way; ``middle`` has one too
            if the last level is among them.
        dropout: probability of dropping a number inside a residual block, in training only.

    Raises:
        ValueError: sizes that are not positive, levels that there are not, images that cannot be
            halved so often.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        image_size: tuple[int, int] = (32, 32),
        classes: int = 0,
        timed: bool = True,
        patch_size: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Attention = "unet",
        attention_at: Sequence[int] = (1, 2),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            patch_size=patch_size,
            width=width,
            blocks=blocks,
        )
        check_levels(multipliers, attention_at)
        if classes < 0:
            raise ValueError(f"classes={classes} must be 0 (no labels) or more")
        if attention not in get_args(Attention):
            raise ValueError(f"attention={attention!r}; expected one of {get_args(Attention)}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.image_size = (image_size[0], image_size[1])
        self.classes = classes
        self.timed = timed
        self.levels = len(multipliers)
        self.blocks = blocks
        self.patch_size = patch_size
        check_divisible(self.image_size, patch_size, self.levels)

        embed_dim = 4 * width if timed or classes else None
        if timed:
            self.time = TimeEmbedding((width + 1) // 2, 4 * width)
        if classes:
            self.label = nn.Embedding(classes + 1, 4 * width)
        channels = [width * multiplier for multiplier in multipliers]
        numbers = [0] * self.levels  # of stages so far
        map_size = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)

        def stage(level: int, inputs: int) -> UNetStage:
            numbers[level] += 1
            return UNetStage(
                inputs,
                channels[level],
                size=(map_size[0] >> level, map_size[1] >> level),
                attention=attention if level in attention_at else "none",
                number=numbers[level] - 1,
                embed_dim=embed_dim,
                dropout=dropout,
            )

        self.to_patches = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Conv2d(in_channels * patch_size**2, channels[0], 3, padding=1)
        for level in range(self.levels):
            if level:
                halving = nn.Conv2d(channels[level - 1], channels[level], 3, stride=2, padding=1)
                self.add_module(f"halve{level}", halving)
            for name in self._stages("down", level):
                self.add_module(name, stage(level, channels[level]))
        self.middle = stage(self.levels - 1, channels[-1])
        for level in reversed(range(self.levels)):
            for name in self._stages("up", level):
                self.add_module(name, stage(level, 2 * channels[level]))
            if level:
                doubling = upsampling(channels[level], channels[level - 1])
                self.add_module(f"double{level - 1}", doubling)
        self.norm = group_norm(channels[0])
        self.head = nn.Conv2d(channels[0], out_channels * patch_size**2, 3, padding=1)
        start_at_zero(self.head)
        self.to_pixels = nn.PixelShuffle(patch_size)

    @property
    def size_multiple(self) -> int:
        """What heights and widths of images have to be divisible by."""
        return size_multiple(self.patch_size, self.levels)

    def _stages(self, way: str, level: int) -> list[str]:
        """Names of the stages of a level on one way, in the order in which they run."""
        return [f"{way}{level}"] + [f"{way}{level}_{n}" for n in range(2, self.blocks + 1)]

    def forward(
        self, images: Tensor, times: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Maps from images.

        Args:
            images: (B, in_channels, H, W); H and W are whole patches, as many as can be halved for
                each level after the first.
            times: (B,), floating point, from 0 to 1 (which is not checked: that would wait for the
                device); needed if the network is timed, else refused.
            labels: (B,), int64, 0 to ``classes``; needed if there are classes, else refused.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: other shapes, times or labels missing or not expected.
            TypeError: times or labels of another dtype.
            IndexError: torch's, on a CPU: a label above ``classes``.
        """
        check_images(images, self.in_channels)
        check_divisible((images.shape[-2], images.shape[-1]), self.patch_size, self.levels)
        embedding = self._embedding(images, times, labels)
        x = self.stem(self.to_patches(images))
        skips: list[Tensor] = []
        for level in range(self.levels):
            if level:
                x = self.get_submodule(f"halve{level}")(x)
            for name in self._stages("down", level):
                x = self.get_submodule(name)(x, embedding)
                skips.append(x)
        x = self.middle(x, embedding)
        for level in reversed(range(self.levels)):
            for name in self._stages("up", level):
                x = self.get_submodule(name)(torch.cat([x, skips.pop()], dim=1), embedding)
            if level:
                x = self.get_submodule(f"double{level - 1}")(x)
        return self.to_pixels(self.head(F.silu(self.norm(x))))

    def _embedding(
        self, images: Tensor, times: Tensor | None, labels: Tensor | None
    ) -> Tensor | None:
        """(B, 4 * width) behind the SiLU that all blocks would begin with; None = unconditional."""
        check_condition("times", times, images, wanted=self.timed)
        check_condition("labels", labels, images, wanted=self.classes > 0)
        embedding = None if times is None else self.time(times, images.dtype)
        if labels is not None:
            label = self.label(labels)
            embedding = label if embedding is None else embedding + label
        return None if embedding is None else F.silu(embedding)
