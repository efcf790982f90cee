"""Fashion-MNIST from any of the places where people have it, or downloaded."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from cvattn.data.checks import DataError, check_choice
from cvattn.data.images import fashion_mnist_files as files
from cvattn.data.images.augment import Augmentation, CropFlip
from cvattn.data.images.base import ImageDataModule, ImageSet, fill_colour
from cvattn.data.images.views import VIEWS
from cvattn.data.info import DataInfo
from cvattn.data.published import Published
from cvattn.data.split import stratified_split

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDES = (files.SIDE, 32)
VAL_SIZE = 5_000
SPLIT_SEED = 2017
# Of the 60,000 training images of 28 x 28; a test measures them again.
MEAN, STD = 0.2860406, 0.3530242
_TITLE = "Fashion-MNIST"


class FashionMNISTData(ImageDataModule):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 28 x 28 grey pictures of 10 kinds of clothes.

    55,000 images train, 5,000 (500 of each class, the same in every run) validate, the 10,000
    official test images test. Every file has to have the published content, bit for bit.

    Args:
        root: a folder with the four idx files (``train-images-idx3-ubyte``, ...), each unpacked or
            ``.gz``: in it, in ``fashion-mnist/`` or ``fashion_mnist/``, or in
            ``FashionMNIST/raw/``, where torchvision puts them. Debian's package
            ``dataset-fashion-mnist`` is found where it installs them. Where there are none,
            ``prepare_data()`` downloads into ``FashionMNIST/raw/``, unless ``CVATTN_OFFLINE=1``.
        image_size: 28, or 32 with two black pixels added on each side; a side, or (H, W).
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
        train_on_val: train on all 60,000 images, the 5,000 of the validation included; its figures
            then mean nothing. For a last run, when every choice has been made.
        crop_pad, flip, cutout: see :class:`cvattn.data.images.augment.CropFlip`.
        test_views: see :func:`cvattn.data.views_of`.
    """

    def __init__(
        self,
        *,
        root: str | Path = "data",
        image_size: int | Sequence[int] = files.SIDE,
        batch_size: int = 512,
        eval_batch_size: int = 1000,
        seed: int = 0,
        train_on_val: bool = False,
        crop_pad: int = 2,
        flip: str = "alternating",
        cutout: int = 0,
        test_views: str = "flip",
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.root = Path(root).expanduser().absolute()
        self.side = _side(image_size)
        self.train_on_val = train_on_val
        self._crop_flip = CropFlip(
            crop_pad=crop_pad, flip=flip, cutout=cutout, fill=fill_colour(self._constants()[0])
        )
        self._crop_flip.check_fits(self.side, self.side)
        self.test_views = check_choice("test_views", test_views, VIEWS)

    def describe(self) -> DataInfo:
        """Constants; looks at file names only.

        Raises:
            DataError: some of the four files are missing.
        """
        if self.info is not None:
            return self.info
        found = files.find(self.root)
        mean, std = self._constants()
        whole, test = (images.shape[0] for images, _ in files.FILES.values())
        return DataInfo(
            name="fashion_mnist",
            classes=CLASSES,
            channels=1,
            image_size=(self.side, self.side),
            mean=mean,
            std=std,
            train_size=whole - (0 if self.train_on_val else VAL_SIZE),
            val_size=VAL_SIZE,
            test_size=test,
            source=found.words if found else f"to be downloaded into {self.root}",
        )

    def prepare_data(self) -> None:
        """As in :meth:`Published.obtain`: check what is there, download what is not."""
        Published(_TITLE, self.root, self._to_do(), files.sources()).obtain(
            lambda: files.find(self.root), files.problem
        )

    def _augmentation(self) -> Augmentation | None:
        return self._crop_flip

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        found = files.find(self.root)
        if found is None:
            raise DataError(
                f"{_TITLE} is not in {self.root}; call prepare_data() first (a Trainer does), or "
                + self._to_do()
            )
        border = (self.side - files.SIDE) // 2
        both = {
            part: ImageSet(F.pad(of.all_images(), (border,) * 4), of.labels)
            for part, of in files.read(found).items()
        }
        images, labels = both["train"].images, both["train"].labels
        train, val = stratified_split(labels, VAL_SIZE, seed=SPLIT_SEED)
        if self.train_on_val:
            train = torch.arange(len(labels))
        sets = {
            "train": ImageSet(images[train], labels[train]),
            "val": ImageSet(images[val], labels[val]),
            "test": both["test"],
        }
        # Nothing else is read; a black border changes no pixel.
        info = dataclasses.replace(self.describe(), official_pixels=True, source=found.words)
        return sets, info

    def _constants(self) -> tuple[tuple[float], tuple[float]]:
        """Mean and std; black pixels around the images make both smaller."""
        share = (files.SIDE / self.side) ** 2
        mean = share * MEAN
        return (mean,), (math.sqrt(share * (STD**2 + MEAN**2) - mean**2),)

    def _to_do(self) -> str:
        names = ", ".join(idx.name for part in files.FILES.values() for idx in part)
        return (
            f"put {names} (or each as .gz) into {self.root}; or name the folder that has them with "
            "data.root=... or CVATTN_DATA=...; or, on Debian and Ubuntu, apt install "
            "dataset-fashion-mnist; or train on data=digits, which needs no download"
        )


def _side(image_size: int | Sequence[int]) -> int:
    several = isinstance(image_size, Sequence) and not isinstance(image_size, str)
    sides = list(image_size) if several else [image_size] * 2  # type: ignore[arg-type]
    if len(sides) != 2 or sides[0] != sides[1] or sides[0] not in SIDES:
        raise ValueError(
            f"image_size={image_size!r} must be 28, or 32 with a black border of two pixels"
        )
    return sides[0]
