"""Weights of the classes in a loss, for data in which some are rare."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ClassWeights = Literal["balanced"] | Sequence[float] | None


def given_weights(value: ClassWeights, num_classes: int) -> Tensor | None:
    """float32 (num_classes,) of a list; None where there are none, or the data has to be counted.

    Raises:
        ValueError: neither "balanced" nor one weight, at least 0, for each class.
    """
    if value is None or value == "balanced":
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):  # "balance", say
        raise ValueError(
            f"class_weights={value!r}: expected null, balanced, or a list of {num_classes} weights"
        )
    if len(value) != num_classes:
        raise ValueError(
            f"class_weights has {len(value)} weights and there are {num_classes} classes: give one "
            "for each, in the order of the classes"
        )
    weights = torch.tensor(value, dtype=torch.float32)
    if not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            f"class_weights={list(value)}: expected numbers of 0 or more, not all of them 0"
        )
    return weights


def balanced_weights(counts: Tensor) -> Tensor:
    """N / (K n_k) for each of K classes with n_k of N samples, float32: scikit-learn's "balanced".

    Over the samples their mean is 1, and each class has the same share of the whole.

    Args:
        counts: int64 (K,).

    Raises:
        ValueError: a class has no sample.
    """
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"class_weights=balanced: no training image of class {', '.join(map(str, empty[:5]))} "
            "(counted from 0), so it has no weight; give a list of weights"
        )
    return (counts.sum() / (len(counts) * counts.double())).float()


def check_alone(class_weights: object, *, balanced_sampling: bool) -> None:
    """ValueError if rare classes would be evened out twice."""
    if class_weights == "balanced" and balanced_sampling:
        raise ValueError(
            "class_weights=balanced and balanced_sampling=true: each makes up for unequal classes "
            "alone, and both together favour the rare ones; choose one"
        )
