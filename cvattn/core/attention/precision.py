"""In which dtypes attention is computed: what rounding costs decides, not what comes in.

A score that is rounded to bfloat16 is off by up to 2**-9 of itself, and its weight, exp(score), by
that many times the score: 6 % at a score of 30. In float16, scores overflow at 65504 and become
NaN. So scores and softmax are float32 at least. Weights are numbers in 0..1 and lose 2**-9 once.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cvattn.core.attention.processor import compute_dtype


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the scores and the softmax: float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Of the products with weights and values, and of those in the backward pass.

    The inputs' own, except where half precision is emulated. float32 for float16 everywhere: the
    products of its values and gradients overflow.
    """
    return torch.float32 if dtype == torch.float16 else compute_dtype(device, dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would bring the products of x to; None where it is off."""
    device = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which scores may be float32."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
