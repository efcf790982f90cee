"""The augmentation of photographs: all that a configuration can ask for, in one fixed order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from cvattn.data.images.augment import Augmentation, CropFlip
from cvattn.data.images.colour import ColorJitter
from cvattn.data.images.erasing import RandomErasing
from cvattn.data.images.own_transforms import OwnTransforms
from cvattn.data.images.rand_augment import RandAugment, TrivialAugment, in_turn


@dataclass(frozen=True, kw_only=True)
class PhotoAugmentation:
    """What is done to training images, in this order: the argument of a data module, by its name.

    Of data that has a random resized crop, that comes before.

    1. ``rand_augment`` or ``trivial_augment``;
    2. ``color_jitter``;
    3. ``transforms``;
    4. ``crop_pad``, ``flip`` and ``cutout``;
    5. ``random_erasing``.

    Args:
        rand_augment, rand_augment_magnitude: operations on an image, and their strength
            (:class:`cvattn.data.images.rand_augment.RandAugment`); 0: none.
        trivial_augment: :class:`cvattn.data.images.rand_augment.TrivialAugment`, in its place.
        color_jitter: strength, see :meth:`cvattn.data.images.colour.ColorJitter.of_strength`.
        transforms: a user's own, of torchvision
            (:class:`cvattn.data.images.own_transforms.OwnTransforms`).
        crop_pad, flip, cutout: :class:`cvattn.data.images.augment.CropFlip`.
        random_erasing: share of the images that lose a rectangle
            (:class:`cvattn.data.images.erasing.RandomErasing`).
    """

    crop_pad: int = 4
    flip: str = "random"
    cutout: int = 0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    trivial_augment: bool = False
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    transforms: Sequence[Callable[[Tensor], Tensor]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.trivial_augment, bool):
            raise TypeError(f"trivial_augment must be true or false, got {self.trivial_augment!r}")
        self.filling((0,))  # each step says what is wrong with its values
        if self.trivial_augment and self.rand_augment:
            raise ValueError(
                f"trivial_augment and rand_augment={self.rand_augment}: the one stands in the "
                "place of the other; choose one"
            )

    def check_fits(self, channels: int, height: int, width: int) -> None:
        """ValueError if something cannot be done to images of this size."""
        CropFlip(crop_pad=self.crop_pad).check_fits(height, width)
        OwnTransforms(tuple(self.transforms)).check_fits(channels, height, width)

    def filling(self, fill: tuple[int, ...]) -> Augmentation:
        """All of it as one; ``fill`` is the colour of what is erased, per channel in 0..255."""
        steps: list[Augmentation] = [
            RandAugment(self.rand_augment, self.rand_augment_magnitude),
            *([TrivialAugment()] if self.trivial_augment else []),
            ColorJitter.of_strength(self.color_jitter),
            *([OwnTransforms(tuple(self.transforms))] if self.transforms else []),
            CropFlip(crop_pad=self.crop_pad, flip=self.flip, cutout=self.cutout, fill=fill),
        ]
        erasing = RandomErasing(self.random_erasing, fill=fill)
        return in_turn(*steps, *([erasing] if self.random_erasing else []))
