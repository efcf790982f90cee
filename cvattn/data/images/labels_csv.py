"""A folder of images that have several labels each, told by CSV files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from cvattn.data.images.base import with_labels
from cvattn.data.images.label_files import LabelTable, read_tables
from cvattn.data.images.sourced import SourceDataModule
from cvattn.data.images.sources import FileSource, ImageSource
from cvattn.data.info import DataInfo, LabelsInfo


class LabelsCSVData(SourceDataModule):
    """Images of any size below ``root``, with the labels that ``root/train.csv`` and others give.

    A table's first line is ``file,cat,dog,...`` over rows ``a/b.jpg,0,1,...``, or ``file,labels``
    over rows ``a/b.jpg,cat;dog`` (or ``cat|dog``). Files are named from ``root`` on. There are
    ``train.csv``, ``test.csv`` and perhaps ``val.csv``, or one ``labels.csv`` with a further column
    ``split`` of train, val and test. Without images for it, a tenth of those of the training
    validates, chosen by the files' names.

    Batches have labels float32 (B, number of labels) of 0 and 1.

    Args:
        root: the folder with the tables.
        others: as in :class:`SourceDataModule`, which also says how an image is read.
    """

    data_name = "labels_csv"
    target: ClassVar[str] = "labels"

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
            test_views="none",
        )
        self.root = Path(root).expanduser().absolute()
        self._table: LabelTable | None = None

    def describe(self) -> DataInfo:
        """From the tables; ``mean`` and ``std`` are empty unless they were given.

        Raises:
            DataError: as in :func:`cvattn.data.images.label_files.read_tables`.
        """
        return super().describe()

    def setup(self, stage: str | None = None) -> None:
        """As in :class:`SourceDataModule`; the fingerprint is of the test images' labels too."""
        if self._sets:
            return
        super().setup(stage)
        self.info = with_labels(self._complete_info(), self._sets["test"])

    def _describe(self) -> DataInfo:
        table = self._read_tables()
        return LabelsInfo(
            name=self.data_name,
            classes=table.classes,
            channels=self.channels,
            image_size=self.image_size,
            mean=self._mean,
            std=self._std,
            train_size=len(table.files["train"]),
            val_size=len(table.files["val"]),
            test_size=len(table.files["test"]),
            source="; ".join((f"tables and image files in {self.root}", *table.notes)),
        )

    def _where(self) -> str:
        return str(self.root)

    def _sources(self) -> Mapping[str, ImageSource]:
        table = self._read_tables()
        sources = {}
        for part, files in table.files.items():
            labels = torch.zeros(len(files), len(table.classes))
            for at, (_, those) in enumerate(files):
                labels[at, list(those)] = 1.0
            sources[part] = FileSource(self.root, [path for path, _ in files], labels)
        return sources

    def _read_tables(self) -> LabelTable:
        if self._table is None:
            self._table = read_tables(self.root)
        return self._table
