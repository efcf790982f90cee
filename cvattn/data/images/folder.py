"""A folder of images: ``train/``, ``test/`` and perhaps ``val/``, a folder for each class."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn

from cvattn.data.checks import DataError, check_choice
from cvattn.data.image_files import ImageError, cut, read_picture
from cvattn.data.images.augment import Augmentation, CropFlip
from cvattn.data.images.base import (
    ImageDataModule,
    ImageSet,
    both_sides,
    channel_statistics,
    check_memory,
    fill_colour,
    given_statistics,
)
from cvattn.data.images.folder_files import (
    check_known,
    for_validation,
    listed,
    named,
    notes_of,
    part_of,
)
from cvattn.data.images.rand_augment import RandAugment, in_turn
from cvattn.data.images.views import VIEWS
from cvattn.data.info import DataInfo


@dataclasses.dataclass(frozen=True)
class _Listing:
    """What the folders hold: for each split its files with their labels, and what is to be said."""

    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    notes: tuple[str, ...]


class FolderData(ImageDataModule):
    """Images of any size in ``root/train/CLASS/`` and ``root/test/CLASS/``, held in memory.

    Without ``root/val/``, a tenth of each class is taken from ``train/`` to validate, chosen by
    the file names, so that adding files moves no others. The classes are those of ``train/``;
    ``test/`` and ``val/`` may lack some of them. Hidden files and folders are not read.

    Each image is read as :func:`cvattn.data.image_files.read_picture` says (upright, on white where
    it is transparent), scaled so that it just covers ``image_size`` and cut to it in the middle;
    nothing is stretched.

    Args:
        root: the folder with ``train/`` and ``test/``.
        image_size: side in pixels, or (H, W).
        channels: 3 (colour) or 1 (grey).
        on_corrupt: what to do about files that cannot be read: "refuse" (an error that names
            them) or "skip" (a warning that names them).
        mean, std: per channel, of pixels scaled to 0..1; None: measured on the training images.
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
        crop_pad, flip, cutout: see :class:`cvattn.data.images.augment.CropFlip`.
        rand_augment, rand_augment_magnitude: see
            :class:`cvattn.data.images.rand_augment.RandAugment`.
        test_views: see :func:`cvattn.data.views_of`.

    Attributes:
        skipped: the unreadable files that were left out, after ``setup()``.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        on_corrupt: str = "refuse",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        crop_pad: int = 4,
        flip: str = "random",
        cutout: int = 0,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        test_views: str = "none",
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.root = Path(root).expanduser().absolute()
        self.image_size = both_sides(image_size)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
        self.channels = channels
        self.on_corrupt = check_choice("on_corrupt", on_corrupt, ("refuse", "skip"))
        self._mean, self._std = given_statistics(mean, std, channels)
        self._crop_flip = CropFlip(crop_pad=crop_pad, flip=flip, cutout=cutout)
        self._crop_flip.check_fits(*self.image_size)
        self._rand_augment = RandAugment(operations=rand_augment, magnitude=rand_augment_magnitude)
        self.test_views = check_choice("test_views", test_views, VIEWS)
        self.skipped: tuple[Path, ...] = ()
        self._listing: _Listing | None = None

    def describe(self) -> DataInfo:
        """From folder and file names; ``mean`` and ``std`` are empty unless they were given.

        Raises:
            DataError: a folder is missing or empty, there is one class only, there is nothing to
                validate with, or a part has a class that ``train/`` has not.
        """
        if self.info is not None:
            return self.info
        listing = self._list()
        return DataInfo(
            name="folder",
            classes=listing.classes,
            channels=self.channels,
            image_size=self.image_size,
            mean=self._mean,
            std=self._std,
            train_size=len(listing.files["train"]),
            val_size=len(listing.files["val"]),
            test_size=len(listing.files["test"]),
            source="; ".join((f"image files in {self.root}", *listing.notes)),
        )

    def prepare_data(self) -> None:
        """Nothing to download; the folders are checked."""
        self.describe()

    def _augmentation(self) -> Augmentation | None:
        fill = fill_colour(self._complete_info().mean)
        crop_flip = dataclasses.replace(self._crop_flip, fill=fill)
        return in_turn(self._rand_augment, crop_flip)

    def _list(self) -> _Listing:
        if self._listing is None:
            parts = {name: part_of(self.root, name) for name in ("train", "test")}
            if (self.root / "val").is_dir():
                parts["val"] = part_of(self.root, "val")
            classes = tuple(parts["train"].classes)
            files: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
            for name, part in parts.items():
                check_known(classes, part, self.root / name)
                for each, paths in part.classes.items():
                    chosen = set()
                    if name == "train" and "val" not in parts:
                        chosen = for_validation(paths, self.root / name / each)
                    for path in paths:
                        split = "val" if path in chosen else name
                        files[split].append((path, classes.index(each)))
            if not files["val"]:
                raise DataError(
                    f"there is nothing to validate with: of each class of {self.root / 'train'} "
                    "with 2 images or more a tenth is taken for it, and no class has 2; add "
                    f"images, or a folder {self.root / 'val'}"
                )
            self._listing = _Listing(classes, files, tuple(notes_of(classes, parts)))
        return self._listing

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        listing = self._list()
        check_memory(sum(map(len, listing.files.values())), self.channels, self.image_size)
        sets, bad = {}, []
        for name, files in listing.files.items():
            sets[name], unreadable = self._decode_all(files)
            bad += unreadable
        self._report(bad)
        for name, part in sets.items():
            lost = {label for _, label in listing.files[name]} - set(part.labels.tolist())
            # Some classes may have nothing to validate with; elsewhere what is there is needed.
            if lost and (name != "val" or not len(part.labels)):
                names = named([listing.classes[label] for label in sorted(lost)])
                raise DataError(f"{name}: no readable image of {names} in {self.root}")
        mean, std = self._mean, self._std
        if not mean:
            mean, std = channel_statistics(sets["train"].images)
        return sets, dataclasses.replace(self.describe(), mean=mean, std=std)

    def _decode_all(
        self, files: Sequence[tuple[Path, int]]
    ) -> tuple[ImageSet, list[tuple[Path, str]]]:
        """The readable images, and the unreadable files with what is wrong."""
        images = torch.empty(len(files), self.channels, *self.image_size, dtype=torch.uint8)
        bad: list[tuple[Path, str]] = []

        def load(at: int) -> bool:
            path = files[at][0]
            try:
                pixels = cut(read_picture(path, self.channels), self.image_size)
            except ImageError as error:
                bad.append((path, str(error)))
                return False
            images[at] = torch.from_numpy(pixels)
            return True

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            good = torch.tensor(list(pool.map(load, range(len(files)))), dtype=torch.bool)
        labels = torch.tensor([label for _, label in files], dtype=torch.int64)
        if bad:
            images, labels = images[good], labels[good]
        return ImageSet(images, labels), sorted(bad)

    def _report(self, bad: list[tuple[Path, str]]) -> None:
        if not bad:
            return
        text = f"{len(bad)} image files cannot be read:{listed(bad)}"
        if self.on_corrupt == "refuse":
            raise DataError(f"{text}\nRepair or remove them, or set data.on_corrupt=skip.")
        rank_zero_warn(f"{text}\nThey are skipped (data.on_corrupt=skip).")
        self.skipped = tuple(path for path, _ in bad)
