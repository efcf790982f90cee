"""RandAugment: a few random operations, one image at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cvattn.data.checks import check_int
from cvattn.data.counter import Stream, bits
from cvattn.data.images.augment import Augmentation

_MAGNITUDES = 31


@dataclass(frozen=True)
class RandAugment:
    """torchvision's RandAugment (Cubuk et al., 2019), with draws of its own for every image.

    Unlike the other augmentations it takes the images one by one, which costs some tenths of a
    millisecond each on a CPU.

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
        # torchvision draws from torch's own generator on the CPU; those of GPUs are left alone.
        with torch.random.fork_rng(devices=[]):
            done = []
            for image, key in zip(
                images, bits(seed, epoch, index, Stream.RAND_AUGMENT).tolist(), strict=True
            ):
                torch.default_generator.manual_seed(key)
                done.append(augment(image))
        return torch.stack(done)


def in_turn(*augmentations: Augmentation) -> Augmentation:
    """One augmentation after the other, as one."""

    def run(images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        for augment in augmentations:
            images = augment(images, index, seed=seed, epoch=epoch)
        return images

    return run
