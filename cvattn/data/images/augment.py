"""Augmentation of a whole batch at once, with parameters of its own for every image.

An augmentation takes ``(images, index, seed, epoch)``: uint8 (B, C, H, W), the images' positions
in the training set, int64 (B,), and two integers. It returns a new tensor of pixels in 0..255
(uint8, or float32 where it interpolates). The result for an image depends on its pixels and on
(seed, epoch, its position) alone: not on the rest of the batch.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cvattn.data.checks import check_choice, check_int, check_number
from cvattn.data.counter import Stream, bits, integers, uniform
from cvattn.data.info import VOID

FLIPS = ("none", "random", "alternating")


class Augmentation(Protocol):
    """Anything that augments a batch; see the module's text for the contract."""

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor: ...


@dataclass(frozen=True)
class CropFlip:
    """Random crop of the reflect-padded image, horizontal flip, cutout; all in whole pixels.

    Args:
        crop_pad: pixels of reflection on each side; the crop has the image's own size. 0: none.
        flip: "none"; "random", half of the images in each epoch; "alternating", half of them in
            epoch 0, and from then on each image changes sides every epoch (Keller Jordan, "94% on
            CIFAR-10 in 3.29 seconds on a single GPU", 2024), so two epochs show every image both
            ways.
        cutout: side of the square that is erased in every image, 0: none. Its centre is uniform
            over the pixels and the square is cut at the border (DeVries and Taylor, 2017).
        fill: colour of the erased square, per channel in 0..255 (the data set's mean).
    """

    crop_pad: int = 4
    flip: str = "alternating"
    cutout: int = 0
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_int("crop_pad", self.crop_pad, minimum=0)
        check_choice("flip", self.flip, FLIPS)
        check_int("cutout", self.cutout, minimum=0)

    def check_fits(self, height: int, width: int) -> None:
        """ValueError if images of this size are too small for the padding."""
        if self.crop_pad >= min(height, width):
            raise ValueError(
                f"crop_pad={self.crop_pad} must be smaller than the image, {height} x {width} "
                f"pixels: a reflection is at most {min(height, width) - 1} wide"
            )

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        if self.crop_pad:
            rows, columns = self._sources(images, index, seed, epoch)
            images = _take(images, *_reflected(images, rows, columns))
        elif self.flip != "none":  # the same, ten times as fast
            flipped = self._flipped(index, seed, epoch)[:, None, None, None]
            images = torch.where(flipped, images.flip(-1), images)
        return self._erase(images, index, seed, epoch) if self.cutout else images

    def with_masks(
        self, images: Tensor, masks: Tensor, index: Tensor, *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """The images as by a call, and their masks, uint8 (B, H, W), moved with them.

        What comes in from outside is the image's reflection, and has no class (:data:`VOID`).
        """
        rows, columns = self._sources(images, index, seed, epoch)
        sources = _reflected(images, rows, columns)
        height, width = images.shape[-2:]
        inside = ((rows >= 0) & (rows < height))[:, :, None]
        inside = inside & ((columns >= 0) & (columns < width))[:, None, :]
        moved = _take(masks.unsqueeze(1), *sources)[:, 0].masked_fill(~inside, VOID)
        images = _take(images, *sources)
        return self._erase(images, index, seed, epoch) if self.cutout else images, moved

    def _sources(
        self, images: Tensor, index: Tensor, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Row (B, H) and column (B, W) that each pixel comes from, where there may be none."""
        batch, _, height, width = images.shape
        self.check_fits(height, width)
        pad = self.crop_pad
        rows = torch.arange(height, device=images.device).expand(batch, -1)
        columns = torch.arange(width, device=images.device).expand(batch, -1)
        if pad:
            top = integers(seed, epoch, index, Stream.CROP_Y, high=2 * pad + 1) - pad
            left = integers(seed, epoch, index, Stream.CROP_X, high=2 * pad + 1) - pad
            rows, columns = rows + top[:, None], columns + left[:, None]
        if self.flip != "none":
            flipped = self._flipped(index, seed, epoch)[:, None]
            columns = torch.where(flipped, columns.flip(1), columns)
        return rows, columns

    def _flipped(self, index: Tensor, seed: int, epoch: int) -> Tensor:
        if self.flip == "random":
            return (bits(seed, epoch, index, Stream.FLIP) & 1).bool()
        return ((bits(seed, 0, index, Stream.FLIP) + epoch) & 1).bool()

    def _erase(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        height, width = images.shape[-2:]
        inside = []
        for stream, size in ((Stream.CUTOUT_Y, height), (Stream.CUTOUT_X, width)):
            first = integers(seed, epoch, index, stream, high=size) - self.cutout // 2
            place = torch.arange(size, device=images.device)
            inside.append((place >= first[:, None]) & (place < first[:, None] + self.cutout))
        erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        fill = torch.tensor(self.fill, dtype=images.dtype, device=images.device)
        return torch.where(erased, fill.view(1, -1, 1, 1), images)


@dataclass(frozen=True)
class Affine:
    """A small rotation, change of size and shift about the centre; black comes in from outside.

    Args:
        shift: largest shift in pixels, to either side, each way.
        rotation: largest rotation in degrees, either way.
        scale: largest relative change of size: the factor is uniform in 1-scale..1+scale.
    """

    shift: float = 3.0
    rotation: float = 10.0
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_number("shift", self.shift, minimum=0, maximum=1024)
        check_number("rotation", self.rotation, minimum=0, maximum=180)
        check_number("scale", self.scale, minimum=0, maximum=0.9)

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        height, width = images.shape[-2:]

        def draw(stream: Stream, largest: float) -> Tensor:  # (B, 1, 1) in -largest..largest
            return ((uniform(seed, epoch, index, stream) * 2 - 1) * largest)[:, None, None]

        angle = draw(Stream.ROTATION, math.radians(self.rotation))
        factor = 1 + draw(Stream.SCALE, self.scale)
        down, right = draw(Stream.SHIFT_Y, self.shift), draw(Stream.SHIFT_X, self.shift)
        # In pixels from the centre, so that a non-square image is turned and not sheared. In
        # float64: sine and cosine then round to the same float32 whatever else is in the batch.
        y = torch.arange(height, dtype=torch.float64, device=images.device) - (height - 1) / 2
        x = torch.arange(width, dtype=torch.float64, device=images.device) - (width - 1) / 2
        y, x = y[None, :, None] - down, x[None, None, :] - right
        source_x = (x * angle.cos() + y * angle.sin()) / factor
        source_y = (y * angle.cos() - x * angle.sin()) / factor
        grid = torch.stack((source_x * 2 / width, source_y * 2 / height), dim=-1).float()
        return F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions in -(size-1)..2*(size-1) back into 0..size-1; the border is not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _reflected(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    return _reflect(rows, height), _reflect(columns, width)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``out[b, c, h, w] = images[b, c, rows[b, h], columns[b, w]]``."""
    # One gather with the source of every pixel: four times faster here than padding and slicing,
    # and no padded copy.
    batch, channels, _, width = images.shape
    source = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
    return images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)
