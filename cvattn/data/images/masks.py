"""What data modules share whose images have masks: a class for every pixel."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.images.augment import Augmentation, CropFlip
from cvattn.data.images.base import ImageDataModule, ImageSet, with_labels
from cvattn.data.info import VOID, MaskInfo
from cvattn.data.loader import BatchLoader


class MaskLoader(BatchLoader):
    """Yields ``(images, masks)``: float32 (B, C, H, W), normalised, and uint8 (B, H, W).

    Args:
        images, batch_size, mean, std, others: as in :class:`BatchLoader`.
        masks: uint8 (N, H, W), of the images' size.
        move: what is done to training images and their masks together; None: nothing.
    """

    def __init__(
        self, images: Tensor, masks: Tensor, *, move: CropFlip | None = None, **options: Any
    ) -> None:
        super().__init__(images, masks, **options)
        if masks.dtype != torch.uint8 or masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(
                f"masks must be uint8 (N, H, W) as the images {tuple(images.shape)}, got "
                f"{masks.dtype} of shape {tuple(masks.shape)}"
            )
        self.move = move

    def batch(self, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """The images and masks at ``index`` (int64), as ``iter()`` yields them."""
        if self.move is None:
            return super().batch(index, epoch)
        index = index.to(self.device)
        images, masks = self.move.with_masks(
            self.images[index], self.labels[index], index, seed=self.seed, epoch=epoch
        )
        return self.normalised(images), masks


class MaskDataModule(ImageDataModule):
    """Base of the data modules for :class:`cvattn.tasks.SegmentationTask`.

    As :class:`ImageDataModule`; the ``labels`` of its sets are masks, uint8 (N, H, W), with classes
    and :data:`VOID`. A subclass also writes ``_move()``.
    """

    target: ClassVar[str] = "mask"

    def describe(self) -> MaskInfo:
        """What can be known without reading pixels; ``.info`` once ``setup()`` has run."""
        raise NotImplementedError

    def _move(self) -> CropFlip | None:
        """What is done to training images and masks together, or None."""
        raise NotImplementedError

    def _augmentation(self) -> Augmentation | None:
        return None  # what would not move the masks

    def setup(self, stage: str | None = None) -> None:
        """As in :class:`ImageDataModule`; the fingerprint is of the test masks too.

        Raises:
            DataError: a part without a pixel that has a class, training pixels of one class alone.
        """
        if self._sets:
            return
        super().setup(stage)
        info = self._complete_info()
        check_labelled(self._sets, info.classes)
        self.info = with_labels(info, self._sets["test"])

    def _make_loader(
        self, chosen: ImageSet, *, device: torch.device, train: bool = False
    ) -> MaskLoader:
        return MaskLoader(
            chosen.all_images(),
            chosen.labels,
            move=self._move() if train else None,
            **self._options(device=device, train=train),
        )


def check_labelled(sets: Mapping[str, ImageSet], classes: Sequence[str]) -> None:
    """Raise DataError where there is nothing to learn or to judge by."""
    for name, part in sets.items():
        counts = pixels_of_classes(part.labels, len(classes))
        there = counts.nonzero()[:, 0].tolist()
        if not there:
            raise DataError(f"{name}: no pixel of a mask has a class: all are void")
        if name == "train" and len(there) == 1:
            raise DataError(
                f"every pixel of the training masks that has a class is {classes[there[0]]!r}: "
                "there is one class only, and nothing to learn"
            )


def pixels_of_classes(masks: Tensor, classes: int) -> Tensor:
    """How many pixels of masks (N, H, W) each class has, int64 (classes,)."""
    counts = torch.zeros(VOID + 1, dtype=torch.int64)
    for mask in masks:  # one at a time: as int64 they need eight times the memory
        counts += mask.flatten().bincount(minlength=VOID + 1)
    return counts[:classes]
