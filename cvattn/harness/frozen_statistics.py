"""Batch norms that keep the statistics of trained weights while the network goes on to learn."""

from typing import Any

import pytorch_lightning as pl
from torch.nn.modules.batchnorm import _BatchNorm

from cvattn.blocks.upkeep import CHILD
from cvattn.harness.config.errors import TrainingStopped


class FrozenStatistics(pl.Callback):
    """Batch norms normalise by the mean and variance that they have, in training as in evaluation.

    For trained weights and a short training: otherwise layers that are used to the statistics of
    millions of images get those of one batch, of other images, and learn from it. Scale and shift
    are trained. Norms of inserted attention blocks, which are new, are left alone.

    Raises:
        TrainingStopped: at the start of a network that has no batch norms, or whose statistics are
            those of no image: weights that nobody has trained.
    """

    def __init__(self) -> None:
        self._norms: list[_BatchNorm] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        norms = {
            name: module
            for name, module in pl_module.named_modules()
            if isinstance(module, _BatchNorm)
            and module.track_running_stats
            and CHILD not in name.split(".")
        }
        if not norms:
            raise TrainingStopped(
                "callbacks.frozen_statistics: the network has no batch norms; leave it out"
            )
        untrained = [name for name, norm in norms.items() if not _has_seen_images(norm)]
        if untrained:
            raise TrainingStopped(
                f"callbacks.frozen_statistics: {len(untrained)} of {len(norms)} batch norms have "
                f"mean 0 and variance 1, as before any training ({', '.join(untrained[:3])}): it "
                "is for trained weights (model.pretrained=)"
            )
        self._norms = list(norms.values())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # At each step: whoever evaluates the network between steps puts all of it back to training.
        for norm in self._norms:
            norm.eval()


def _has_seen_images(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return bool((mean != 0).any()) or bool((variance != 1).any())
