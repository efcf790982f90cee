"""A first convolution whose filters come from the images themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchWhitening(nn.Conv2d):
    """A 2x2 convolution onto whitened principal components of image patches, and their negatives.

    (B, C, H, W) -> (B, 8 C, H-1, W-1). The filters are set once, by :meth:`fit`, and stay; only the
    bias is trained. With them the first layer starts where training would otherwise have to bring
    it. From Page ("How to train your ResNet 8", 2019) and Jordan's airbench ("94% on CIFAR-10 in
    3.29 seconds on a single GPU", 2024); theirs are 3x3 and 2x2 patches of the first 5,000 images.

    Before :meth:`fit` the filters are random.

    Args:
        in_channels: of the images.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 8 * in_channels, kernel_size=2)
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fit(self, images: Tensor, *, eps: float = 5e-4) -> None:
        """Set the filters from normalised images (N, C, H, W).

        Args:
            eps: added to the variances, so that components which are almost constant are not
                blown up.
        """
        size = self.in_channels * 4
        moments = torch.zeros(size, size, dtype=torch.float64)
        count = 0
        for part in images.split(100):
            patches = F.unfold(part, kernel_size=2).transpose(1, 2).reshape(-1, size).double()
            moments += patches.T @ patches
            count += len(patches)
        variances, components = torch.linalg.eigh(moments / count)
        # The sign of a component is arbitrary and differs between machines; ours has its largest
        # entry positive.
        largest = components.gather(0, components.abs().argmax(0, keepdim=True))
        components = components * largest.sign()
        # In grey images most components are rounding errors, which the batch norms behind would
        # raise to the size of the rest.
        components = components * (variances > 1e-9 * variances.max())
        filters = (components / (variances + eps).sqrt()).T.flip(0)  # the largest variance first
        filters = filters.reshape(size, self.in_channels, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))
