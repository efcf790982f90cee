"""What data modules share whose answers are sequences of characters."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cvattn.core import Alphabet
from cvattn.core.alphabet import PAD
from cvattn.data.checks import check_choice, check_int
from cvattn.data.counter import Stream, permutation
from cvattn.data.images.base import SPLITS
from cvattn.data.info import LineInfo, StringInfo
from cvattn.data.loader import Batches, check_world_size
from cvattn.data.module import DataModule

# ``(inputs, targets)``: what a network's ``encode`` takes; ids (B, T) from BEGIN to END, padded.
Batch = tuple[tuple[Tensor, ...], Tensor]
_POOL = 16


class SequenceBatches(Batches):
    """Batches that a function makes, in training of samples that are about equally long.

    Positions are drawn in pools of 16 batches and sorted in them, so that little is padded; the
    batches come in random order.

    Args:
        make: ``make(index, epoch)``.
        lengths: ``lengths(index, epoch)``, what padding depends on.
        others: as in :class:`Batches`.
    """

    def __init__(
        self,
        make: Callable[[Tensor, int], Batch],
        lengths: Callable[[Tensor, int], Tensor],
        count: int,
        **options: Any,
    ) -> None:
        super().__init__(count, **options)
        self._make, self._lengths = make, lengths

    def batch(self, index: Tensor, epoch: int = 0) -> Batch:
        """The samples at ``index`` (int64, on the CPU): ``(inputs, targets)``."""
        return self._make(index, epoch)

    def _order(self, epoch: int) -> Tensor:
        order, steps = super()._order(epoch), len(self)
        whole = order[: steps * self.batch_size]
        if len(whole) < steps * self.batch_size:
            return order  # less than one batch
        pools = [
            pool[self._lengths(pool, epoch).argsort(stable=True)]
            for pool in whole.split(_POOL * self.batch_size)
        ]
        batches = torch.cat(pools).view(steps, self.batch_size)
        return batches[permutation(self.seed, epoch, steps, Stream.SPLIT)].flatten()


class SequenceDataModule(DataModule):
    """Base of the data modules for :class:`cvattn.tasks.SequenceTask`.

    A subclass writes ``describe()`` (cheap), ``_read()`` (whatever must be read, once; returns the
    completed facts) and ``samples()``.

    Args:
        batch_size, eval_batch_size, seed: as in :class:`DataModule`.

    Attributes:
        info: None before ``setup()``, then the complete facts.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.info: StringInfo | LineInfo | None = None

    def describe(self) -> StringInfo | LineInfo:
        """What can be known without reading the data; ``.info`` once ``setup()`` has run."""
        raise NotImplementedError

    def _read(self) -> StringInfo | LineInfo:
        """Read what is to be read; the facts, whose fingerprint the base completes."""
        raise NotImplementedError

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The samples of "train", "val" or "test" at ``index`` (n,); training ones of an epoch.

        A sample depends on its own index and nothing else of the batch; how far it is padded
        depends on the batch.
        """
        raise NotImplementedError

    def lengths(self, split: str, index: Tensor, epoch: int = 0) -> Tensor:
        """How long each of :meth:`samples` is, (n,), for those of like length to be batched."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once, whatever the stage."""
        if self.info is not None:
            return
        check_world_size(self.batch_size, self._place()[1])
        info = self._read()
        inputs, targets = self.samples("test", torch.arange(min(info.test_size, 256)))
        content = b"".join(part.numpy().tobytes() for part in (*inputs, targets))
        fingerprint = hashlib.sha256(content).hexdigest()[:16]
        self.info = dataclasses.replace(info, fingerprint=fingerprint)

    def train_dataloader(self) -> SequenceBatches:
        """Shuffled; other samples in each epoch, or augmented anew."""
        return self._loader("train", train=True)

    def val_dataloader(self) -> SequenceBatches:
        """Every validation sample once, the same in each epoch."""
        return self._loader("val")

    def test_dataloader(self) -> SequenceBatches:
        """Every test sample once."""
        return self._loader("test")

    def predict_dataloader(self) -> SequenceBatches:
        """The test samples, in order; several processes take every n-th sample each."""
        return self._loader("test")

    def examples(self, n: int, split: str = "val") -> Batch:
        """``n`` samples (or all, if fewer), the same in every run, whatever the seed."""
        check_int("n", n, minimum=1)
        check_choice("split", split, SPLITS)
        self.setup()
        order = permutation(0, 0, self._count(split), Stream.EXAMPLES)[:n]
        return self.samples(split, order)

    def example_inputs(self, n: int, split: str = "val") -> tuple[Tensor, ...]:
        """What a network is called with for :meth:`examples`: inputs, targets but the last."""
        inputs, targets = self.examples(n, split)
        return *inputs, targets[:, :-1]

    def _count(self, split: str) -> int:
        return getattr(self.describe(), f"{split}_size")

    def _loader(self, split: str, *, train: bool = False) -> SequenceBatches:
        self.setup()
        rank, world_size = self._place()
        return SequenceBatches(
            lambda index, epoch: self.samples(split, index, epoch),
            lambda index, epoch: self.lengths(split, index, epoch),
            self._count(split),
            batch_size=self.batch_size if train else self.eval_batch_size,
            train=train,
            seed=self.seed,
            epoch=self._epoch,
            behind=self._behind,
            rank=rank,
            world_size=world_size,
        )


def padded_targets(texts: Sequence[str], alphabet: Alphabet) -> Tensor:
    """Ids (B, T) from BEGIN to END, then PAD."""
    ids = [torch.tensor(alphabet.encode(text)) for text in texts]
    return pad_sequence(ids, batch_first=True, padding_value=PAD)


def check_alphabet(characters: str) -> Alphabet:
    """The alphabet of a configuration's string; ValueError or TypeError with the key's name."""
    if not isinstance(characters, str):
        raise TypeError(f"alphabet must be a string of characters, got {characters!r}")
    try:
        return Alphabet(characters)
    except ValueError as error:
        raise ValueError(f"alphabet: {error}") from None
