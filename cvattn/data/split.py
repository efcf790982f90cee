"""Fixed splits that depend on labels or names alone, never on a run's seed."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cvattn.data.counter import Stream, bits

VAL_FRACTION = 0.1


def held_out(names: Sequence[bytes]) -> list[int]:
    """Positions of a tenth of a class, for validation, by a hash of the names: the same everywhere.

    Rounded up; none of a single one. Adding some moves few others. Sorted.
    """
    count = math.ceil(len(names) * VAL_FRACTION) if len(names) > 1 else 0
    order = sorted(range(len(names)), key=lambda at: (hashlib.sha256(names[at]).digest(), at))
    return sorted(order[:count])


def stratified_split(labels: Tensor, size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Part the positions 0..N-1 into ``(rest, chosen)``, each class in proportion.

    Args:
        labels: (N,) int64.
        size: how many positions to choose; class quotas are rounded by largest remainder.
        seed: which of the possible splits; a constant of the data set, not the run's seed.

    Returns:
        two sorted int64 tensors, of N - size and of ``size`` positions.
    """
    count = len(labels)
    if not 0 <= size <= count:
        raise ValueError(f"cannot choose {size} of {count} images")
    classes, per_class = labels.unique(return_counts=True)
    exact = per_class.double() * size / max(count, 1)
    quota = exact.floor().long()
    short = size - int(quota.sum())
    quota[(quota - exact).argsort(stable=True)[:short]] += 1

    rank = bits(seed, 0, torch.arange(count), Stream.SPLIT)
    chosen = torch.zeros(count, dtype=torch.bool)
    for label, n in zip(classes.tolist(), quota.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[rank[members].argsort(stable=True)[:n]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
