"""Images in a data set of the `datasets` library, on disk or on the Hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import named
from cvattn.data.images.hub_dataset import columns_of, labels_of, open_dataset, splits_of
from cvattn.data.images.hub_source import HubSource
from cvattn.data.images.label_names import LabelNames, read_classes
from cvattn.data.images.sourced import SourceDataModule
from cvattn.data.images.sources import Chosen, ImageSource
from cvattn.data.info import DataInfo
from cvattn.data.split import VAL_FRACTION, stratified_split

_SPLIT_SEED = 2009


@dataclass(frozen=True)
class _Listing:
    """What the data set holds, and what is to be said of it."""

    classes: tuple[str, ...]
    sources: dict[str, ImageSource]
    source: str


class HubData(SourceDataModule):
    """Images of any size in a data set of the ``datasets`` library.

    Rows are read by position from the Arrow files, and pictures are decoded as those of a folder.
    Without a validation split a tenth of each class of the training split is held out by a fixed
    choice. The classes are those of the column's ``ClassLabel``, ``classes``, or what is found.

    Args:
        path: a folder that ``save_to_disk`` wrote, or a name on the Hub (downloaded into the
            library's own cache, unless ``CVATTN_OFFLINE=1``).
        config, revision: of a data set on the Hub; None: its default ones.
        train, val, test: names of splits; None: by the usual names (validation, valid, val, dev).
        image_column, label_column: None: the only one of its kind (``Image``, ``ClassLabel``).
        classes: as in :class:`WebDatasetData`, where the labels are no ``ClassLabel``.
        others: as in :class:`SourceDataModule`, which also says how an image is read.
    """

    data_name = "hf"

    def __init__(
        self,
        *,
        path: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: str | Sequence[str] | None = None,
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
            test_views=test_views,
            trivial_augment=trivial_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            transforms=transforms,
            balanced_sampling=balanced_sampling,
        )
        self._path, self._config, self._revision = path, config, revision
        self._given = {"train": train, "val": val, "test": test}
        self._columns = (image_column, label_column)
        self._classes = classes
        self._listing: _Listing | None = None

    def describe(self) -> DataInfo:
        """From features and labels; a data set on the Hub is downloaded for it.

        Raises:
            DataError: the data set cannot be had, a split or a column is missing or could be
                several, a row has no label, or there is nothing to validate with.
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
            source=listing.source,
        )

    def _where(self) -> str:
        return f"the data set {self._path}"

    def _sources(self) -> Mapping[str, ImageSource]:
        return self._list().sources

    def _list(self) -> _Listing:
        if self._listing is None:
            if self._path is None:
                raise DataError(
                    "data.path names no data set; expected a folder that save_to_disk wrote, or a "
                    "name on the Hub"
                )
            whole = open_dataset(self._path, self._config, self._revision)
            splits = splits_of(list(whole), self._given)
            names: LabelNames | None = None
            sources: dict[str, ImageSource] = {}
            notes = []
            for part, split in splits.items():
                if split is None:
                    continue
                where = f"{self._path}, split {split}"
                image, label = columns_of(whole[split], *self._columns, where)
                codes, texts = labels_of(whole[split], label, where)
                if names is None:  # the training split comes first
                    names = self._names(whole[split].features[label], texts, where)
                labels = _labels(names, codes, texts, where)
                if missing := [
                    name for at, name in enumerate(names.classes) if not (labels == at).any()
                ]:
                    notes.append(f"the split {split} has no images of {named(missing)}")
                sources[part] = HubSource(whole[split], image, labels, where)
            assert names is not None
            if "val" not in sources:
                sources.update(_parted(sources["train"], str(splits["train"])))
            if unused := [each for each in whole if each not in splits.values()]:
                notes.append(f"not read: the splits {named(unused)}")
            source = "; ".join((self._where(), *notes))
            self._listing = _Listing(names.classes, sources, source)
        return self._listing

    def _names(self, feature: object, texts: Sequence[str], where: str) -> LabelNames:
        given = read_classes(self._classes)
        if (known := getattr(feature, "names", None)) is None:
            return LabelNames.of(sorted(texts), given, where)
        if given is not None:
            raise DataError(
                f"{where} says what its classes are ({named(known)}); leave out data.classes"
            )
        return LabelNames.of(texts, known, where)


def _labels(names: LabelNames, codes: np.ndarray, texts: Sequence[str], where: str) -> Tensor:
    """int64 (N,); DataError naming a row whose label means no class."""
    found = [names.index(text) for text in texts]
    used = np.unique(codes)
    for at in used.tolist():
        if found[at] is None:
            row = int((codes == at).argmax())
            raise DataError(f"{where}: row {row} has {names.strange(texts[at])}")
    table = np.array([-1 if each is None else each for each in found], np.int64)
    return torch.from_numpy(table[codes])


def _parted(source: ImageSource, split: str) -> dict[str, ImageSource]:
    """Training and validation out of one split."""
    size = round(len(source) * VAL_FRACTION)
    if not size:
        raise DataError(
            f"there is nothing to validate with: a tenth of the {len(source)} rows of split "
            f"{split!r} is none; data.val names another split"
        )
    kept, held = stratified_split(source.labels, size, seed=_SPLIT_SEED)
    return {"train": Chosen(source, kept), "val": Chosen(source, held)}
