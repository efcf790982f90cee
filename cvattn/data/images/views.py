"""Test-time augmentation: the views of an image whose logits are averaged."""

import torch.nn.functional as F
from torch import Tensor

from cvattn.data.checks import check_choice

VIEWS = ("none", "flip", "flip_shift")


def views_of(images: Tensor, views: str) -> list[tuple[float, Tensor]]:
    """What the network is to see of each image, with weights that sum to 1; the image itself first.

    Args:
        images: (B, C, H, W), normalised.
        views: "none"; "flip", the image and its mirror image; "flip_shift", these and the same two
            shifted by one pixel up and left, and down and right (the border is reflected), which
            have a quarter of the weight each (airbench's, see Jordan, "94% on CIFAR-10 in 3.29
            seconds on a single GPU", 2024).
    """
    check_choice("test_views", views, VIEWS)
    if views == "none":
        return [(1.0, images)]
    pair = [images, images.flip(-1)]
    if views == "flip":
        return [(0.5, view) for view in pair]
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[..., at : at + height, at : at + width] for at in (0, 2)]
    return [(0.25, view) for view in pair] + [
        (0.125, view) for crop in shifted for view in (crop, crop.flip(-1))
    ]
