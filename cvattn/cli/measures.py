"""How well probabilities fit labels: the numbers of ``cvattn evaluate``."""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images whose likeliest class has a probability in [lower, upper); the last includes 1."""

    lower: float
    upper: float
    count: int
    confidence: float | None  # mean probability of the likeliest class
    accuracy: float | None


@dataclass(frozen=True)
class Measures:
    """Accuracies and confidences from 0 to 1; the cross-entropy in nats.

    Attributes:
        class_accuracy: of the images of each class; None for a class without images.
        accuracy_macro: the mean of these.
        confusion: counts, row = true class, column = likeliest class.
        calibration_error: expected calibration error, mean |accuracy - confidence| over images in
            15 bins of equal width (Guo et al., "On Calibration of Modern Neural Networks", 2017).
    """

    images: int
    accuracy: float
    accuracy_macro: float
    class_accuracy: list[float | None]
    cross_entropy: float
    calibration_error: float
    confusion: list[list[int]]
    bins: list[Bin]


def measure(logits: Tensor, labels: Tensor) -> Measures:
    """Everything about logits (N, outputs) and labels (N,), both on the CPU, N >= 1."""
    from torchmetrics.functional.classification import (
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    logits = logits.double()
    probabilities = logits.softmax(-1)
    # From the logits: in probabilities two classes may both have been rounded to the same value.
    guesses = logits.argmax(-1)
    outputs = logits.shape[1]
    confusion = multiclass_confusion_matrix(guesses, labels, num_classes=outputs)
    counts = confusion.sum(1)
    right = confusion.diagonal()
    each = [int(r) / int(n) if n else None for r, n in zip(right, counts, strict=True)]
    return Measures(
        images=len(labels),
        accuracy=int(right.sum()) / len(labels),
        accuracy_macro=fmean(value for value in each if value is not None),
        class_accuracy=each,
        cross_entropy=float(F.cross_entropy(logits, labels)),
        calibration_error=float(
            multiclass_calibration_error(
                probabilities, labels, num_classes=outputs, n_bins=BINS, norm="l1"
            )
        ),
        confusion=confusion.tolist(),
        bins=_bins(probabilities.amax(-1), guesses == labels),
    )


def _bins(confidence: Tensor, right: Tensor) -> list[Bin]:
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1)
    found = []
    for index in range(BINS):
        inside = place == index
        count = int(inside.sum())
        found.append(
            Bin(
                lower=float(edges[index]),
                upper=float(edges[index + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(right[inside].double().mean()) if count else None,
            )
        )
    return found
