"""Average precision of each of several labels, and its mean."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each label, float64 (K,): scikit-learn's ``average_precision_score``.

    NaN of a label that no sample has: there is nothing to find.

    Args:
        logits: (N, K).
        labels: (N, K) of 0 and 1.
    """
    shares, truth = logits.double().sigmoid(), labels.long()
    found = [
        binary_average_precision(shares[:, at], truth[:, at]).double()
        if truth[:, at].any()
        else torch.tensor(torch.nan, dtype=torch.float64, device=logits.device)
        for at in range(logits.shape[1])
    ]
    return torch.stack(found)


class MeanAveragePrecision(Metric):
    """The mean of :func:`average_precision` over the labels that a sample has; NaN if none.

    Of all samples, over batches and processes: they are kept until then.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("logits", "labels"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep logits and labels (B, K) of 0 and 1."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        each = average_precision(dim_zero_cat(self.logits), dim_zero_cat(self.labels))
        return each.nanmean().float()
