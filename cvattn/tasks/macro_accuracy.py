"""Accuracy in which each class counts the same."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MacroAccuracy(Metric):
    """The mean over the classes of the share of their samples that is named right (recall).

    scikit-learn's ``balanced_accuracy_score``: a class that no sample has does not count, also
    where it is predicted. Over batches and processes. NaN of no samples.

    Args:
        num_classes: labels are 0 ... num_classes - 1.
    """

    full_state_update = False
    right: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for state in ("right", "count"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count the samples of logits (B, num_classes or more) and labels (B,)."""
        classes = len(self.count)
        self.count += labels.bincount(minlength=classes)
        self.right += labels[logits.argmax(-1) == labels].bincount(minlength=classes)

    def compute(self) -> Tensor:
        there = self.count > 0
        return (self.right[there].double() / self.count[there]).mean().float()
