"""Strings to be reversed, sorted or copied: the textbooks' first task for a Transformer."""

import torch
from torch import Tensor

from cvattn.core.alphabet import BEGIN, END, FIRST, PAD
from cvattn.data.checks import check_choice, check_int
from cvattn.data.counter import Stream, bits, integers
from cvattn.data.info import StringInfo
from cvattn.data.sequences.base import Batch, SequenceDataModule, check_alphabet

OPERATIONS = ("reverse", "sort", "copy")
# Which of four classes of strings each part takes, and the seed of the parts that never change.
_CLASSES = {"train": (0, 1), "val": (2,), "test": (3,)}
_FIXED = {"val": 1, "test": 2}
_WIDEST = 1 << 20  # more characters than any string has: keeps the samples' numbers apart


class StringsData(SequenceDataModule):
    """Random strings of unequal length, and the same reversed, sorted or copied.

    Strings are made when they are needed: a training string is a function of (seed, epoch, index),
    one of validation or test of its index alone. No string is in two parts: the hash of all but the
    last character allows each part some last characters and no others.

    Args:
        operation: "reverse", "sort" (by the alphabet's order) or "copy".
        alphabet: at least 4 characters.
        min_length, max_length: of the strings; all lengths between are equally frequent.
        train_size, val_size, test_size: strings of an epoch, and of the other parts.
        batch_size, eval_batch_size, seed: as in :class:`cvattn.data.module.DataModule`.
    """

    def __init__(
        self,
        *,
        operation: str = "reverse",
        alphabet: str = "abcdefghijklmnopqrstuvwxyz",
        min_length: int = 1,
        max_length: int = 10,
        train_size: int = 20000,
        val_size: int = 500,
        test_size: int = 2000,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.operation = check_choice("operation", operation, OPERATIONS)
        self.alphabet = check_alphabet(alphabet)
        if len(self.alphabet.characters) < 4:
            raise ValueError(f"alphabet={alphabet!r} needs at least 4 characters, to part strings")
        self.min_length = check_int("min_length", min_length, minimum=1)
        self.max_length = check_int("max_length", max_length, minimum=min_length)
        self.sizes = {
            "train": check_int("train_size", train_size, minimum=1),
            "val": check_int("val_size", val_size, minimum=1),
            "test": check_int("test_size", test_size, minimum=1),
        }

    def describe(self) -> StringInfo:
        """Constants; nothing is read."""
        if isinstance(self.info, StringInfo):
            return self.info
        return StringInfo(
            name=self.operation,
            alphabet=self.alphabet.characters,
            max_length=self.max_length + 1,
            train_size=self.sizes["train"],
            val_size=self.sizes["val"],
            test_size=self.sizes["test"],
            source=f"random strings of {self.min_length} to {self.max_length} characters",
        )

    def _read(self) -> StringInfo:
        return self.describe()

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """Source ids (B, S), which end with END, and target ids (B, S + 1)."""
        seed, epoch = (self.seed, epoch) if split == "train" else (_FIXED[split], 0)
        characters, lengths = self._strings(split, seed, epoch, index)
        real = torch.arange(characters.shape[1]) < lengths[:, None]
        answers = _OPERATIONS[self.operation](characters, lengths)
        source = torch.full((len(index), characters.shape[1] + 1), PAD)
        source[:, :-1] = torch.where(real, characters + FIRST, PAD)
        source.scatter_(1, lengths[:, None], END)
        target = torch.full((len(index), characters.shape[1] + 2), PAD)
        target[:, 0] = BEGIN
        target[:, 1:-1] = torch.where(real, answers + FIRST, PAD)
        target.scatter_(1, lengths[:, None] + 1, END)
        return (source,), target

    def lengths(self, split: str, index: Tensor, epoch: int = 0) -> Tensor:
        """Characters of each string."""
        seed, epoch = (self.seed, epoch) if split == "train" else (_FIXED[split], 0)
        return self._lengths(seed, epoch, index)

    def _lengths(self, seed: int, epoch: int, index: Tensor) -> Tensor:
        span = self.max_length - self.min_length + 1
        return self.min_length + integers(seed, epoch, index, Stream.LENGTH, high=span)

    def _strings(self, split: str, seed: int, epoch: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the alphabet (B, longest), arbitrary beyond the lengths (B,)."""
        size = len(self.alphabet.characters)
        lengths = self._lengths(seed, epoch, index)
        places = torch.arange(int(lengths.max()))
        number = index[:, None] * _WIDEST + places
        characters = integers(seed, epoch, number, Stream.CHARACTER, high=size)
        # The last character: drawn among those whose class, together with the rest, is the part's.
        last = lengths[:, None] - 1
        rest = torch.where(places < last, bits(0, 0, characters + size * places, Stream.SPLIT), 0)
        classes = _CLASSES[split]
        chosen = integers(seed, epoch, index, Stream.SPLIT, high=len(classes))
        wanted = (torch.tensor(classes)[chosen] - (rest.sum(1) >> 7)) % 4
        count = (size - 1 - wanted) // 4 + 1  # places wanted, wanted + 4, ... of the alphabet
        drawn = characters.gather(1, last)[:, 0] % count
        return characters.scatter(1, last, (wanted + 4 * drawn)[:, None]), lengths


def _reversed(characters: Tensor, lengths: Tensor) -> Tensor:
    places = lengths[:, None] - 1 - torch.arange(characters.shape[1])
    return characters.gather(1, places.clamp_min(0))


def _sorted(characters: Tensor, lengths: Tensor) -> Tensor:
    beyond = torch.arange(characters.shape[1]) >= lengths[:, None]
    return characters.masked_fill(beyond, _WIDEST).sort(1).values


_OPERATIONS = {
    "reverse": _reversed,
    "sort": _sorted,
    "copy": lambda characters, lengths: characters,
}
