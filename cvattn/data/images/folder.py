"""A folder of images: ``train/``, ``test/`` and perhaps ``val/``, a folder for each class."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import check_known, for_validation, notes_of, part_of
from cvattn.data.images.sourced import SourceDataModule
from cvattn.data.images.sources import FileSource, ImageSource
from cvattn.data.info import DataInfo


@dataclasses.dataclass(frozen=True)
class _Listing:
    """What the folders hold: the files of each part with their labels, and what is to be said."""

    classes: tuple[str, ...]
    sources: dict[str, FileSource]
    notes: tuple[str, ...]


class FolderData(SourceDataModule):
    """Images of any size in ``root/train/CLASS/`` and ``root/test/CLASS/``.

    Without ``root/val/``, a tenth of each class is taken from ``train/`` to validate, chosen by
    the file names, so that adding files moves no others. The classes are those of ``train/``;
    ``test/`` and ``val/`` may lack some of them. Hidden files and folders are not read.

    Args:
        root: the folder with ``train/`` and ``test/``.
        others: as in :class:`SourceDataModule`, which also says how an image is read.
    """

    data_name = "folder"

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        hold: str = "memory",
        workers: int | None = None,
        stored_size: int | None = None,
        on_corrupt: str = "refuse",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        crop_pad: int = 4,
        flip: str = "random",
        cutout: int = 0,
        random_resized_crop: Sequence[float] | None = None,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        trivial_augment: bool = False,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        balanced_sampling: bool = False,
        test_views: str = "none",
    ) -> None:
        super().__init__(
            image_size=image_size,
            channels=channels,
            hold=hold,
            workers=workers,
            stored_size=stored_size,
            on_corrupt=on_corrupt,
            mean=mean,
            std=std,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            crop_pad=crop_pad,
            flip=flip,
            cutout=cutout,
            random_resized_crop=random_resized_crop,
            rand_augment=rand_augment,
            rand_augment_magnitude=rand_augment_magnitude,
            trivial_augment=trivial_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            transforms=transforms,
            balanced_sampling=balanced_sampling,
            test_views=test_views,
        )
        self.root = Path(root).expanduser().absolute()
        self._listing: _Listing | None = None

    def describe(self) -> DataInfo:
        """From folder and file names; ``mean`` and ``std`` are empty unless they were given.

        Raises:
            DataError: a folder is missing or empty, there is one class only, there is nothing to
                validate with, or a part has a class that ``train/`` has not.
        """
        return super().describe()

    def _describe(self) -> DataInfo:
        listing = self._list()
        train, val, test = (len(listing.sources[part]) for part in ("train", "val", "test"))
        return DataInfo(
            name=self.data_name,
            classes=listing.classes,
            channels=self.channels,
            image_size=self.image_size,
            mean=self._mean,
            std=self._std,
            train_size=train,
            val_size=val,
            test_size=test,
            source="; ".join((f"image files in {self.root}", *listing.notes)),
        )

    def _where(self) -> str:
        return str(self.root)

    def _sources(self) -> Mapping[str, ImageSource]:
        return self._list().sources

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
                    label = classes.index(each)
                    for path in paths:
                        files["val" if path in chosen else name].append((path, label))
            if not files["val"]:
                raise DataError(
                    f"there is nothing to validate with: of each class of {self.root / 'train'} "
                    "with 2 images or more a tenth is taken for it, and no class has 2; add "
                    f"images, or a folder {self.root / 'val'}"
                )
            sources = {
                part: FileSource(
                    self.root,
                    [path for path, _ in pairs],
                    torch.tensor([label for _, label in pairs], dtype=torch.int64),
                )
                for part, pairs in files.items()
            }
            self._listing = _Listing(classes, sources, tuple(notes_of(classes, parts)))
        return self._listing
