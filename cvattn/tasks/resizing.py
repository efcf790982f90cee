"""Smaller images at first: cheaper steps while there is only the coarse to learn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class ProgressiveResizing:
    """Resizes training images by how far training is.

    Howard et al., fast.ai's DAWNBench entry (2018); Tan and Le, "EfficientNetV2" (2021), section 4.
    Validation and test images stay as they are.

    Args:
        phases: (scale, share) in turn: for that share of all steps, both sides are scale times as
            long. What the shares leave of the steps is at full size.
        multiple_of: pixels that both sides are rounded to, such as the side of a ViT's patches.

    Raises:
        ValueError: a scale outside (0, 1]; shares that are not positive or sum to more than 1.
    """

    def __init__(self, phases: Sequence[tuple[float, float]], *, multiple_of: int = 1) -> None:
        for scale, share in phases:
            if not 0.0 < scale <= 1.0:
                raise ValueError(f"resizing: the scale {scale} must be in (0, 1]")
            if not share > 0.0:
                raise ValueError(f"resizing: the share {share} of the steps must be positive")
        total = sum(share for _, share in phases)
        if total > 1.0 + 1e-9:
            raise ValueError(f"resizing: the shares sum to {total:g}, more than all steps")
        self.phases = [(float(scale), float(share)) for scale, share in phases]
        self.multiple_of = multiple_of

    def scale_at(self, progress: float) -> float:
        """Of the images, when that share of the steps is done."""
        end = 0.0
        for scale, share in self.phases:
            end += share
            if progress < end:
                return scale
        return 1.0

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w), the nearest that is allowed, filtered against aliasing."""
        scale, unit = self.scale_at(progress), self.multiple_of
        size = [unit * max(1, round(scale * side / unit)) for side in images.shape[-2:]]
        if scale == 1.0 or size == list(images.shape[-2:]):
            return images
        # In float32 on a CPU: the filter is not there in half precision.
        wide = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        return F.interpolate(wide, size, mode="bilinear", antialias=True).to(images.dtype)
