"""Features that cost nothing."""

import torch
import torch.nn.functional as F

from cvattn.quality import FeatureNetwork

COUNT = 173


class Small(FeatureNetwork):
    """Coarse pixels, and how much they differ from the next ones."""

    name, weights, size, num_features = "small", "none", 5, 31

    def forward(self, images):
        pixels = images[:, :1].float() / 255
        down, right = pixels.diff(dim=2), pixels.diff(dim=3)
        parts = [F.adaptive_avg_pool2d(pixels, 5)]
        parts += [F.adaptive_avg_pool2d(change.abs(), (1, 3)) for change in (down, right)]
        return torch.cat([part.flatten(1) for part in parts], 1)
