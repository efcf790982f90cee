"""What is hidden must not matter, even where it is NaN; what is seen must, even where it is NaN.

A weight of 0 does not hide a NaN: 0 x NaN is NaN, in the products and in their gradients.
"""

import math

import torch
from torch import Tensor

from cvattn.core.attention.inputs import can_ask, value_of
from cvattn.core.memory import are_shapes_alone


def split_nonfinite(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    *,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Finite q, k and v, and what to add to each row of the result to say where they were not.

    A row whose query is not finite, or that may attend to a key or value that is not, becomes NaN;
    other rows are as if the rest did not exist.

    Args:
        allowed: bool, (L, S) or broadcastable to (B, heads, L, S), or None: everything is seen.
        is_causal: also hide the keys after i + (S - L) from query i; only without ``allowed``.

    Returns:
        q, k, v, and a float32 (B, heads, L, 1) of 0 and NaN.
    """
    sees: Tensor | bool
    bad_keys = _not_finite(key) | _not_finite(value)
    if is_causal:
        last = torch.arange(query.shape[2], device=key.device) + key.shape[2] - query.shape[2]
        bad = bad_keys.cumsum(-1)[..., last.clamp(min=0)] > 0
        bad, sees = bad & (last >= 0), last >= 0
    elif allowed is None:
        bad, sees = bad_keys.any(-1, keepdim=True), key.shape[2] > 0
    else:
        allowed = allowed if allowed.ndim == 4 else allowed[None, None]
        sees = allowed.any(-1)
        # A product, not `(allowed & bad).any(-1)`, which spells a shared mask out for every sample.
        # Zeros and ones in half precision, where that is not emulated: the sum need only be > 0.
        dtype = torch.float32 if key.device.type == "cpu" else torch.float16
        bad = torch.einsum("bhls,bhs->bhl", allowed.to(dtype), bad_keys.to(dtype)) > 0
    bad = bad | (_not_finite(query) & sees)
    nan_rows = torch.zeros_like(bad, dtype=torch.float32).masked_fill(bad, float("nan"))[..., None]
    return _finite(query), _finite(key), _finite(value), nan_rows


def propagate_nonfinite(result: Tensor, nan_rows: Tensor | None) -> Tensor:
    """NaN is added to those rows, not filled in: their gradients are NaN as well."""
    return result if nan_rows is None else result + nan_rows.to(result.dtype)


def all_finite(*tensors: Tensor) -> bool:
    """Whether no element is NaN or infinite. False also where one would have to wait to know.

    Also False, rarely, for finite elements whose sum is not, which costs time alone.
    """
    if not can_ask(tensors[0].device):
        return False
    if are_shapes_alone():
        return True
    # One fast pass each, where isfinite() and all() are six.
    sums = (value_of(x.detach().sum()) for x in tensors)
    return all(each is not None and math.isfinite(each) for each in sums)


def _not_finite(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, heads, N): anything that is not finite."""
    # 0 x NaN and 0 x infinity are NaN. Two fast passes, where isfinite() and all() are six.
    return (x.detach() * 0).sum(-1) != 0


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0)
