"""The order of an epoch in which each class is drawn equally often."""

import torch
from torch import Tensor

from cvattn.data.counter import Stream, bits


def balanced_order(classes: Tensor, *, seed: int, epoch: int) -> Tensor:
    """As many draws as there are samples, of each class the same number or one more.

    A class is drawn without replacement until all of it was drawn, then from its start again: of a
    large class an epoch has a part, another one each epoch; of a small class every sample, several
    times. Of any batch the same holds nearly: each class comes once before any comes again.

    Args:
        classes: of each sample, int64 (N,), on the CPU. Those without a sample are not drawn.
        seed, epoch: all that the order depends on.

    Returns:
        int64 (N,): ``draw % N`` is the position of a sample and ``draw // N`` how often it was
        drawn before in this epoch, so that an augmentation by ``draw`` does not repeat itself.
    """
    count = len(classes)
    there = classes.unique().tolist()
    rounds = -(-count // len(there))
    turn = torch.arange(rounds)
    rank = bits(seed, epoch, torch.arange(count), Stream.ORDER)
    draws = torch.empty(rounds, len(there), dtype=torch.int64)
    for column, label in enumerate(there):
        members = (classes == label).nonzero()[:, 0]
        members = members[rank[members].argsort(stable=True)]
        draws[:, column] = members[turn % len(members)] + count * (turn // len(members))
    places = bits(seed, epoch, torch.arange(draws.numel()), Stream.CLASSES).view_as(draws)
    return draws.gather(1, places.argsort(dim=1, stable=True)).flatten()[:count]
