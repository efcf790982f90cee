"""How well masks agree: intersection over union, class by class and in the mean."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from cvattn.data import VOID


def class_iou(confusion: Tensor) -> Tensor:
    """``right / (of the class + taken for it - right)`` of counts (true, predicted), float64.

    NaN for a class that is neither in the masks nor predicted: there is nothing to be right about.
    """
    counts = confusion.double()
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def mean_iou(confusion: Tensor) -> Tensor:
    """The mean of :func:`class_iou` over the classes that are in the masks or predicted.

    A class that is predicted and in no mask counts as 0; one that is neither does not count.
    Counts are of a whole set, not of single images (Everingham et al., "The Pascal Visual Object
    Classes Challenge", 2015). NaN of no pixels.
    """
    return class_iou(confusion).nanmean()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """The share of the pixels that have a class whose class is predicted; NaN of no pixels."""
    return confusion.diagonal().sum().double() / confusion.sum()


class _Confusion(MulticlassConfusionMatrix):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=VOID, validate_args=False)


class MeanIoU(_Confusion):
    """:func:`mean_iou` of all pixels that have a class, over batches and processes.

    Args:
        num_classes: of the masks, whose values are 0 ... num_classes - 1 and :data:`VOID`.
    """

    def compute(self) -> Tensor:
        return mean_iou(self.confmat).to(torch.float32)


class PixelAccuracy(_Confusion):
    """:func:`pixel_accuracy` of the same."""

    def compute(self) -> Tensor:
        return pixel_accuracy(self.confmat).to(torch.float32)
