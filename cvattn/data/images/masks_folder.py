"""A user's own images and their masks: ``images/`` and ``masks/`` in ``train/`` and ``test/``."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from cvattn.data.checks import DataError
from cvattn.data.image_files import ORIENTATION, ImageError, cut, read_picture
from cvattn.data.images.augment import CropFlip
from cvattn.data.images.base import (
    ImageSet,
    both_sides,
    channel_statistics,
    given_statistics,
)
from cvattn.data.images.folder_files import for_validation, listed, named
from cvattn.data.images.holding import check_memory
from cvattn.data.images.mask_files import (
    MaskCode,
    cut_mask,
    found_code,
    given_code,
    read_mask,
    values_of,
)
from cvattn.data.images.masks import MaskDataModule, pixels_of_classes
from cvattn.data.images.masks_folder_files import IMAGES, Pair, pairs_of
from cvattn.data.info import MaskInfo

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Listing:
    files: dict[str, list[Pair]]
    code: MaskCode
    notes: tuple[str, ...]


class MasksFolderData(MaskDataModule):
    """Images in ``root/train/images/`` with masks in ``root/train/masks/``; ``test/`` likewise.

    A mask has the name of its image, whatever the suffix, and its size. Its values are classes: the
    indices of a palette, or grey. Without ``root/val/``, a tenth of ``train/`` validates, chosen by
    the files' names.

    An image is scaled so that it just covers ``image_size`` and cut to it in the middle, and its
    mask with it, by the nearest pixels; nothing is stretched.

    Args:
        root: the folder with ``train/`` and ``test/``.
        classes: their names; None: those of ``values``, or what the training masks hold.
        values: of each class in the mask files. None: 0, 1, 2, ...; or 0 and 255, where the
            training masks hold these and nothing else (which is said). Others have to be given.
        void: the value of pixels that have no class. None: 255, unless it is the value of a class.
        image_size: side in pixels, or (H, W).
        channels: 3 (colour) or 1 (grey), of the images.
        mean, std: per channel, of pixels scaled to 0..1; None: measured on the training images.
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
        crop_pad, flip: see :class:`cvattn.data.images.augment.CropFlip`; masks move with their
            images, and what comes in from outside has no class.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        classes: Sequence[str] | None = None,
        values: Sequence[int] | None = None,
        void: int | None = None,
        image_size: int | Sequence[int] = 128,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 50,
        seed: int = 0,
        crop_pad: int = 8,
        flip: str = "random",
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.root = Path(root).expanduser().absolute()
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError(f"classes={list(classes)}: expected 2 or more names, each once")
        self._names = None if classes is None else tuple(str(name) for name in classes)
        self._void = void
        self._code = given_code(None if classes is None else len(classes), values, void)
        self.image_size = both_sides(image_size)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
        self.channels = channels
        self._mean, self._std = given_statistics(mean, std, channels)
        self._crop_flip = CropFlip(crop_pad=crop_pad, flip=flip)
        self._crop_flip.check_fits(*self.image_size)
        self._listing: _Listing | None = None

    def describe(self) -> MaskInfo:
        """From folder and file names; where ``values`` are not given, the training masks are read.

        Raises:
            DataError: as in :func:`pairs_of`; training masks of one class, or whose values are not
                clear; masks that cannot be read.
        """
        if isinstance(self.info, MaskInfo):
            return self.info
        listing = self._list()
        values = listing.code.values
        return MaskInfo(
            name="masks_folder",
            classes=tuple(map(str, values)) if self._names is None else self._names,
            values=values,
            void=listing.code.void,
            channels=self.channels,
            image_size=self.image_size,
            mean=self._mean,
            std=self._std,
            train_size=len(listing.files["train"]),
            val_size=len(listing.files["val"]),
            test_size=len(listing.files["test"]),
            source="; ".join((f"images and masks in {self.root}", *listing.notes)),
        )

    def prepare_data(self) -> None:
        """Nothing to download; the folders are checked, and the memory of all processes here."""
        self.describe()
        self._check_memory(self._processes_here())

    def _move(self) -> CropFlip | None:
        return self._crop_flip

    def _list(self) -> _Listing:
        if self._listing is None:
            names = ("train", "val", "test") if (self.root / "val").is_dir() else ("train", "test")
            parts = {name: pairs_of(self.root, name) for name in names}
            files = {name: part.files for name, part in parts.items()}
            if "val" not in files:
                place = self.root / "train" / IMAGES
                chosen = for_validation([image for image, _ in files["train"]], place)
                if not chosen:
                    raise DataError(
                        f"there is nothing to validate with: {place} has one image, of 2 or more a "
                        f"tenth is taken for it; add images, or a folder {self.root / 'val'}"
                    )
                files["val"] = [pair for pair in files["train"] if pair[0] in chosen]
                files["train"] = [pair for pair in files["train"] if pair[0] not in chosen]
            code = self._code or self._found(files["train"])
            notes = [code.note, *(part.left for part in parts.values())]
            self._listing = _Listing(files, code, tuple(note for note in notes if note))
        return self._listing

    def _check_memory(self, copies: int) -> None:
        count, (height, width) = sum(map(len, self._list().files.values())), self.image_size
        check_memory(
            count * (self.channels + 1) * height * width,
            f"{count} images of {height} x {width} with their masks",
            "they are held in memory; set a smaller data.image_size",
            copies=copies,
        )

    def _found(self, pairs: Sequence[Pair]) -> MaskCode:
        masks = [mask for _, mask in pairs]
        found = _each(masks, lambda mask: values_of(read_mask(mask)), "masks")
        count = None if self._names is None else len(self._names)
        return found_code(frozenset().union(*found), count, self._void)

    def _read(self) -> tuple[Mapping[str, ImageSet], MaskInfo]:
        listing = self._list()
        self._check_memory(1)

        def load(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
            try:
                picture = read_picture(pair[0], self.channels)
            except ImageError as error:
                raise ImageError(f"its image {pair[0].name}: {error}") from error
            values = read_mask(pair[1])
            if values.shape != (picture.height, picture.width):
                raise ImageError(_of_another_size(pair[0], picture.size, values.shape[::-1]))
            mask = cut_mask(listing.code.decode(values), self.image_size)
            return torch.from_numpy(cut(picture, self.image_size)), torch.from_numpy(mask)

        everything = [pair for files in listing.files.values() for pair in files]
        loaded = iter(_each(everything, load, "images with their masks"))
        sets = {}
        for name, files in listing.files.items():
            images, masks = zip(*(next(loaded) for _ in files), strict=True)
            sets[name] = ImageSet(torch.stack(images), torch.stack(masks))
        mean, std = self._mean, self._std
        if not mean:
            mean, std = channel_statistics(sets["train"].all_images())
        info = self.describe()
        counts = pixels_of_classes(sets["train"].labels, len(info.classes)).tolist()
        absent = [name for name, count in zip(info.classes, counts, strict=True) if not count]
        source = info.source
        if absent:
            source += f"; train/ has no pixel of {named(absent)}"
        return sets, dataclasses.replace(info, mean=mean, std=std, source=source)


def _each(files: Sequence[T], read: Callable, what: str) -> list:
    """What ``read`` gives of each; a DataError that names the files of which it gives nothing."""
    bad: list[tuple[Path, str]] = []

    def attempt(file: T) -> object:
        try:
            return read(file)
        except ImageError as error:
            bad.append((file[1] if isinstance(file, tuple) else file, str(error)))  # type: ignore[arg-type]
            return None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(attempt, files))
    if bad:
        raise DataError(f"{len(bad)} {what} cannot be used:{listed(sorted(bad))}")
    return found


def _of_another_size(image: Path, size: tuple[int, int], mask: tuple[int, int]) -> str:
    """What to do about a mask that does not lie on its image; sizes are (width, height)."""
    text = f"{mask[0]} x {mask[1]} pixels, and its image {image.name} has {size[0]} x {size[1]}"
    with Image.open(image) as file:
        turned = file.getexif().get(ORIENTATION, 1) >= 5
    if turned and mask == size[::-1]:
        return (
            f"{text} once it is turned upright, as its EXIF orientation says: the mask is of the "
            "image as it is stored; turn the mask, or take the orientation out of the image"
        )
    return f"{text}: a mask has the size of its image, in pixels"
