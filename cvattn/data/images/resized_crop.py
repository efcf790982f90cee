"""Random resized crop: a random part of a picture, scaled to one size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cvattn.data.checks import check_number
from cvattn.data.counter import Stream, uniform
from cvattn.data.image_files import Box

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class RandomResizedCrop:
    """The part of a picture that is shown, drawn anew for each image and epoch.

    As torchvision's ``RandomResizedCrop`` (Szegedy et al., "Going deeper with convolutions", 2014):
    the share of the area is uniform in ``share``, the logarithm of the part's width : height
    uniform in that of 3/4..4/3 (times that of ``image_size``, where torchvision stretches); of ten
    such draws the first that lies in the picture, or else the largest part in its middle.

    Args:
        share: least and most share of a picture's area, in (0, 1].
        image_size: (H, W) that a part is scaled to.
    """

    share: Sequence[float]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        share = self.share
        text = f"random_resized_crop must be [least, most] share of the area, got {share!r}"
        if isinstance(share, str) or not isinstance(share, Sequence):
            raise TypeError(text)
        if len(share) != 2:
            raise ValueError(text)
        least, most = (
            check_number("random_resized_crop", value, minimum=0, maximum=1) for value in share
        )
        if not 0 < least <= most:
            raise ValueError(
                f"random_resized_crop=[{least:g}, {most:g}] must be [least, most] with "
                "0 < least <= most <= 1"
            )

    def draws(self, index: Tensor, *, seed: int, epoch: int) -> np.ndarray:
        """The random numbers of each image, float64 (B, 10, 4) in [0, 1), whatever its size."""
        attempt = index[:, None].cpu() * _ATTEMPTS + torch.arange(_ATTEMPTS)
        streams = (Stream.PART_AREA, Stream.PART_RATIO, Stream.PART_Y, Stream.PART_X)
        return torch.stack([uniform(seed, epoch, attempt, s) for s in streams], dim=-1).numpy()

    def part(self, draws: np.ndarray, height: int, width: int) -> Box:
        """The part of a picture of that size.

        Args:
            draws: (10, 4), of this image.
        """
        (least, most), shape = self.share, self.image_size[1] / self.image_size[0]
        low, high = (math.log(ratio * shape) for ratio in _RATIO)
        for area, ratio, y, x in draws.tolist():
            pixels = height * width * (least + area * (most - least))
            aspect = math.exp(low + ratio * (high - low))
            w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(y * (height - h + 1)), int(x * (width - w + 1)), h, w)
        own = width / height
        w = min(width, max(1, round(height * math.exp(high)))) if own > math.exp(high) else width
        h = min(height, max(1, round(width / math.exp(low)))) if own < math.exp(low) else height
        return Box((height - h) // 2, (width - w) // 2, h, w)


def scale_into(out: np.ndarray, pixels: np.ndarray) -> None:
    """Scale uint8 (h, w, C) to fill ``out``, uint8 (C, H, W): bilinear, with anti-aliasing."""
    if pixels.shape[:2] == out.shape[1:]:
        np.copyto(out, pixels.transpose(2, 0, 1))
        return
    images = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    scaled = F.interpolate(images, out.shape[1:], mode="bilinear", antialias=True)
    np.copyto(out, scaled[0].numpy())
