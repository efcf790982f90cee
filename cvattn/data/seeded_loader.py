"""Anyone's loader, whose random numbers are seeded from outside."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cvattn.data.counter import seed_of


class SeededLoader:
    """A loader whose order and draws are a function of (seed, epoch, batch).

    Args:
        loader: that makes the batches.
        seed: of everything it draws from torch's, numpy's and Python's generators, and its own.
        epoch: called at each ``iter()``; says which epoch it is.
        behind: called at each ``iter()``; batches to be passed over.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
        behind: Callable[[], int] = lambda: 0,
    ) -> None:
        self.loader = loader
        self.seed = seed
        self._epoch = epoch
        self._behind = behind

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # TypeError of one that has no end

    def __iter__(self) -> Iterator[Any]:
        epoch, behind = self._epoch(), self._behind()
        samplers = [getattr(self.loader, name, None) for name in ("sampler", "batch_sampler")]
        samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
        for holder in (self.loader, *samplers):
            if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                generator.manual_seed(seed_of(self.seed, epoch, -1))
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(epoch)
        with _drawing(self.seed, epoch, -1):
            batches = iter(self.loader)
        at = 0
        while True:
            with _drawing(self.seed, epoch, at):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if at >= behind:
                yield batch
            at += 1

    def state_dict(self) -> dict[str, Any]:
        """Empty: ``behind`` says where to go on. Tells Lightning that going on is possible."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""


@contextmanager
def _drawing(*key: int) -> Iterator[None]:
    """Within it all generators of the process are seeded; then they are as they were."""
    number = seed_of(*key)
    before = random.getstate(), np.random.get_state()  # noqa: NPY002, it is others' draws
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
