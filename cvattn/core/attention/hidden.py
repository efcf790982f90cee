"""What is hidden must not matter, even where it is NaN; what is seen must, even where it is NaN.

A weight of 0 does not hide a NaN: 0 x NaN is NaN, in the products and in their gradients.
"""

import torch
from torch import Tensor


def shield(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    *,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Finite q, k and v, and what to add to each row of the result to say where they were not.

    A row whose query is not finite, or that may attend to a key or value that is not, becomes NaN;
    other rows are as if the rest did not exist. Without mask and causality everything is seen, and
    the products say it themselves.

    Args:
        allowed: bool, (L, S) or broadcastable to (B, heads, L, S), or None.
        is_causal: also hide the keys after i + (S - L) from query i; only without ``allowed``.

    Returns:
        q, k, v, and a float32 (B, heads, L, 1) of 0 and NaN, or None where nothing is hidden.
    """
    if allowed is None and not is_causal:
        return query, key, value, None
    bad_keys = _not_finite(key) | _not_finite(value)
    if allowed is None:
        last = torch.arange(query.shape[2], device=key.device) + key.shape[2] - query.shape[2]
        bad = bad_keys.cumsum(-1)[..., last.clamp(min=0)] > 0
        bad, sees = bad & (last >= 0), last >= 0
    else:
        allowed = allowed if allowed.ndim == 4 else allowed[None, None]
        sees = allowed.any(-1)
        # A product, not `(allowed & bad).any(-1)`, which spells a shared mask out for every sample.
        bad = torch.einsum("bhls,bhs->bhl", allowed.float(), bad_keys.float()) > 0
    bad = bad | (_not_finite(query) & sees)
    mark = torch.zeros_like(bad, dtype=torch.float32).masked_fill(bad, float("nan"))[..., None]
    return _finite(query), _finite(key), _finite(value), mark


def add_mark(result: Tensor, mark: Tensor | None) -> Tensor:
    """The mark is added, not filled in: the gradients of marked rows are NaN as well."""
    return result if mark is None else result + mark.to(result.dtype)


def _not_finite(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, heads, N): anything that is not finite."""
    # 0 x NaN and 0 x infinity are NaN. Two fast passes, where isfinite() and all() are six.
    return (x.detach() * 0).sum(-1) != 0


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0)
