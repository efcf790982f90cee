"""Batch norms with the statistics of the weights as they are now."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def measured_anew(network: nn.Module) -> Iterator[bool]:
    """Run the network on batches within it: their moments, on average, become its batch norms'.

    Nothing else of it is as in training. ``torch.optim.swa_utils.update_bn`` has all of it so, and
    would move the vectors of spectral norms.

    Yields:
        Whether it has any batch norms.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over all batches
    try:
        yield bool(norms)
    finally:
        for norm, (training, momentum) in zip(norms, kept, strict=True):
            norm.train(training).momentum = momentum
