"""Distances between two sets of images, by the features of their images.

The arithmetic is torchmetrics' own, in float64. Features are computed once and handed to it
through a module that does nothing, since its metrics would compute them again for each comparison.
"""

import math
import statistics
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_KERNEL_IMAGES = 2000  # of a kernel matrix: 32 MB each


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance from a data set's images, and what it must be quoted with.

    Attributes:
        name: "FD-lite0" or "KD-lite0": by which distance and of which features.
        values: one for each draw of images.
        count, reference_count: images on this side and on the data's, of each draw.
        reference: the split that the data's images are of.
        weights: sha256 of the feature network's file of weights.
        size: side in pixels to which images were resized.
        note: what else there is to know, or "".
    """

    name: str
    values: tuple[float, ...]
    count: int
    reference_count: int
    reference: str
    weights: str
    size: int
    note: str = ""

    @property
    def mean(self) -> float:
        """Over the draws."""
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        """The lowest draw."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest draw."""
        return max(self.values)


def frechet(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between the Gaussians with the means and covariances of both (N, D).

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, S with N - 1 in the denominator (Heusel et al.,
    "GANs Trained by a Two Time-Scale Update Rule", 2017). It grows as N gets smaller, whatever the
    images: compare at equal N, and with the floor.

    Raises:
        ValueError: not two sets of features of one length; fewer than 2 images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(features, reference)
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1]))
    return _fill(metric, features, reference).compute().item()


def kernel(features: Tensor, reference: Tensor, *, seed: int = 0) -> float:
    """Squared maximum mean discrepancy with the kernel ``(x y / D + 1)^3``, unbiased.

    (Binkowski et al., "Demystifying MMD GANs", 2018.) Unlike :func:`frechet` its mean does not
    depend on N; between equal distributions it lies around 0, on both sides. Up to 2,000 images
    are compared at once; of more, the mean over as many random subsets of 2,000 as there are.

    Raises:
        ValueError: as in :func:`frechet`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _check(features, reference)
    count = min(len(features), len(reference))
    size = min(count, _KERNEL_IMAGES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        metric = KernelInceptionDistance(
            feature=_Given(features.shape[1]), subsets=math.ceil(count / size), subset_size=size
        )
    _fill(metric, features, reference)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return metric.compute()[0].item()


def note_on(count: int, num_features: int) -> str:
    """What is to be said of a Fréchet distance of so few images, or ""."""
    if count > num_features:
        return ""
    return (
        f"{count} images have covariances of rank {count - 1} at most in {num_features} "
        "dimensions: the distance compares only with others at this N"
    )


class _Given(nn.Module):
    """Stands where torchmetrics expects the network: what comes in are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _fill(metric, features: Tensor, reference: Tensor):
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return metric


def _check(features: Tensor, reference: Tensor) -> None:
    if not features.ndim == reference.ndim == 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            "expected two sets of features, (N, D) and (M, D), got "
            f"{tuple(features.shape)} and {tuple(reference.shape)}"
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"{len(features)} and {len(reference)} images: a distance needs 2 or more on each side"
        )
