"""What all image data modules share: their parts, loaders, examples and their pictures."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cvattn.data.checks import check_choice, check_int, check_number
from cvattn.data.counter import Stream, permutation
from cvattn.data.images.augment import Augmentation
from cvattn.data.images.holding import check_memory
from cvattn.data.images.pictures import Pictures
from cvattn.data.images.resized_crop import RandomResizedCrop
from cvattn.data.info import DataInfo
from cvattn.data.loader import BatchLoader, check_world_size
from cvattn.data.locality import Locality
from cvattn.data.module import DataModule

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One part of a data set.

    Attributes:
        images: uint8 (N, C, H, W), or :class:`Pictures`, which give such tensors when indexed by
            one of positions.
        labels: int64 (N,), or float32 (N, classes) of 0 and 1 where an image has several.
        fingerprint: as in :class:`Facts`; "": to be computed from the pixels.
        locality: for training, where the images lie in large files.
    """

    images: Tensor | Pictures
    labels: Tensor
    fingerprint: str = ""
    locality: Locality | None = None

    def all_images(self) -> Tensor:
        """All of them at once, uint8 (N, C, H, W).

        Raises:
            DataError: they do not fit into the memory.
        """
        if isinstance(self.images, Tensor):
            return self.images
        check_memory(
            math.prod(self.images.shape),
            f"{len(self.images)} images at once",
            "they are needed together here; set a smaller data.image_size",
        )
        return self.images[torch.arange(len(self.images))]


class ImageDataModule(DataModule):
    """Base of the image data modules; a subclass says what the data is, this serves it.

    A subclass writes ``describe()`` (cheap: constants, headers, folder names), ``_read()`` (all
    pixels, and the completed facts) and ``_augmentation()``. It may write ``prepare_data()``,
    which Lightning calls in one process before ``setup()``.

    Args:
        batch_size, eval_batch_size, seed: as in :class:`DataModule`.
        balanced_sampling: an epoch has as many training images as there are, of each class equally
            many (:func:`cvattn.data.balance.balanced_order`).

    Attributes:
        info: None before ``setup()``, then the complete :class:`DataInfo`.
        test_views: which views of a test image may be averaged (:func:`views_of`); a subclass
            whose images may be mirrored says so.
        target: what each image has, as in :class:`cvattn.data.Facts`.
    """

    test_views = "none"
    target: ClassVar[str] = "class"

    def __init__(
        self, *, batch_size: int, eval_batch_size: int, seed: int, balanced_sampling: bool = False
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        if not isinstance(balanced_sampling, bool):
            raise TypeError(f"balanced_sampling must be true or false, got {balanced_sampling!r}")
        self.balanced_sampling = balanced_sampling
        self.info: DataInfo | None = None
        self._sets: Mapping[str, ImageSet] = {}

    @property
    def for_task(self) -> dict[str, Any]:
        return {"test_views": self.test_views}

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class, int64 (number of classes,); reads the data if needed."""
        labels = self.split("train").labels
        return labels.bincount(minlength=len(self.describe().classes))

    def describe(self) -> DataInfo:
        """What can be known without reading pixels; ``.info`` once ``setup()`` has run."""
        raise NotImplementedError

    def _read(self) -> tuple[Mapping[str, ImageSet], DataInfo]:
        """All pixels by split name, and facts whose sizes and fingerprint the base completes."""
        raise NotImplementedError

    def _augmentation(self) -> Augmentation | None:
        """What is done to training images, or None."""
        raise NotImplementedError

    def _crop(self) -> RandomResizedCrop | None:
        """Which part of training pictures is shown, where they are :class:`Pictures`."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Read the data, or find where it is, once, whatever the stage."""
        if self._sets:
            return
        check_world_size(self.batch_size, self._place()[1])  # before the reading takes its time
        sets, info = self._read()
        self.info = dataclasses.replace(
            info,
            train_size=len(sets["train"].images),
            val_size=len(sets["val"].images),
            test_size=len(sets["test"].images),
            fingerprint=_fingerprint(sets["test"]),
        )
        self._sets = sets

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, augmented, normalised; see :class:`BatchLoader`."""
        return self._loader("train", train=True)

    def val_dataloader(self) -> BatchLoader:
        """Every validation image once, not augmented."""
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Every test image once, not augmented."""
        return self._loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """The test images, in order; several processes take every n-th image each."""
        return self._loader("test")

    def split(self, name: str) -> ImageSet:
        """The raw arrays of "train", "val" or "test"; reads the data if that was not done."""
        check_choice("split", name, SPLITS)
        self.setup()
        return self._sets[name]

    def example_images(self, n: int, split: str = "val") -> tuple[Tensor, Tensor, Tensor]:
        """The first ``n`` images (or all, if fewer) of one fixed random order, on the CPU.

        The same images in every run, whatever the seed: pictures and entropies of different runs
        can be compared.

        Returns:
            images (n, C, H, W) float32 normalised, labels (n,), and positions in the split (n,).
        """
        check_int("n", n, minimum=1)
        chosen = self.split(split)
        order = permutation(0, 0, len(chosen.images), Stream.EXAMPLES)[:n]
        loader = self._make_loader(chosen, device=torch.device("cpu"))
        return *loader.batch(order), order

    def example_inputs(self, n: int, split: str = "val") -> tuple[Tensor, ...]:
        """The images alone of :meth:`example_images`."""
        return self.example_images(n, split)[:1]

    def denormalise(self, images: Tensor) -> np.ndarray:
        """Normalised (B, C, H, W) or (C, H, W) back to uint8 pixels, (B, H, W, C) or (H, W, C)."""
        info = self._complete_info()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
        return as_pixels(images.detach().float().cpu() * std + mean)

    def _loader(self, name: str, *, train: bool = False) -> BatchLoader:
        chosen = self.split(name)
        return self._make_loader(chosen, train=train, device=self._device(chosen.images))

    def _make_loader(
        self, chosen: ImageSet, *, device: torch.device, train: bool = False
    ) -> BatchLoader:
        return BatchLoader(
            chosen.images,
            chosen.labels,
            crop=self._crop() if train else None,
            augment=self._augmentation() if train else None,
            locality=chosen.locality if train else None,
            balanced=train and self.balanced_sampling,
            **self._options(device=device, train=train),
        )

    def _options(self, *, device: torch.device, train: bool) -> dict[str, Any]:
        """What a loader of training or of evaluation is given beside the samples."""
        info = self._complete_info()
        rank, world_size = self._place()
        return {
            "batch_size": self.batch_size if train else self.eval_batch_size,
            "mean": info.mean,
            "std": info.std,
            "train": train,
            "seed": self.seed,
            "epoch": self._epoch,
            "behind": self._behind,
            "rank": rank,
            "world_size": world_size,
            "device": device,
        }

    def _complete_info(self) -> DataInfo:
        self.setup()
        if self.info is None:
            raise RuntimeError("setup() did not set info")  # a subclass replaced setup()
        return self.info

    def _device(self, images: Tensor | Pictures) -> torch.device:
        """The trainer's GPU if the images fit easily, else the CPU (Lightning moves batches).

        Of pictures that are made when needed a batch at a time is there.
        """
        device = torch.device("cpu")
        if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.trainer.strategy.root_device)
            if not isinstance(images, Tensor) or images.nbytes * 4 < free:
                device = self.trainer.strategy.root_device
        return device


