"""Builders and adapters for attention masks. A mask is bool and True means: may attend.

Every builder returns a shape that :func:`cvattn.core.attention` takes as it is. Torch's module
masks (``nn.MultiheadAttention``) mean the opposite; :func:`from_torch_masks` turns them.
"""

import torch
from torch import Tensor

from cvattn.core.attention.inputs import known, refuse_if
from cvattn.core.local_masks import axis_mask_2d as axis_mask_2d
from cvattn.core.local_masks import criss_cross_mask_2d as criss_cross_mask_2d
from cvattn.core.local_masks import neighborhood_mask_2d as neighborhood_mask_2d
from cvattn.core.local_masks import window_mask_2d as window_mask_2d

# Textbooks write "minus infinity" as -1e4, -1e6 or -1e9. No score reaches these by itself.
FORBIDDEN_FROM = -1e4


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True for the first ``lengths`` keys of each sample, or of each query.

    Args:
        lengths: integers, (B,) or (B, L) (one length for each query, "valid_lens" in some books);
            each in 0..size. A length of 0 is fine: its output is 0.
        size: number of keys S.

    Returns:
        (B, 1, 1, S) or (B, 1, L, S), bool.
    """
    if lengths.ndim not in (1, 2) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be integers of shape (B,) or (B, L), got shape {tuple(lengths.shape)} "
            f"of {lengths.dtype}"
        )
    refuse_if(
        (lengths < 0) | (lengths > size),
        f"lengths must lie in 0..{size} (the number of keys)",
        lengths,
    )
    allowed = torch.arange(size, device=lengths.device) < lengths[..., None]
    return allowed[:, None, None] if lengths.ndim == 1 else allowed[:, None]


def padding_mask(token_ids: Tensor, pad_id: int) -> Tensor:
    """True where a token is not padding: (B, S) of ids -> (B, 1, 1, S)."""
    if token_ids.ndim != 2 or token_ids.is_floating_point():
        raise ValueError(
            f"token_ids must be integers of shape (B, S), got shape {tuple(token_ids.shape)} of "
            f"{token_ids.dtype}"
        )
    return (token_ids != pad_id)[:, None, None]


def causal_mask(
    length: int, key_length: int | None = None, *, device: torch.device | None = None
) -> Tensor:
    """(L, S), True where key j <= i + (S - L): the last query sees everything."""
    key_length = length if key_length is None else key_length
    return torch.ones(length, key_length, dtype=torch.bool, device=device).tril(key_length - length)


def local_mask_2d(
    height: int, width: int, window: int | tuple[int, int], *, device: torch.device | None = None
) -> Tensor:
    """(H*W, H*W): each position sees the window centred on it, cut at the border (no wrapping).

    Args:
        window: odd side of the window, or (rows, columns).
    """
    rows, columns = (window, window) if isinstance(window, int) else window
    if rows < 1 or columns < 1 or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"window={window} must be odd and positive, so that it has a centre")
    y = torch.arange(height, device=device).repeat_interleave(width)
    x = torch.arange(width, device=device).repeat(height)
    near_y = (y[:, None] - y[None, :]).abs() <= rows // 2
    near_x = (x[:, None] - x[None, :]).abs() <= columns // 2
    return near_y & near_x


def combine_masks(*masks: Tensor | None) -> Tensor | None:
    """Logical and of masks that broadcast to each other; None means: no restriction."""
    merged: Tensor | None = None
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            raise TypeError(f"expected bool masks (True = may attend), got {mask.dtype}")
        merged = mask if merged is None else merged & mask
    return merged


def from_zero_one(mask: Tensor) -> Tensor:
    """A mask of numbers, 1 = may attend and 0 = may not, of any dtype -> bool of the same shape."""
    allowed = mask != 0
    refuse_if(
        mask != allowed.to(mask.dtype),
        "expected a mask of zeros and ones; one that is added to the scores is for from_additive()",
        mask,
    )
    return allowed


def from_additive(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A float mask that others add to the scores -> ``(attn_mask, attn_bias)`` of the same shape.

    -inf and the textbooks' large negative numbers (-1e4 and below) become "may not attend", exactly
    and in every dtype; what is left, if it is not all 0, is the bias. None in place of either says
    that it has no effect, where that can be known at once: not in a compiled function or on a GPU.
    """
    if not mask.is_floating_point():
        raise TypeError(f"expected a float mask that is added to the scores, got {mask.dtype}")
    allowed = ~(mask <= FORBIDDEN_FROM)  # a NaN stays in the bias and is seen
    bias = mask.masked_fill(~allowed, 0.0)
    return (
        None if known(allowed) else allowed,
        bias if bias.requires_grad or not known(bias == 0) else None,
    )


def from_torch_masks(
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor | None, Tensor | None]:
    """The masks of ``nn.MultiheadAttention`` -> ``(attn_mask, attn_bias)`` of ours.

    Args:
        attn_mask: bool with True = ignore, or float that is added; (L, S) or (B*heads, L, S) with
            the heads of a sample next to each other.
        key_padding_mask: bool with True = ignore, or float that is added; (B, S).
        num_heads: to split the first dimension of a 3-D ``attn_mask``.
    """
    allowed: Tensor | None = None
    bias: Tensor | None = None
    for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
        if mask is None:
            continue
        if name == "key_padding_mask":
            if mask.ndim != 2:
                raise ValueError(f"key_padding_mask must be (B, S), got {tuple(mask.shape)}")
            mask = mask[:, None, None]
        elif mask.ndim == 3:
            if mask.shape[0] % num_heads:
                raise ValueError(
                    f"a 3-D attn_mask must be (B*heads, L, S): {mask.shape[0]} is not divisible by "
                    f"num_heads={num_heads}"
                )
            mask = mask.unflatten(0, (-1, num_heads))
        elif mask.ndim != 2:
            raise ValueError(
                f"attn_mask must be (L, S) or (B*heads, L, S), got {tuple(mask.shape)}"
            )
        if mask.dtype == torch.bool:
            allowed = combine_masks(allowed, ~mask)
        else:
            part, more = from_additive(mask)
            allowed = combine_masks(allowed, part)
            if more is not None:
                bias = more if bias is None else bias + more
    return allowed, bias
