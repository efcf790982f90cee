"""Attention as everything here calls it."""

from typing import Any

import torch
from torch import Tensor

from cvattn.core.attention.call import AttentionCall, describe_call, exporting
from cvattn.core.attention.inputs import check_inputs, check_terms, merge_allowed
from cvattn.core.attention.nonfinite import all_finite, propagate_nonfinite, split_nonfinite
from cvattn.core.attention.plan import LEAST_FUSED_KEYS
from cvattn.core.attention.reference import reference_attention
from cvattn.core.attention.routing import take_route
from cvattn.core.attention.tiled import tiled_attention
from cvattn.core.attention.torch_kernel import kernel_attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    keys_are_finite: bool = False,
) -> Tensor:
    """Scaled dot-product attention: softmax(scale * Q K^T + bias) V over the allowed keys.

    Shapes, dtype and device decide how it is computed (:func:`choose_route`); the result does not
    depend on it. :func:`record_routes` tells which route a call took, and why; :func:`use_route`
    chooses one by name.

    Args:
        query: (B, heads, L, E).
        key: (B, heads, S, E).
        value: (B, heads, S, Ev); Ev may differ from E.
        attn_mask: bool, True = may attend; (L, S) or broadcastable to (B, heads, L, S). Builders
            and adapters for other conventions are in :mod:`cvattn.core.masks`.
        attn_bias: float, added to the scores before the softmax; same shapes. -inf hides, as the
            mask does.
        is_causal: query i sees the keys up to i + (S - L) (aligned to the bottom right, so that a
            step with cached keys is right); combines with mask and bias.
        scale: factor on the scores; None = 1/sqrt(E). SAGAN passes 1.0.
        dropout_p: probability of dropping a weight, applied whenever it is > 0: the caller passes
            0 outside training.
        keys_are_finite: the caller knows that key and value have neither NaN nor infinity, and
            spares the look for them (see below), which in decoding is most of a step.

    Returns:
        (B, heads, L, Ev). A query that may attend to nothing gets 0, with finite gradients. NaN or
        infinity in a key or value that is hidden from a query does not reach it; where something
        is hidden, a query that may attend to one gets NaN.

    Raises:
        ValueError: shapes that do not fit, or ambiguous mask shapes.
        TypeError: a float ``attn_mask``, a bool ``attn_bias``, or q, k, v of different dtypes.

    Derivatives of every mode are right on every route, or refused: reverse mode, twice (gradient
    penalties), forward mode (``torch.func.jvp``, ``jacfwd``, ``torch.autograd.forward_ad``), one
    over the other (``hessian``) and ``torch.func.vmap``. Third derivatives, forward mode over
    forward mode, and what is forbidden with dropout are the route ``direct``'s alone, which stores
    all scores: ``with use_route("direct")``.
    """
    check_inputs(query, key, value)
    check_terms(query, key, attn_mask, attn_bias)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p} is not a probability in [0, 1)")
    terms: dict[str, Any] = {"attn_mask": attn_mask, "attn_bias": attn_bias, "is_causal": is_causal}
    call = describe_call(query, key, value, **terms, dropout_p=dropout_p)
    route = take_route(call)
    if route.name == "direct":
        return reference_attention(query, key, value, **terms, scale=scale, dropout_p=dropout_p)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if route.name == "tiled":
        query, key, value = (x.to(call.dtype) for x in (query, key, value))
        return tiled_attention(query, key, value, **terms, scale=scale, dropout_p=dropout_p)
    return _fused(
        call,
        query,
        key,
        value,
        **terms,
        scale=scale,
        dropout_p=dropout_p,
        keys_are_finite=keys_are_finite,
    )


def _fused(
    call: AttentionCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    keys_are_finite: bool,
) -> Tensor:
    """``F.scaled_dot_product_attention`` with our meaning of masks, in layouts that run fused."""
    # torch's causal flag is aligned to the top left and refuses company, so it serves one case.
    plain_causal = False
    if is_causal and attn_mask is None and attn_bias is None and call.length == call.key_length:
        plain_causal = True  # not the condition itself, which is symbolic where sizes are open
    term = None if attn_bias is None else _in_dtype(attn_bias, call.dtype)
    if is_causal and not plain_causal:
        allowed = merge_allowed(query, key, attn_mask, None, is_causal)
    else:
        allowed = attn_mask
    if term is None:
        term = allowed
    elif allowed is not None:
        term = term.masked_fill(~allowed, float("-inf"))
    hides = plain_causal or term is not None
    nan_rows = None
    if not keys_are_finite and (hides or _skips_nan(call)) and not all_finite(query, key, value):
        if attn_bias is not None:
            allowed = merge_allowed(query, key, allowed, attn_bias, False)
        split = split_nonfinite(query, key, value, allowed, is_causal=plain_causal)
        query, key, value, nan_rows = split
    output = kernel_attention(
        call, query, key, value, term, is_causal=plain_causal, scale=scale, dropout_p=dropout_p
    )
    return propagate_nonfinite(output, nan_rows)


def _skips_nan(call: AttentionCall) -> bool:
    """Whether the kernel may lose a NaN that every query sees. An export's sizes stay open."""
    if call.device != "cpu" or exporting():
        return False
    return call.key_length < LEAST_FUSED_KEYS


def _in_dtype(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias in another dtype, in which what is finite stays finite: only -inf hides."""
    if torch.finfo(dtype).max >= torch.finfo(bias.dtype).max:
        return bias.to(dtype)
    largest = torch.finfo(dtype).max
    return bias.clamp(-largest, largest).to(dtype).masked_fill(bias == float("-inf"), float("-inf"))
