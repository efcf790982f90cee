"""Images as the networks take them: checks that all share, and a larger size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def check_images(images: Tensor, in_channels: int) -> None:
    """Raise ValueError unless images are (B, in_channels, H, W)."""
    if images.ndim != 4:
        raise ValueError(
            f"expected a batch of images (batch, channels, height, width), got shape "
            f"{tuple(images.shape)}; add the batch dimension with .unsqueeze(0)"
        )
    if images.shape[1] != in_channels:
        raise ValueError(
            f"the model was built for {in_channels} channels, the images have {images.shape[1]}"
        )


def check_image_size(images: Tensor, image_size: tuple[int, int]) -> None:
    """Raise ValueError, naming both sizes, unless images are (..., *image_size)."""
    if tuple(images.shape[-2:]) != image_size:
        raise ValueError(
            f"the model was built for images of {image_size} (height, width), these are "
            f"{tuple(images.shape[-2:])}; resize them, or build the model with that image_size"
        )


def enlarged(images: Tensor, size: int | None) -> Tensor:
    """Images (B, C, H, W) whose shorter side is ``size`` pixels, bilinearly; None: as they are.

    Raises:
        ValueError: their shorter side is longer, so that pixels would be skipped.
    """
    shorter = min(images.shape[-2:])
    if size is None or shorter == size:
        return images
    if shorter > size:
        raise ValueError(
            f"images of {tuple(images.shape[-2:])} are larger than input_size={size}, which only "
            "enlarges: shrink them where they are read (data.image_size), or raise input_size"
        )
    height, width = (round(side * size / shorter) for side in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def channel_constants(name: str, values: float | Sequence[float] | Tensor, channels: int) -> Tensor:
    """A mean or a standard deviation of images, (C, 1, 1), on the CPU, where float64 exists.

    Raises:
        ValueError: another number of them; some that nothing can be divided by.
    """
    given = (
        values.detach().cpu()
        if isinstance(values, Tensor)
        else torch.tensor(values, dtype=torch.float64)
    )
    given = given.to(torch.float64).flatten()
    if given.numel() not in (1, channels):
        raise ValueError(
            f"{name} has {given.numel()} values; expected one, or one for each of the {channels} "
            "channels"
        )
    if not given.isfinite().all() or (name.endswith("std") and bool((given <= 0).any())):
        what = "numbers above 0" if name.endswith("std") else "finite numbers"
        raise ValueError(f"{name}={given.tolist()}; expected {what}")
    return given.expand(channels)[:, None, None]
