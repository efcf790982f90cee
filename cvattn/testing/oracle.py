"""Attention written with loops, in float64: slow, independent, to compare with.

This is the one place outside ``cvattn.core.attention`` that has a softmax over keys. It shares no
code with the library on purpose: a fault in one is then no fault in the other.
"""

import math

import torch
from torch import Tensor

from cvattn.core.devices import widest_float


def slow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``softmax(scale * Q K^T + bias) V`` over the allowed keys, one score at a time.

    Vaswani et al., "Attention Is All You Need" (2017), equation 1. For sizes of a few tokens:
    time and memory grow with B x heads x L x S. Differentiable, twice too.

    Args:
        query: (B, heads, L, E), any floating dtype.
        key: (B, heads, S, E).
        value: (B, heads, S, Ev); Ev may differ from E.
        attn_mask: bool, True = may attend; (L, S) or broadcastable to (B, heads, L, S).
        attn_bias: float, added to the scores; same shapes. An entry of -inf hides the key.
        is_causal: query i sees the keys up to i + (S - L); combines with mask and bias.
        scale: factor on the scores; None = 1/sqrt(E).

    Returns:
        ``(output, weights)``: (B, heads, L, Ev) and (B, heads, L, S), both float64 (on the CPU
        where the device has none). A query that
        may attend to nothing has output and weights 0. A hidden key and its value are never
        touched: a NaN there changes nothing, a NaN in one that is attended to reaches the output.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: an ``attn_mask`` that is not bool, or an ``attn_bias`` that is not float.
    """
    _check(query, key, value, attn_mask, attn_bias)
    if widest_float(query.device) is not torch.float64:
        query, key, value = query.cpu(), key.cpu(), value.cpu()
        attn_mask = None if attn_mask is None else attn_mask.cpu()
        attn_bias = None if attn_bias is None else attn_bias.cpu()
    query, key, value = query.double(), key.double(), value.double()
    attn_bias = None if attn_bias is None else attn_bias.double()
    batch, heads, length, width = query.shape
    key_length = key.shape[2]
    scale = 1.0 / math.sqrt(width) if scale is None else scale
    outputs, rows = [], []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                scores = {}
                for j in range(key_length):
                    if is_causal and j > i + key_length - length:
                        continue
                    if attn_mask is not None and not _pick(attn_mask, b, h, i, j):
                        continue
                    bias = 0.0 if attn_bias is None else _pick(attn_bias, b, h, i, j)
                    if bias == -math.inf:
                        continue
                    scores[j] = torch.dot(query[b, h, i], key[b, h, j]) * scale + bias
                row, output = query.new_zeros(key_length), value.new_zeros(value.shape[-1])
                if scores:
                    kept = torch.stack(list(scores.values()))
                    # The largest power is e^0: without this a score of 710 is infinite.
                    powers = (kept - kept.detach().max()).exp()
                    shares = powers / powers.sum()
                    row = row.index_copy(0, torch.tensor(list(scores), device=row.device), shares)
                    for share, j in zip(shares, scores, strict=True):
                        output = output + share * value[b, h, j]
                rows.append(row)
                outputs.append(output)
    shape = (batch, heads, length)
    if not rows:
        return value.new_zeros(*shape, value.shape[-1]), query.new_zeros(*shape, key_length)
    return torch.stack(outputs).unflatten(0, shape), torch.stack(rows).unflatten(0, shape)


def _pick(term: Tensor, b: int, h: int, i: int, j: int) -> Tensor:
    """The entry of a mask or bias, (L, S) or (B, heads, L, S), for one score; size 1 = shared."""
    index = (b, h, i, j)[-term.ndim :]
    return term[tuple(k if size > 1 else 0 for k, size in zip(index, term.shape, strict=True))]


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, attn_bias: Tensor | None
) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"{shapes}: expected 4 dimensions each, (batch, heads, tokens, width)")
    fits = query.shape[:2] == key.shape[:2] == value.shape[:2]
    if not fits or query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2]:
        raise ValueError(
            f"{shapes}: expected (B, heads, L, E), (B, heads, S, E) and (B, heads, S, Ev) with one "
            "B, one number of heads, one E and one S"
        )
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise TypeError(
            f"attn_mask is {attn_mask.dtype}; expected bool with True = may attend. What is added "
            "to the scores goes in attn_bias=."
        )
    if attn_bias is not None and not attn_bias.is_floating_point():
        raise TypeError(f"attn_bias is {attn_bias.dtype}; expected a float tensor")
    scores = (*query.shape[:3], key.shape[2])
    for name, term in (("attn_mask", attn_mask), ("attn_bias", attn_bias)):
        if term is None:
            continue
        wanted = scores[-term.ndim :] if term.ndim in (2, 4) else ()
        if not wanted or any(
            size not in (1, n) for size, n in zip(term.shape, wanted, strict=True)
        ):
            raise ValueError(
                f"{name} has shape {tuple(term.shape)}; expected (L, S) or (B, heads, L, S) "
                f"broadcastable to the scores {scores}"
            )
