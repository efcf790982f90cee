"""Whether samples are copies: how near they are to training images, beside how near others are.

Test images are no copies of training images, so how near they come to them is what chance does. If
many more samples come that near, they may have been memorised, and the picture of both says more.
It may also be that samples have less detail than images, which brings them nearer to everything.
Mirrored and moved copies are not looked for.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 4096
_QUANTILE = 0.01
_CHANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of samples and of test images to the nearest training image, in one space.

    Attributes:
        space: "pixels" (Euclidean, of pixels in 0..1), or the name of the feature network.
        among: how many training images were searched.
        distances: (N,) float64, of each sample.
        nearest: (N,), the position of its nearest in the training images.
        test_distances: (M,) float64.
    """

    space: str
    among: int
    distances: Tensor
    nearest: Tensor
    test_distances: Tensor

    @property
    def threshold(self) -> float:
        """How near the nearest 1 % of the test images are: a distance that one of them has."""
        rank = math.ceil(_QUANTILE * len(self.test_distances))
        return self.test_distances.kthvalue(rank).values.item()

    @property
    def share(self) -> float:
        """Of the samples, those that near."""
        return _share(self.distances, self.threshold)

    @property
    def test_share(self) -> float:
        """Of the test images, those that near: 1 %, or more where several are equally near."""
        return _share(self.test_distances, self.threshold)

    @property
    def chance(self) -> float:
        """How often so many samples would be that near if they were drawn as test images are.

        With the samples and the test images sorted by distance, the samples that come before the
        k-th test image have a negative hypergeometric distribution, whatever the distances are.
        """
        samples, test = len(self.distances), len(self.test_distances)
        near = round(self.share * samples)
        first = near + round(self.test_share * test) - 1
        sums = (
            math.exp(
                _log_choices(samples, each)
                + _log_choices(test, first - each)
                - _log_choices(samples + test, first)
            )
            for each in range(near, min(first, samples) + 1)
            if first - each <= test
        )
        return min(1.0, math.fsum(sums))

    @property
    def alarm(self) -> bool:
        """Whether :attr:`chance` is below 1 in 10,000."""
        return self.chance < _CHANCE


def find_neighbours(
    space: str, samples: Tensor, test: Tensor, train: Tensor, positions: Tensor
) -> Neighbours:
    """Search the training images for the nearest of each sample and of each test image.

    Args:
        space: see :class:`Neighbours`.
        samples, test, train: (N, D), (M, D) and (K, D), float32.
        positions: (K,), of ``train`` in the training images.
    """
    distances, nearest = _nearest(samples, train)
    test_distances, _ = _nearest(test, train)
    return Neighbours(space, len(train), distances, positions[nearest], test_distances)


def as_points(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as points (N, C x H x W) of pixels in 0..1."""
    return images.flatten(1).float() / 255


def _nearest(points: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) to the nearest, float64, and its position (N,).

    The search is in float32 through a product, which is exact enough to find it and not to measure
    it: of a copy that would not give 0.
    """
    best = torch.full((len(points),), torch.inf)
    nearest = torch.zeros(len(points), dtype=torch.int64)
    for start in range(0, len(among), _BLOCK):
        block = among[start : start + _BLOCK]
        squares, at = (block.square().sum(1) - 2 * (points @ block.T)).min(1)
        better = squares < best
        best = torch.where(better, squares, best)
        nearest = torch.where(better, start + at, nearest)
    return (points.double() - among[nearest].double()).norm(dim=1), nearest


def _share(distances: Tensor, threshold: float) -> float:
    return (distances <= threshold).double().mean().item()


def _log_choices(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)