def fill_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """The mean colour in whole pixel values 0..255, for erased squares."""
    return tuple(round(255 * value) for value in mean)


def as_pixels(images: Tensor) -> np.ndarray:
    """(..., C, H, W) of 0..1 -> uint8 (..., H, W, C), as one looks at them."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).numpy()


def with_labels(info: DataInfo, test: ImageSet) -> DataInfo:
    """The facts, whose fingerprint is then of the test images' labels, too."""
    labels = hashlib.sha256(test.labels.numpy().tobytes()).hexdigest()
    both = hashlib.sha256(f"{info.fingerprint} {labels}".encode()).hexdigest()[:16]
    return dataclasses.replace(info, fingerprint=both)


def _fingerprint(part: ImageSet) -> str:
    if part.fingerprint:
        return part.fingerprint
    return hashlib.sha256(part.all_images().contiguous().numpy().data).hexdigest()[:16]


def channel_statistics(images: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images, of pixels scaled to 0..1.

    Exact, from histograms. A channel of one value gets the smallest step, 1/255, as its std.

    Args:
        images: (C, H, W) each; at least one.
    """
    # One image at a time: a whole channel as int64 would need eight times the memory.
    counts = sum(
        torch.stack([channel.flatten().bincount(minlength=256) for channel in image])
        for image in images
    )
    assert isinstance(counts, Tensor)
    mean, std = [], []
    level = torch.arange(256, dtype=torch.float64) / 255
    for channel in counts.double():
        share = channel / channel.sum()
        mean.append(float((share * level).sum()))
        std.append(max(float((share * (level - mean[-1]) ** 2).sum().sqrt()), 1 / 255))
    return tuple(mean), tuple(std)


def both_sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of a configuration's one side or two; ValueError or TypeError otherwise."""
    several = isinstance(image_size, Sequence) and not isinstance(image_size, str)
    sides = list(image_size) if several else [image_size] * 2  # type: ignore[arg-type]
    if len(sides) != 2:
        raise ValueError(f"image_size must be one side or (H, W), got {image_size!r}")
    height, width = (check_int("image_size", side, minimum=1) for side in sides)
    return height, width


def given_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``mean`` and ``std`` as a configuration gives them; empty where they are to be measured."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both, or neither to measure them")
    found = []
    for name, values, lowest in (("mean", mean, 0.0), ("std", std, 1e-4)):
        if values is not None and (isinstance(values, str) or len(values) != channels):
            raise ValueError(f"{name} needs {channels} values, got {values!r}")
        found.append(
            tuple(check_number(name, value, minimum=lowest, maximum=1.0) for value in values or ())
        )
    return found[0], found[1]
