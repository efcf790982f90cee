"""A user's own torchvision transforms, one image at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cvattn.data.counter import Stream, bits
from cvattn.data.images.one_by_one import one_by_one

_TRIALS = 8  # before the data is read: some transforms do nothing to half of the images
_LATER = (
    "Leave out Normalize, ToDtype and the like: pixels are converted and normalised (mean, std) "
    "after the transforms, for whole batches"
)


@dataclass(frozen=True)
class OwnTransforms:
    """``torchvision.transforms.v2`` transforms in turn, with draws of their own for every image.

    An image is uint8 (C, H, W) before each and must be so after it: normalisation and the
    conversion to floats come later, for whole batches. What is random is drawn from torch's
    generator, which is seeded for every image; a transform that draws elsewhere (``random``, numpy)
    is not repeatable.
    """

    transforms: tuple[Callable[[Tensor], Tensor], ...]

    def __post_init__(self) -> None:
        if not self.transforms:
            return
        from torchvision.transforms import v2

        for place, transform in enumerate(self.transforms):
            if not isinstance(transform, v2.Transform):
                raise TypeError(
                    f"transforms[{place}]={transform!r}: expected a torchvision.transforms.v2."
                    "Transform; in a configuration {_target_: torchvision.transforms.v2."
                    "GaussianBlur, kernel_size: 5}"
                )

    def check_fits(self, channels: int, height: int, width: int) -> None:
        """Try them on black images. ValueError of one that raises, or gives no image of the size.

        What it gives to an image of training is looked at too.
        """
        if self.transforms:
            black = torch.zeros(_TRIALS, channels, height, width, dtype=torch.uint8)
            self(black, torch.arange(_TRIALS), seed=0, epoch=0)

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        keys = bits(seed, epoch, index, Stream.TRANSFORMS)
        return one_by_one(self._in_turn, images.clone(), keys)  # some write into their image

    def _in_turn(self, image: Tensor) -> Tensor:
        for place, transform in enumerate(self.transforms):
            name = f"transforms[{place}], {type(transform).__name__}"
            try:
                changed = transform(image)
            except Exception as error:  # they complain in many ways
                raise ValueError(
                    f"{name}, cannot be used on an image, uint8 {tuple(image.shape)}: {error}. "
                    + _LATER
                ) from error
            if not isinstance(changed, Tensor) or changed.dtype != torch.uint8:
                what = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(
                    f"{name}, makes {what} of an image: each must give uint8 again. " + _LATER
                )
            if changed.shape != image.shape:
                raise ValueError(
                    f"{name}, makes {tuple(changed.shape)} of an image {tuple(image.shape)}: the "
                    "size and the channels must stay. data.image_size= says the size, and "
                    "a crop back to it can follow within one Compose"
                )
            image = changed
        return image
