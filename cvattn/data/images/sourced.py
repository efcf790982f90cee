"""Pictures of any size with classes, wherever they come from: what their data modules share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from cvattn.data.checks import DataError, check_choice, check_int
from cvattn.data.counter import Stream, permutation
from cvattn.data.images.augment import Augmentation, CropFlip
from cvattn.data.images.base import (
    ImageDataModule,
    ImageSet,
    both_sides,
    channel_statistics,
    fill_colour,
    given_statistics,
)
from cvattn.data.images.folder_files import listed, named
from cvattn.data.images.holding import (
    HOLDS,
    Decoding,
    Held,
    check_memory,
    default_workers,
    in_memory,
    streamed,
)
from cvattn.data.images.mapped import mapped
from cvattn.data.images.photographs import PhotoAugmentation
from cvattn.data.images.resized_crop import RandomResizedCrop
from cvattn.data.images.sources import ImageSource
from cvattn.data.images.views import VIEWS
from cvattn.data.info import DataInfo
from cvattn.data.locality import Locality

SAMPLE = 2000  # training images that mean and std are measured on, where not all are in memory


class SourceDataModule(ImageDataModule):
    """Base of the data modules whose pictures are files of any size.

    A subclass writes ``_describe()``, ``_where()`` and ``_sources()``, and sets ``data_name``.

    Each image is read as :func:`cvattn.data.image_files.read_picture` says (upright, on white where
    it is transparent), scaled so that it just covers ``image_size`` and cut to it in the middle;
    nothing is stretched. With ``random_resized_crop`` training shows a random part of it instead.

    Args:
        image_size: side in pixels, or (H, W).
        channels: 3 (colour) or 1 (grey).
        hold: "memory", "mapped" or "stream"; see :mod:`cvattn.data.images.holding`.
        workers: threads that decode, of each process; None: its share of the cores, at most 8.
        stored_size: with ``random_resized_crop``, the shorter side that larger training pictures
            are kept at in memory or in the file; None: 8/7 of the longer side of ``image_size``.
        on_corrupt: what to do about files that cannot be read: "refuse" (an error that names
            them) or "skip" (a warning that names them).
        mean, std: per channel, of pixels scaled to 0..1; None: measured on the training images, on
            all that are in memory, otherwise on 2,000 of a fixed choice.
        batch_size, eval_batch_size, seed, balanced_sampling: as in :class:`ImageDataModule`.
        crop_pad, flip, cutout, rand_augment, rand_augment_magnitude: see
            :class:`cvattn.data.images.photographs.PhotoAugmentation`.
        trivial_augment, color_jitter, random_erasing, transforms: as well.
        random_resized_crop: least and most share of a picture's area, in place of ``crop_pad``; see
            :class:`cvattn.data.images.resized_crop.RandomResizedCrop`. None: none.
        test_views: see :func:`cvattn.data.views_of`.

    Attributes:
        skipped: names of the unreadable files that were left out, after ``setup()``.
    """

    data_name: ClassVar[str]

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        hold: str,
        workers: int | None,
        stored_size: int | None,
        on_corrupt: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        crop_pad: int,
        flip: str,
        cutout: int,
        random_resized_crop: Sequence[float] | None,
        rand_augment: int,
        rand_augment_magnitude: int,
        test_views: str,
        trivial_augment: bool = False,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        balanced_sampling: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            balanced_sampling=balanced_sampling,
        )
        self.image_size = both_sides(image_size)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
        self.channels = channels
        self.hold = check_choice("hold", hold, HOLDS)
        if workers is not None:
            check_int("workers", workers, minimum=1)
        self.workers = workers
        self._resized_crop = (
            None
            if random_resized_crop is None
            else RandomResizedCrop(random_resized_crop, self.image_size)
        )
        self.stored_size = self._checked_stored_size(stored_size)
        self.on_corrupt = check_choice("on_corrupt", on_corrupt, ("refuse", "skip"))
        self._mean, self._std = given_statistics(mean, std, channels)
        CropFlip(crop_pad=crop_pad)  # as a number it is checked in any case
        self._photo_augmentation = PhotoAugmentation(
            crop_pad=0 if self._resized_crop is not None else crop_pad,
            flip=flip,
            cutout=cutout,
            rand_augment=rand_augment,
            rand_augment_magnitude=rand_augment_magnitude,
            trivial_augment=trivial_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            transforms=transforms,
        )
        self._photo_augmentation.check_fits(channels, *self.image_size)
        self.test_views = check_choice("test_views", test_views, VIEWS)
        self.skipped: tuple[str, ...] = ()

    def _describe(self) -> DataInfo:
        """What is known without reading pixels, from names."""
        raise NotImplementedError

    def _where(self) -> str:
        """Where the data is, the same in each run."""
        raise NotImplementedError

    def _sources(self) -> Mapping[str, ImageSource]:
        """The pictures of "train", "val" and "test"."""
        raise NotImplementedError

    def _locality(self, part: str, good: Tensor) -> Locality | None:
        """In which files the pictures at ``good``, int64 (N,), of a part lie, if that matters."""
        return None

    def describe(self) -> DataInfo:
        """What is known without reading pixels; ``mean`` and ``std`` are empty unless given."""
        return self._describe() if self.info is None else self.info

    def prepare_data(self) -> None:
        """Nothing to download; what there is is checked, and the memory of all processes here."""
        self.describe()
        if self.hold == "memory" and (processes := self._processes_here()) > 1:
            self._check_memory(processes)

    def _augmentation(self) -> Augmentation | None:
        return self._photo_augmentation.filling(fill_colour(self._complete_info().mean))

    def _crop(self) -> RandomResizedCrop | None:
        return self._resized_crop

    def _decoding(self) -> Decoding:
        workers = self.workers or default_workers(self._processes_here())
        return Decoding(
            self.channels, self.image_size, self._resized_crop, self.stored_size, workers
        )

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        if self.hold == "memory":
            self._check_memory(1)
        info, sources = self._describe(), self._sources()
        sets, bad = {}, []
        for part, source in sources.items():
            held = self._held(source, part)
            sets[part] = ImageSet(
                held.images,
                source.labels[held.good],
                held.fingerprint,
                self._locality(part, held.good),
            )
            bad += sorted((source.name(at), why) for at, why in held.bad)
        self._report(bad)
        for part, each in sets.items():
            had, has = _there(sources[part].labels), _there(each.labels)
            # Some classes may have nothing to validate with; elsewhere what is there is needed.
            if had - has and (part != "val" or not len(each.labels)):
                names = named([info.classes[label] for label in sorted(had - has)])
                raise DataError(f"{part}: no readable image of {names} ({info.source})")
        mean, std = self._mean, self._std
        if not mean:
            mean, std = self._measured(sets["train"])
        return sets, dataclasses.replace(info, mean=mean, std=std)

    def _held(self, source: ImageSource, part: str) -> Held:
        how = self._decoding()
        if self.hold == "memory":
            return in_memory(source, part, how)
        if self.hold == "mapped":
            return mapped(source, part, how, name=self.data_name, place=self._where())
        return streamed(source, how, checked=self.on_corrupt == "skip")

    def _measured(self, train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if isinstance(train.images, torch.Tensor):
            return channel_statistics(train.images)
        chosen = permutation(0, 0, len(train.images), Stream.EXAMPLES)
        if self.hold != "memory":
            chosen = chosen[:SAMPLE]
        batches = train.images.batches(chosen.split(100))
        return channel_statistics(image for batch in batches for image in batch)

    def _check_memory(self, copies: int) -> None:
        sources = self._sources()
        needed = self._decoding().bytes_of(sources)
        count = sum(map(len, sources.values()))
        check_memory(
            needed,
            f"data.hold=memory: {count:,} images of {self.image_size[0]} x {self.image_size[1]}",
            f"set data.hold=mapped (decoded once into a file of {needed / 2**30:.1f} GiB) or "
            "data.hold=stream (decoded each time they are shown), or a smaller data.image_size",
            copies=copies,
        )

    def _checked_stored_size(self, size: int | None) -> int:
        least = max(self.image_size)
        if self._resized_crop is None:
            if size is not None:
                raise ValueError(
                    f"stored_size={size} is for pictures that are cropped anew each epoch; without "
                    "random_resized_crop they are kept at image_size: leave it out"
                )
            return least
        if size is None:
            return -(-least * 8 // 7)
        return check_int("stored_size", size, minimum=least)

    def _report(self, bad: list[tuple[str, str]]) -> None:
        if not bad:
            return
        text = f"{len(bad)} image files cannot be read:{listed(bad)}"
        if self.on_corrupt == "refuse":
            raise DataError(f"{text}\nRepair or remove them, or set data.on_corrupt=skip.")
        rank_zero_warn(f"{text}\nThey are skipped (data.on_corrupt=skip).")
        self.skipped = tuple(path for path, _ in bad)


def _there(labels: Tensor) -> set[int]:
    """The classes that an image has, of labels (N,) or (N, classes)."""
    return set((labels if labels.ndim == 1 else labels.nonzero()[:, 1]).tolist())
