"""What a distance says of images that are known to be good, and of those that are known to be bad.

The floor is the distance of the training images from the test images: no samples can be expected
to be nearer. Each rung above it is the same training images made worse. A distance that does not
climb measures nothing; where samples stand between the rungs says what its number means.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.quality.features import extract
from cvattn.quality.reference import Distances, Reference

BLURS = (0.5, 1.0, 2.0)  # sigma in pixels
NOISES = (0.05, 0.1, 0.2)  # standard deviation, of the range of pixels
FLOOR = "training images"
Change = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Rung:
    """Training images made worse in one way, and how far that takes them from the test images.

    Attributes:
        kind: "floor", "blur", "noise", "missing class" or "one image".
        amount: of the blur or the noise; else 0.
        name: for people.
    """

    kind: str
    amount: float
    name: str
    distances: Distances


def floor(reference: Reference) -> Rung:
    """The training images as they are."""
    return Rung(
        "floor",
        0.0,
        FLOOR,
        reference.compare(lambda draw: reference.features("train", reference.drawn("train", draw))),
    )


def ladder(reference: Reference, *, missing: int = 0) -> list[Rung]:
    """The floor and what is above it, in this order: blur, noise, a missing class, one image.

    Features of 6 x draws x count changed images are computed, which takes the most time.

    Args:
        missing: the class of which there are no images on that rung.
    """
    return list(_climb(reference, missing))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """uint8 (N, C, H, W) under a Gaussian of ``sigma`` pixels; the border is repeated."""
    reach = math.ceil(4 * sigma)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = (-(places**2) / (2 * sigma**2)).exp()
    weights /= weights.sum()
    pixels = images.flatten(0, 1).unsqueeze(1).float()
    pixels = F.pad(pixels, (reach,) * 4, mode="replicate")
    pixels = F.conv2d(F.conv2d(pixels, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return pixels.round().clamp(0, 255).to(torch.uint8).view_as(images)


def noisy(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """uint8 (N, C, H, W) with Gaussian noise of ``std`` x 255, cut to the range of pixels."""
    noise = torch.randn(images.shape, generator=generator)
    return (images + 255 * std * noise).round().clamp(0, 255).to(torch.uint8)


def _climb(reference: Reference, missing: int) -> Iterator[Rung]:
    yield floor(reference)
    changes: list[tuple[str, float, str, Change]] = [
        *(("blur", sigma, f"blur, sigma {sigma:g}", _blur(sigma)) for sigma in BLURS),
        *(("noise", std, f"noise, std {std:g}", _noise(std)) for std in NOISES),
    ]
    for kind, amount, name, change in changes:
        yield Rung(kind, amount, name, reference.compare(_changed(reference, name, change)))
    distances = reference.compare(
        lambda draw: reference.features("train", reference.drawn("train", draw, without=missing))
    )
    yield Rung("missing class", 0.0, f"without {reference.info.classes[missing]}", distances)
    distances = reference.compare(
        lambda draw: reference.features("train", reference.drawn("train", draw)[:1]).expand(
            reference.count, -1
        )
    )
    yield Rung("one image", 0.0, "one image only", distances)


def _changed(reference: Reference, name: str, change: Change) -> Callable[[int], Tensor]:
    def features(draw: int) -> Tensor:
        images = reference.images("train")[reference.drawn("train", draw)]
        return extract(reference.network, change(images, reference.generator(name, draw)))

    return features


def _blur(sigma: float) -> Change:
    return lambda images, _: blurred(images, sigma)


def _noise(std: float) -> Change:
    return lambda images, generator: noisy(images, std, generator)
