"""``F.scaled_dot_product_attention``, called in layouts and sizes that its fused kernels take."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention.call import AttentionCall, exporting
from cvattn.core.attention.fused_second import add_second_derivative
from cvattn.core.attention.plan import GRID_LIMIT, padded_widths, width_step


def kernel_attention(
    call: AttentionCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    term: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Attention in torch's kernel, with derivatives up to the second.

    More samples than :func:`most_samples` are computed in several calls: CUDA's kernels, and their
    backward passes, fail with "invalid configuration argument" otherwise
    (https://github.com/pytorch/pytorch/issues/142228).

    Args:
        term: mask (bool) or bias, as torch takes it.
        is_causal: aligned to the top left, as torch does it.

    Returns:
        (B, heads, L, Ev).
    """
    widths = padded_widths(call)
    step = 1 if exporting() else width_step(call)
    query, key, value = (
        _dense(x, width, step)
        for x, width in zip((query, key, value), (widths[0], *widths), strict=True)
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None) -> Tensor:
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=own, dropout_p=dropout_p, is_causal=is_causal, scale=scale
        )
        add_second_derivative(output, is_causal=is_causal, scale=scale, dropout_p=dropout_p)
        return output

    most = most_samples(call.device)
    if most is None or exporting() or call.batch <= most:
        output = attend(query, key, value, term)
    else:
        output = torch.cat(
            [
                attend(query[at], key[at], value[at], _samples(term, at))
                for at in (slice(first, first + most) for first in range(0, call.batch, most))
            ]
        )
    return output[..., : call.value_dim]


def most_samples(device: str) -> int | None:
    """How many samples a call of torch's kernels takes; None = any number."""
    return None if device == "cpu" else GRID_LIMIT


def _samples(term: Tensor | None, at: slice) -> Tensor | None:
    """The part of a mask or bias that is these samples'; one that all share stays as it is."""
    if term is None or term.ndim < 4 or term.shape[0] == 1:
        return term
    return term[at]


def _dense(tensor: Tensor, width: int, step: int) -> Tensor:
    """Zero columns up to ``width`` (they add nothing to a product), and a last stride of 1.

    The CPU kernel needs that stride: without it torch stores all scores and says nothing. CUDA's
    need rows that begin at multiples of 16 bytes, ``step`` numbers: with others they fail, or torch
    stores all scores.
    """
    if tensor.shape[-1] < width:
        return F.pad(tensor, (0, width - tensor.shape[-1]))
    if tensor.stride(-1) != 1:
        return tensor.contiguous()
    if step > 1 and not _in_step(tensor, step):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _in_step(tensor: Tensor, step: int) -> bool:
    begins = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return bool(tensor.storage_offset() % step == 0) and all(
        size == 1 or stride % step == 0 for size, stride in begins
    )
