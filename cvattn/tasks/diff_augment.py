"""Augmentation of what a discriminator sees, through which the generator learns."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.system import did_you_mean


class DiffAugment:
    """Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (2020).

    Real and made images go through the same kinds before they are scored, each image with a draw of
    its own; unlike augmentation of the data alone, what is made is not drawn towards what is
    augmented. Where images are few (they train on 100 to 10 % of CIFAR-10) the discriminator
    learns them by heart otherwise.

    - "color": brightness by up to one standard deviation of the pixels up or down (theirs is a
      quarter of the range, about the same; here images are normalised), then saturation by a factor
      of 0 to 2 and contrast by one of 0.5 to 1.5;
    - "translation": by up to an eighth of each side;
    - "cutout": a square of half the sides, which may lie across an edge.

    What is uncovered is 0, the mean of the pixels.

    Args:
        kinds: which of them, in this order whatever theirs; () = images stay as they are.

    Shape:
        (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: a kind that there is not, or the same twice.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            if kind not in _KINDS:
                raise ValueError(
                    f"augment: {kind!r}; expected some of {', '.join(_KINDS)}"
                    f"{did_you_mean(kind, list(_KINDS))}"
                )
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"augment: {list(kinds)} has a kind twice")
        self.kinds = tuple(kind for kind in _KINDS if kind in kinds)

    def __call__(self, images: Tensor) -> Tensor:
        for kind in self.kinds:
            images = _KINDS[kind](images)
        return images


def _color(images: Tensor) -> Tensor:
    shift, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + (2.0 * shift - 1.0)
    grey = images.mean(1, keepdim=True)
    images = grey + 2.0 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (images - mean)


def _translation(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    most = [(side + 4) // 8 for side in (height, width)]
    down, right = (_whole(-far, far, images) for far in most)
    rows = torch.arange(height, device=images.device) - down[:, None] + most[0]
    columns = torch.arange(width, device=images.device) - right[:, None] + most[1]
    padded = F.pad(images, (most[1], most[1], most[0], most[0]))
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _cutout(images: Tensor) -> Tensor:
    inside = []
    for side in images.shape[-2:]:
        hole = side // 2
        first = _whole(-(hole // 2), side - hole + hole // 2, images)[:, None]
        place = torch.arange(side, device=images.device)
        inside.append((place >= first) & (place < first + hole))
    kept = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return images * kept


def _whole(low: int, high: int, images: Tensor) -> Tensor:
    """A whole number in low ... high for each image, int64 (B,)."""
    return torch.randint(low, high + 1, (len(images),), device=images.device)


# In the order in which they are applied.
_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
