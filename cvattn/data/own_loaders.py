"""Ordinary loaders as a data module: anyone's ``DataLoader``, or a ``LightningDataModule``."""

import hashlib
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from cvattn.data.checks import DataError
from cvattn.data.images.base import as_pixels, given_statistics
from cvattn.data.info import DataInfo
from cvattn.data.module import DataModule
from cvattn.data.seeded_loader import SeededLoader

# Hooks of a LightningDataModule that would not be called.
_HOOKS = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")


class LoaderData(DataModule):
    """Images with classes from ordinary loaders, whose batches are ``(images, labels)``.

    Their order and what they draw is a function of (seed, epoch, batch): torch's, numpy's and
    Python's generators are seeded before each batch and put back after it, and the loader's own
    before each epoch, so a run that is continued goes on with the batches that it would have had.
    Within an epoch those that are behind it are loaded again, and thrown away. Workers that outlive
    an epoch (``persistent_workers``) keep their state, which no checkpoint has: they are refused.

    Other than with :class:`cvattn.data.FolderData`, batches depend on the batch size, on the number
    of workers and on that of processes; several processes need loaders with a
    ``DistributedSampler``.

    Args:
        train, val, test: loaders of images float (B, C, H, W), as the network takes them, and
            labels int64 (B,). Without ``test`` nothing is tested.
        classes: their names, in the order of the labels, or how many there are.
        mean, std: per channel, of pixels scaled to 0..1, with which the loaders normalise; None: a
            checkpoint cannot say it, so ``predict``, ``evaluate`` and ``export`` cannot use it.
        seed: of the order and the augmentation.
        name: of the data, for titles.
    """

    def __init__(
        self,
        train: Iterable[Any],
        val: Iterable[Any],
        test: Iterable[Any] | None = None,
        *,
        classes: Sequence[str] | int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        name: str = "loaders",
    ) -> None:
        self._called = name  # Lightning has a name of its own
        self.loaders = {"train": train, "val": val, "test": test}
        size = getattr(train, "batch_size", None)
        super().__init__(batch_size=size or 1, eval_batch_size=size or 1, seed=seed)
        names = range(classes) if isinstance(classes, int) else classes
        self.classes = tuple(map(str, names))
        if len(self.classes) < 2:
            raise ValueError(f"classes={classes!r}: expected the names of two or more, or how many")
        self.statistics = mean, std
        self.info: DataInfo | None = None
        for part, loader in self.loaders.items():
            if getattr(loader, "persistent_workers", False):
                raise ValueError(
                    f"{part}: persistent_workers=True keeps random states that no checkpoint has, "
                    "so a continued run would draw others; set persistent_workers=False"
                )

    @classmethod
    def of(cls, data: pl.LightningDataModule, **values: Any) -> "LoaderData":
        """Of a ``LightningDataModule``, which is prepared and set up for it.

        Args:
            values: as of the class: ``classes``, ``mean``, ``std``, ``seed``, ``name``.

        Raises:
            DataError: it moves or changes batches in a hook, or gives several loaders.
        """
        for hook in _HOOKS:
            if getattr(type(data), hook) is not getattr(pl.LightningDataModule, hook):
                raise DataError(
                    f"{type(data).__name__}.{hook} would not be called: do what it does in the "
                    "loaders or in the task, or train with Lightning's own Trainer"
                )
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        if type(data).test_dataloader is not pl.LightningDataModule.test_dataloader:
            loaders["test"] = data.test_dataloader()
        for part, loader in loaders.items():
            if isinstance(loader, (list, tuple, dict)):
                raise DataError(
                    f"{type(data).__name__}.{part}_dataloader() gives {len(loader)} loaders; "
                    "expected one"
                )
        return cls(**{"name": type(data).__name__, **values}, **loaders)

    def describe(self) -> DataInfo:
        """From the first batches, which are loaded for it.

        Raises:
            DataError: they are not images and labels, or their labels are no classes.
        """
        if self.info is None:
            shapes = {}
            digest = hashlib.sha256()
            for part, loader in self.loaders.items():
                if loader is not None:
                    images, labels = self._first(part)
                    shapes[part] = tuple(images.shape[1:])
                    digest.update(images.numpy(force=True).tobytes() + bytes(labels.tolist()))
            if len(set(shapes.values())) > 1:
                raise DataError(f"images (C, H, W) are not alike: {shapes}")
            channels, height, width = shapes["train"]
            mean, std = given_statistics(*self.statistics, channels)
            self.info = DataInfo(
                name=self._called,
                classes=self.classes,
                channels=channels,
                image_size=(height, width),
                mean=mean,
                std=std,
                source="loaders that were given",
                fingerprint=digest.hexdigest()[:16],
                train_size=_count(self.loaders["train"]),
                val_size=_count(self.loaders["val"]),
                test_size=_count(self.loaders["test"]),
            )
        return self.info

    def setup(self, stage: str | None = None) -> None:
        """Nothing is read before it is asked for, but first batches."""
        self.describe()

    def train_dataloader(self) -> SeededLoader:
        return self._seeded("train")

    def val_dataloader(self) -> SeededLoader:
        return self._seeded("val")

    def test_dataloader(self) -> SeededLoader:
        return self._seeded("test")

    def example_images(self, n: int, split: str = "val") -> tuple[Tensor, Tensor, Tensor]:
        """The first ``n`` images of a part, or all if there are fewer, on the CPU.

        Returns:
            images (n, C, H, W), labels (n,), and positions in the part (n,).
        """
        found: list[tuple[Tensor, Tensor]] = []
        for images, labels in SeededLoader(self._given(split), seed=0):
            found.append((images, labels))
            if sum(len(each) for _, each in found) >= n:
                break
        images, labels = (torch.cat(parts)[:n].cpu() for parts in zip(*found, strict=True))
        return images, labels, torch.arange(len(labels))

    def example_inputs(self, n: int, split: str = "val") -> tuple[Tensor, ...]:
        return self.example_images(n, split)[:1]

    def denormalise(self, images: Tensor) -> np.ndarray:
        """(..., C, H, W) -> uint8 (..., H, W, C); without mean and std by each image's range."""
        info, images = self.describe(), images.detach().float().cpu()
        if info.mean:
            mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (info.mean, info.std))
            return as_pixels(images * std + mean)
        low, high = images.amin((-3, -2, -1), True), images.amax((-3, -2, -1), True)
        return as_pixels((images - low) / (high - low).clamp(min=1e-12))

    def _given(self, part: str) -> Iterable[Any]:
        loader = self.loaders.get(part)
        if loader is None:
            raise DataError(f"there is no loader for {part}: give LoaderData(..., {part}=loader)")
        return loader

    def _first(self, part: str) -> tuple[Tensor, Tensor]:
        batch = next(iter(SeededLoader(self._given(part), seed=self.seed)), None)
        if batch is None:
            raise DataError(f"{part}: the loader is empty")
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(each, Tensor) for each in batch):
            raise DataError(
                f"{part}: expected batches (images, labels) of two tensors, got a "
                f"{type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, Sized) else ''}; "
                "for others write a data module, a subclass of cvattn.data.DataModule"
            )
        images, labels = batch
        if images.ndim != 4 or not images.is_floating_point():
            raise DataError(
                f"{part}: expected images float (B, C, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}"
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise DataError(
                f"{part}: expected whole labels ({len(images)},), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise DataError(
                f"{part}: the first batch has labels {int(labels.min())} to {int(labels.max())}, "
                f"and there are {len(self.classes)} classes"
            )
        return images, labels

    def _seeded(self, part: str) -> SeededLoader:
        loader, training = self._given(part), part == "train"
        _, processes = self._place()
        sampler = getattr(loader, "sampler", None)
        if processes > 1 and not isinstance(sampler, DistributedSampler):
            raise DataError(
                f"{part}: {processes} processes, and each would see all samples: give the loader a "
                "torch.utils.data.DistributedSampler"
            )
        if not training:
            return SeededLoader(loader, seed=self.seed)
        return SeededLoader(loader, seed=self.seed, epoch=self._epoch, behind=self._behind)


def _count(loader: Iterable[Any] | None) -> int:
    """Samples of a loader; 0 if it does not say."""
    if isinstance(loader, DataLoader):
        loader = loader.dataset  # type: ignore[assignment]
        return len(loader) if isinstance(loader, Sized) else 0
    return (
        len(loader) * (getattr(loader, "batch_size", None) or 1) if isinstance(loader, Sized) else 0
    )
