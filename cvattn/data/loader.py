"""Batches of images, held or made when needed, in an order of (seed, epoch) alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cvattn.data.balance import balanced_order
from cvattn.data.checks import check_int
from cvattn.data.counter import permutation
from cvattn.data.images.augment import Augmentation
from cvattn.data.images.pictures import Pictures
from cvattn.data.images.resized_crop import RandomResizedCrop
from cvattn.data.locality import Locality


def check_world_size(batch_size: int, world_size: int) -> None:
    """ValueError unless ``world_size`` processes can share a global batch equally."""
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        near = " and ".join(str(n) for n in (below, below + world_size) if n)
        raise ValueError(
            f"batch_size={batch_size} is the batch of all {world_size} processes together and is "
            f"not divisible by {world_size}; nearest that are: {near}"
        )


class Batches:
    """Yields batches of samples that are named by their positions in a set; a subclass makes them.

    Not a ``torch.utils.data.DataLoader``: it starts no workers, Lightning leaves it as it is (no
    ``DistributedSampler``), and every process knows its own part.

    Training (``train=True``): the order is a function of (seed, epoch); a global batch is divided
    among the processes, so the samples of a step, and their augmentation, are the same for any
    number of processes. No sample comes twice in an epoch (unless classes are balanced); the tail
    that fills no batch is left out (another one each epoch). A set smaller than one batch is one
    batch.

    Evaluation: every sample exactly once over all processes, whose parts differ by at most one
    sample; the number of batches is the same on each (unless a process has fewer samples than
    there are batches).

    Args:
        count: samples in the set.
        batch_size: of all processes together in training; of one process in evaluation.
        train: shuffle and drop the tail (True), or every sample once in order (False).
        seed: of the order and the augmentation.
        epoch: called at each ``iter()``; says which epoch it is.
        behind: called at each ``iter()`` in training; says how many batches of the epoch a run that
            is continued has behind it.
        rank, world_size: this process and the number of processes.
        locality: of training samples that lie in large files; None: all are mixed.
        classes: of each sample, int64 (N,), where training draws each class equally often
            (:func:`cvattn.data.balance.balanced_order`); None: each sample.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        train: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        behind: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        locality: Locality | None = None,
        classes: Tensor | None = None,
    ) -> None:
        check_int("batch_size", batch_size, minimum=1)
        check_int("world_size", world_size, minimum=1)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must lie in 0..{world_size - 1}")
        if train:
            check_world_size(batch_size, world_size)
            if count < world_size:
                raise ValueError(
                    f"{count} training images cannot be shared by {world_size} processes"
                )
        self.count = count
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self._epoch = epoch
        self._behind = behind
        self._locality = locality
        self._classes = classes

    def __len__(self) -> int:
        if self.train:
            return max(self.count // self.batch_size, min(self.count, 1))
        largest = -(-self.count // self.world_size)
        mine = len(range(self.rank, self.count, self.world_size))
        return min(-(-largest // self.batch_size), mine)

    def __iter__(self) -> Iterator[Any]:
        epoch, indices = self._left()
        for index in indices:
            yield self.batch(index, epoch)

    def _left(self) -> tuple[int, list[Tensor]]:
        """The epoch that it is, and the positions of the batches that are left of it."""
        epoch = self._epoch()
        behind = self._behind() if self.train else 0
        return epoch, self.batch_indices(epoch)[behind:]

    def state_dict(self) -> dict[str, Any]:
        """Empty: ``behind`` says where to go on. Tells Lightning that going on is possible."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""

    def batch_indices(self, epoch: int = 0) -> list[Tensor]:
        """The positions in the set of this process's samples, one int64 tensor for each batch.

        Of balanced classes the draws, of which :meth:`positions` makes positions.
        """
        count, steps = self.count, len(self)
        if not self.train:
            mine = torch.arange(self.rank, count, self.world_size)
            return list(mine.tensor_split(steps)) if steps else []
        return [
            part.tensor_split(self.world_size)[self.rank]
            for part in self._order(epoch).split(self.batch_size)[:steps]
        ]

    def _order(self, epoch: int) -> Tensor:
        """All positions, or draws, in the order of an epoch of training."""
        if self._classes is not None:
            return balanced_order(self._classes, seed=self.seed, epoch=epoch)
        if self._locality is not None:
            return self._locality.order(self.seed, epoch)
        return permutation(self.seed, epoch, self.count)

    def positions(self, index: Tensor) -> Tensor:
        """Where in the set the samples of :meth:`batch_indices` are; they are augmented by it."""
        return index % self.count

    def batch(self, index: Tensor, epoch: int = 0) -> Any:
        """The samples at ``index`` (int64, on the CPU), as ``iter()`` yields them."""
        raise NotImplementedError


class BatchLoader(Batches):
    """Yields ``(images, labels)``: float32 (B, C, H, W), normalised, and int64 (B,).

    Args:
        images: uint8 (N, C, H, W), or :class:`Pictures`: these are read ahead by their threads.
        labels: int64 (N,), or masks uint8 (N, H, W).
        mean, std: per channel, of pixels scaled to 0..1.
        crop: which part of each of :class:`Pictures` is shown; None: the middle.
        augment: see :mod:`cvattn.data.images.augment`; applied before normalisation.
        balanced: draw each class equally often.
        device: where the arrays are kept and the batches are made (of :class:`Pictures`, from where
            their pixels have arrived on); None: where they are.
        others: as in :class:`Batches`.
    """

    def __init__(
        self,
        images: Tensor | Pictures,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        train: bool = False,
        crop: RandomResizedCrop | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        behind: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        locality: Locality | None = None,
        balanced: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            len(images),
            batch_size=batch_size,
            train=train,
            seed=seed,
            epoch=epoch,
            behind=behind,
            rank=rank,
            world_size=world_size,
            locality=locality,
            classes=labels.cpu() if balanced else None,
        )
        check_images(images, labels, mean, std)
        self.crop = crop
        self.augment = augment
        self.device = device or (
            images.device if isinstance(images, Tensor) else torch.device("cpu")
        )
        self.images = images.to(self.device) if isinstance(images, Tensor) else images
        self.labels = labels.to(self.device)
        shape = (1, -1, 1, 1)
        # Pixels stay in 0..255 until the last step: (x - 255 mean) / (255 std).
        self._mean = (torch.tensor(mean, dtype=torch.float64) * 255).float().view(shape)
        self._rate = (1 / (torch.tensor(std, dtype=torch.float64) * 255)).float().view(shape)
        self._mean, self._rate = self._mean.to(self.device), self._rate.to(self.device)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.images, Tensor):
            yield from super().__iter__()
            return
        epoch, indices = self._left()
        batches = self.images.batches(indices, self.crop, seed=self.seed, epoch=epoch)
        for index, images in zip(indices, batches, strict=True):
            yield self._finished(images.to(self.device), index, epoch)

    def batch(self, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """The images at ``index`` (int64), as ``iter()`` yields them."""
        if isinstance(self.images, Tensor):
            images = self.images[self.positions(index).to(self.images.device)]
        else:
            options = {"seed": self.seed, "epoch": epoch}
            (images,) = self.images.batches([index], self.crop, **options)
        return self._finished(images.to(self.device), index, epoch)

    def _finished(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        index = index.to(self.device)
        places = self.positions(index)
        if self.augment is not None:
            images = self.augment(images, index, seed=self.seed, epoch=epoch)
        return self.normalised(images), self.labels[places]

    def normalised(self, images: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in 0..255, uint8 or float32 -> float32, normalised."""
        return images.float().sub_(self._mean).mul_(self._rate)


def check_images(
    images: Tensor | Pictures, labels: Tensor, mean: Sequence[float], std: Sequence[float]
) -> None:
    """ValueError unless these are pixels with a label each, and constants of their channels."""
    kind = images.dtype if isinstance(images, Tensor) else torch.uint8
    if kind != torch.uint8 or len(images.shape) != 4 or len(images) != len(labels):
        raise ValueError(
            f"images must be uint8 (N, C, H, W) with N labels, got {kind} of shape "
            f"{tuple(images.shape)} with {len(labels)} labels"
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(
            f"mean and std need one value for each of {images.shape[1]} channels, got "
            f"{len(mean)} and {len(std)}"
        )
