"""RandAugment and TrivialAugment: a few random operations, one image at a time."""

from dataclasses import dataclass

from torch import Tensor

from cvattn.data.checks import check_int
from cvattn.data.counter import Stream, bits
from cvattn.data.images.augment import Augmentation
from cvattn.data.images.one_by_one import one_by_one

_MAGNITUDES = 31


@dataclass(frozen=True)
class RandAugment:
    """torchvision's RandAugment (Cubuk et al., 2019), with draws of its own for every image.

    Args:
        operations: how many operations an image goes through; 0: none.
        magnitude: their strength, 0 to 30.
    """

    operations: int
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_int("rand_augment", self.operations, minimum=0)
        if check_int("rand_augment_magnitude", self.magnitude, minimum=0) >= _MAGNITUDES:
            raise ValueError(
                f"rand_augment_magnitude={self.magnitude} must be at most {_MAGNITUDES - 1}"
            )

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        if not self.operations:
            return images
        from torchvision.transforms import v2

        augment = v2.RandAugment(self.operations, self.magnitude, num_magnitude_bins=_MAGNITUDES)
        return one_by_one(augment, images, bits(seed, epoch, index, Stream.RAND_AUGMENT))


@dataclass(frozen=True)
class TrivialAugment:
    """torchvision's TrivialAugmentWide, with a draw of its own for every image.

    One operation of a random strength (Müller and Hutter, "TrivialAugment: Tuning-free
    Yet State-of-the-Art Data Augmentation", 2021): nothing to tune.
    """

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        from torchvision.transforms import v2

        keys = bits(seed, epoch, index, Stream.TRIVIAL_AUGMENT)
        return one_by_one(v2.TrivialAugmentWide(), images, keys)


def in_turn(*augmentations: Augmentation) -> Augmentation:
    """One augmentation after the other, as one."""

    def run(images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        for augment in augmentations:
            images = augment(images, index, seed=seed, epoch=epoch)
        return images

    return run
