"""Scanned handwritten digits that come with scikit-learn: no download, seconds to learn."""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from cvattn.data.images.augment import Affine, Augmentation
from cvattn.data.images.base import ImageDataModule, ImageSet
from cvattn.data.info import DataInfo
from cvattn.data.split import stratified_split

TRAIN, VAL, TEST = 1257, 180, 360
SPLIT_SEED = 1797
# Of the 1,257 training images, after upscaling; a test measures them again.
MEAN, STD = 0.3045637, 0.3233967


class DigitsData(ImageDataModule):
    """1,797 handwritten digits (UCI's optical recognition test set) as 3 x 32 x 32 images.

    The originals are 8 x 8 with values 0..16; they are scaled up bilinearly and the three
    channels are equal. Split 1,257 / 180 / 360, stratified, at random with a fixed seed. The
    writers are not known for each image, so **the same writers are in all three parts**: the
    accuracy says how well digits of known hands are read.

    Augmented by small shifts, rotations and changes of size; never flipped, a digit is not its
    mirror image.

    Args:
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
        shift: largest shift in pixels of the 32 x 32 image.
        rotation: largest rotation in degrees.
        scale: largest relative change of size.
    """

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        seed: int = 0,
        shift: float = 3.0,
        rotation: float = 10.0,
        scale: float = 0.1,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self._affine = Affine(shift=shift, rotation=rotation, scale=scale)

    def describe(self) -> DataInfo:
        """Constants; nothing is read."""
        return self.info or DataInfo(
            name="digits",
            classes=tuple("0123456789"),
            channels=3,
            image_size=(32, 32),
            mean=(MEAN,) * 3,
            std=(STD,) * 3,
            train_size=TRAIN,
            val_size=VAL,
            test_size=TEST,
            source="scikit-learn's embedded handwritten digits (writers are mixed between parts)",
        )

    def _augmentation(self) -> Augmentation | None:
        affine = self._affine
        return affine if affine.shift or affine.rotation or affine.scale else None

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
        # Every product here is a multiple of 1/1024, so the result is exact on any machine.
        large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
        images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(bunch.target).long()

        rest, test = stratified_split(labels, TEST, seed=SPLIT_SEED)
        train, val = stratified_split(labels[rest], VAL, seed=SPLIT_SEED)
        parts = {"train": rest[train], "val": rest[val], "test": test}
        sets = {name: ImageSet(images[at], labels[at]) for name, at in parts.items()}
        return sets, self.describe()
