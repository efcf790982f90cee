"""CIFAR-10 and CIFAR-100 from any of the forms that people have, or downloaded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from cvattn.data.checks import DataError, check_choice
from cvattn.data.images import cifar_files as files
from cvattn.data.images.augment import Augmentation
from cvattn.data.images.base import ImageDataModule, ImageSet, fill_colour
from cvattn.data.images.cifar_facts import CIFAR10, CIFAR100, Cifar
from cvattn.data.images.photographs import PhotoAugmentation
from cvattn.data.images.views import VIEWS
from cvattn.data.info import DataInfo
from cvattn.data.published import Published
from cvattn.data.split import stratified_split

_SPLIT_SEED = 2009


class CIFARData(ImageDataModule):
    """What the two have in common; :class:`CIFAR10Data` says what the arguments mean."""

    cifar: ClassVar[Cifar]

    def __init__(
        self,
        *,
        root: str | Path = "data",
        batch_size: int = 512,
        eval_batch_size: int = 1000,
        seed: int = 0,
        train_on_val: bool = False,
        crop_pad: int = 4,
        flip: str = "alternating",
        cutout: int = 0,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        trivial_augment: bool = False,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        test_views: str = "flip_shift",
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.root = Path(root).expanduser().absolute()
        self._photo_augmentation = PhotoAugmentation(
            crop_pad=crop_pad,
            flip=flip,
            cutout=cutout,
            rand_augment=rand_augment,
            rand_augment_magnitude=rand_augment_magnitude,
            trivial_augment=trivial_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            transforms=transforms,
        )
        self._photo_augmentation.check_fits(3, 32, 32)
        self.train_on_val = train_on_val
        self.test_views = check_choice("test_views", test_views, VIEWS)

    def describe(self) -> DataInfo:
        """Constants; looks at file names only."""
        if self.info is not None:
            return self.info
        found = files.find(self.cifar, self.root)
        beside = files.not_read(files.near(self.cifar, self.root))
        return DataInfo(
            name=self.cifar.name,
            classes=self.cifar.classes,
            channels=3,
            image_size=(32, 32),
            mean=self.cifar.mean,
            std=self.cifar.std,
            train_size=self.cifar.counts["train"]
            - (0 if self.train_on_val else self.cifar.val_size),
            val_size=self.cifar.val_size,
            test_size=self.cifar.counts["test"],
            source=found.words if found else f"to be downloaded into {self.root}{beside}",
        )

    def prepare_data(self) -> None:
        """Check what is there, download what is not; one process at a time.

        Raises:
            DataError: a damaged file of the user's own (it is not touched), no network (within 20
                seconds, with what was tried), or ``CVATTN_OFFLINE=1`` and nothing to read.
        """
        Published(
            self.cifar.title,
            self.root,
            self._to_do(),
            self.cifar.sources,
        ).obtain(lambda: files.find(self.cifar, self.root), files.problem)

    def _to_do(self) -> str:
        beside = files.not_read(files.near(self.cifar, self.root))
        return self.cifar.to_do.format(root=self.root) + beside

    def _augmentation(self) -> Augmentation | None:
        return self._photo_augmentation.filling(fill_colour(self.cifar.mean))

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        found = files.find(self.cifar, self.root)
        if found is None:
            raise DataError(
                f"{self.cifar.title} is not in {self.root}; call prepare_data() first (a Trainer "
                "does), or " + self._to_do()
            )
        both = files.read(found)
        labels = both["train"].labels
        train, val = stratified_split(labels, self.cifar.val_size, seed=_SPLIT_SEED)
        if self.train_on_val:
            train = torch.arange(len(labels))
        sets = {
            "train": ImageSet(both["train"].images[train], labels[train]),
            "val": ImageSet(both["train"].images[val], labels[val]),
            "test": both["test"],
        }
        official = files.has_official_pixels(found, both["test"].all_images())
        info = dataclasses.replace(self.describe(), official_pixels=official, source=found.words)
        return sets, info


class CIFAR10Data(CIFARData):
    """CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour photographs of 10 classes.

    45,000 images train, 5,000 (500 of each class, the same in every run) validate, the 10,000
    official test images test. ``.info.official_pixels`` says whether the pixels are the published
    ones: copies that were encoded as JPEG exist, and accuracies on them are lower.

    Args:
        root: a folder with the official ``cifar-10-python.tar.gz``, its extracted folder, or the
            parquet files of a Hub copy: in the root, ``cifar10/``, their ``plain_text/`` or
            ``data/``, or a snapshot in a Hub cache. Where there is none, ``prepare_data()``
            downloads into it, unless ``CVATTN_OFFLINE=1``.
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
        train_on_val: train on all 50,000 images, the 5,000 of the validation included; its figures
            then mean nothing. For a last run, when every choice has been made.
        crop_pad, flip, cutout, rand_augment, rand_augment_magnitude: see
            :class:`cvattn.data.images.photographs.PhotoAugmentation`.
        trivial_augment, color_jitter, random_erasing, transforms: as well.
        test_views: see :func:`cvattn.data.views_of`.
    """

    cifar = CIFAR10


class CIFAR100Data(CIFARData):
    """CIFAR-100: 32 x 32 colour photographs of 100 classes (the fine labels), split as CIFAR-10.

    What is known of the official files is checked: the archive and its folder by their md5 sums,
    parquet files by the number of images of each class.

    Args: as :class:`CIFAR10Data`.
    """

    cifar = CIFAR100
