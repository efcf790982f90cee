"""The specification of attention, in a form meant to be read. Every faster route must equal it.

    weights = softmax(scale * Q K^T + bias, over the allowed keys)        output = weights V

Vaswani et al., "Attention Is All You Need" (2017), equation 1. Differences from
``F.scaled_dot_product_attention``: ``is_causal`` is aligned to the bottom right, mask, bias and
causality combine freely, and a query that may attend to nothing gets weights and output 0 with
finite gradients on every path. Scores and softmax of half precision are float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention.half_weights import HalfWeights
from cvattn.core.attention.inputs import (
    check_inputs,
    check_terms,
    hidden_part,
    merge_allowed,
    refuse_if,
    take_rows,
)
from cvattn.core.attention.nonfinite import all_finite, propagate_nonfinite, split_nonfinite
from cvattn.core.attention.precision import (
    autocast_dtype,
    product_dtype,
    score_dtype,
    without_autocast,
)
from cvattn.core.memory import check_fits

# Smaller allocations are not worth the look at what is free.
_GUARDED_BYTES = 2**30


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    rows: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """The attention weights themselves, for all query rows or only for the chosen ones.

    Args:
        query: (B, heads, L, E).
        key: (B, heads, S, E).
        attn_mask: bool, True = may attend; (L, S) or broadcastable to (B, heads, L, S).
        attn_bias: float, added to the scores; same shapes.
        is_causal: query i sees the keys up to i + (S - L).
        scale: factor on the scores; None = 1/sqrt(E).
        rows: indices of query rows, in 0..L-1; None = all. Memory is linear in S for each row.

    Returns:
        (B, heads, L or len(rows), S); each row sums to 1, or is 0 where nothing may be attended to.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit; rows out of range.
        MemoryError: the weights cannot fit into the memory that is free.
    """
    check_inputs(query, key)
    check_terms(query, key, attn_mask, attn_bias)
    length = query.shape[2]
    if rows is not None:
        rows = check_rows(rows, length, query.device)
    allowed = hidden_part(merge_allowed(query, key, attn_mask, attn_bias, is_causal, rows))
    bias = take_rows(attn_bias, length, rows)
    if rows is not None:
        query = query.index_select(2, rows)
    nan_rows = None
    if allowed is not None and not all_finite(query, key):
        query, key, _, nan_rows = split_nonfinite(query, key, key, allowed)
    # Autocast makes softmax in float32, and its results are that.
    autocast = autocast_dtype(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    _check_size(query, key)
    with without_autocast(query):
        weights = _weights(query, key, allowed, bias, scale)
    return propagate_nonfinite(weights if autocast else weights.to(query.dtype), nan_rows)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention as the formula says it, storing all weights; arguments as in :func:`attention`."""
    check_inputs(query, key, value)
    check_terms(query, key, attn_mask, attn_bias)
    allowed = hidden_part(merge_allowed(query, key, attn_mask, attn_bias, is_causal))
    nan_rows = None
    if allowed is not None and not all_finite(query, key, value):
        query, key, value, nan_rows = split_nonfinite(query, key, value, allowed)
    dtype = autocast_dtype(value) or value.dtype
    products = product_dtype(value.device, dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    _check_size(query, key)
    with without_autocast(query):
        if attn_bias is None and HalfWeights.serves(query, key, products):
            weights = HalfWeights.apply(query, key, allowed, scale)
        else:
            weights = _weights(query, key, allowed, attn_bias, scale)
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        output = (weights.to(products) @ value.to(products)).to(dtype)
    return propagate_nonfinite(output, nan_rows)


def _weights(
    query: Tensor, key: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """The formula, in float32 at least."""
    query, key = (x.to(score_dtype(x.dtype)) for x in (query, key))
    scores = (query if scale == 1.0 else query * scale) @ key.mT
    if bias is not None:
        scores = scores + bias
    if allowed is None:
        return scores.softmax(-1)
    # A row of -inf alone would be 0/0: give it any finite scores, then weights of 0. The fills
    # also cut its gradients to 0.
    empty = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, float("-inf")).masked_fill(empty, 0.0)
    return scores.softmax(-1).masked_fill(empty, 0.0)


def _check_size(query: Tensor, key: Tensor) -> None:
    """MemoryError before an allocation that cannot fit: some systems kill the process instead."""
    if torch.compiler.is_compiling() or query.is_meta:
        return
    scores = query.shape[:3].numel() * key.shape[2]
    size = 2 * scores * score_dtype(query.dtype).itemsize  # the scores and the weights
    if size >= _GUARDED_BYTES:
        check_fits(
            size,
            query.device,
            f"All attention weights of {query.shape[2]} queries and {key.shape[2]} keys",
            "Ask for some rows (rows=[...]), fewer samples or a smaller map. The output alone, by "
            "cvattn.core.attention, needs memory linear in the tokens.",
        )


def check_rows(rows: Sequence[int] | Tensor, length: int, device: torch.device) -> Tensor:
    """Indices of query rows as a tensor on the device; ValueError unless they are in 0..L-1."""
    given = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
    if given.numel() == 0:
        given = given.long()  # an empty list has no dtype of its own
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(
            f"rows must be a 1-D sequence of integers, got shape {tuple(given.shape)} "
            f"of {given.dtype}"
        )
    if not isinstance(rows, Tensor):
        if any(not 0 <= row < length for row in rows):
            raise ValueError(f"rows must lie in 0..{length - 1}, got {list(rows)}")
    else:
        refuse_if((rows < 0) | (rows >= length), f"rows must lie in 0..{length - 1}", rows)
    return given.to(device).long()
