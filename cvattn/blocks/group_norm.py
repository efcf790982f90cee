"""Group norm of maps that are padded: only real positions are counted."""

import torch
from torch import Tensor, nn


class MapGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` on maps (B, C, ...), with a mask for those that are padded.

    Wu and He, "Group Normalization" (2018). With a mask, mean and variance are those of the real
    positions, so that a map gets what it would get alone; padding becomes the bias.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, C, ...); mask bool (B, ...), True = real; None = all."""
        if mask is None:
            return super().forward(x)
        padding = ~mask[:, None, None]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        grouped = wide.unflatten(1, (self.num_groups, -1))
        grouped = grouped.masked_fill(padding, 0.0)
        axes = list(range(2, grouped.ndim))
        count = mask.flatten(1).sum(1).clamp(min=1) * grouped.shape[2]
        count = count.view(-1, *[1] * (grouped.ndim - 1))
        centred = (grouped - grouped.sum(axes, keepdim=True) / count).masked_fill(padding, 0.0)
        variance = centred.square().sum(axes, keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        shape = (1, -1, *[1] * (x.ndim - 2))
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)
