"""A network that makes images in one step: the generator of a GAN."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvattn.inference.errors import InferenceError
from cvattn.inference.generator import BATCH, Generator
from cvattn.models.flow import draw_noise


@dataclass(frozen=True, kw_only=True)
class GANWay:
    """How images are made.

    Attributes:
        truncation: noise is from a normal distribution that is cut off at so many standard
            deviations: more typical images, and more alike (Brock, Donahue and Simonyan, "Large
            Scale GAN Training", 2019); None = not cut.
        seed: of the noise.
    """

    truncation: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.truncation is not None and not 0.0 < self.truncation < math.inf:
            raise InferenceError(f"truncation={self.truncation} must be more than 0")

    @property
    def words(self) -> str:
        cut = "" if self.truncation is None else f"truncation {self.truncation:g}, "
        return f"{cut}seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class GANGenerator(Generator):
    """One that has learned with ``task=gan``."""

    way = GANWay

    @property
    def noise_dim(self) -> int:
        """Numbers that an image is made from."""
        network: Any = self.network
        return network.noise_dim

    def sample(
        self, count: int, *, classes: Sequence[int] = (), way: GANWay | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        labels = self.labels(count, classes)
        return self.from_noise(self.noise(count, way), labels), labels.numpy()

    def between(
        self, count: int, *, steps: int = 8, classes: Sequence[int] = (), way: GANWay | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images on the way from one noise to another, of one class, from the one end to the other.

        Along the great circle, so that noise on the way is as long as noise is, and no shorter
        (White, "Sampling Generative Networks", 2016).

        Args:
            count: of such ways.
            steps: images of each, its ends included; at least 2.

        Returns:
            pixels, uint8 (count * steps, C, H, W), way after way, and their labels.
        """
        if steps < 2:
            raise InferenceError(f"steps={steps}: the two ends of a way are 2 images")
        labels = self.labels(count, classes).repeat_interleave(steps)
        begin, end = self.noise(2 * count, way).view(2, count, 1, -1)
        share = torch.linspace(0.0, 1.0, steps).view(1, -1, 1)
        noise = _on_the_arc(begin, end, share).flatten(0, 1)
        return self.from_noise(noise, labels), labels.numpy()

    def noise(self, count: int, way: GANWay | None = None) -> Tensor:
        """(count, noise_dim) float32, on the CPU; more only adds to the end."""
        way = GANWay() if way is None else way
        noise = draw_noise(count, (self.noise_dim,), seed=way.seed)
        return noise if way.truncation is None else truncated(noise, way.truncation)

    @torch.no_grad()
    def from_noise(self, noise: Tensor, labels: Tensor) -> np.ndarray:
        """Images of noise (B, noise_dim), uint8 (B, C, H, W)."""
        made = [
            self.network(part.to(self.device), told.to(self.device) if self.labelled else None)
            for part, told in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return self._to_pixels(torch.cat(made))


def truncated(noise: Tensor, most: float) -> Tensor:
    """Numbers of a normal distribution as those of one that is cut off at ``-most`` and ``most``.

    Each keeps its rank, so the same seed gives the same images, only more typical.
    """
    root = math.sqrt(2.0)
    inside = math.erf(most / root)  # share of a normal distribution
    return (root * torch.erfinv(inside * torch.erf(noise.double() / root))).float()


def _on_the_arc(begin: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """From one vector to another at an even angle, their lengths in proportion; (..., D)."""
    lengths = [x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (begin, end)]
    first, last = begin / lengths[0], end / lengths[1]
    angle = (first * last).sum(-1, keepdim=True).clamp(-1.0, 1.0).arccos()
    sine = angle.sin().clamp_min(1e-6)  # of opposite ends any way is as good
    turned = (((1.0 - share) * angle).sin() * first + (share * angle).sin() * last) / sine
    straight = (1.0 - share) * first + share * last
    along = torch.where(angle < 1e-4, straight, turned)
    return along * ((1.0 - share) * lengths[0] + share * lengths[1])
