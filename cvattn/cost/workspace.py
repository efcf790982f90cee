"""Memory that operators take and give back while they run, which no trace of tensors can see.

For those where it counts, found by measuring each alone on a CPU with torch 2.15.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvattn.core.attention.plan import compute_dtype
from cvattn.core.attention.tiles import tile_scores, tile_size


def _convolution(x: Tensor, weight: Tensor, *_: Any) -> int:
    """oneDNN reorders a contiguous input into blocks of channels; channels_last stays as it is."""
    return 0 if _channels_last(x) or _channels_last(weight) else _size(x)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    if _channels_last(x) or _channels_last(weight):
        return 0 if _channels_last(grad) else _size(grad)
    # A gradient in the other format is first brought to the input's.
    return _size(x) + _size(grad) * (2 if _channels_last(grad) else 1)


def _fused_backward(grad: Tensor, *_: Any) -> int:
    """The CPU kernel reads the gradient as (B, L, heads, E) and copies any other layout."""
    return 0 if grad.transpose(1, 2).is_contiguous() else _size(grad)


def _tiled(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    """A tile; of the samples in it the scaled queries, the transposed keys, and casts."""
    dtype = compute_dtype(query.device, query.dtype)
    held = query.numel() + key.numel() + (value.numel() if dtype != query.dtype else 0)
    flattened = sum(_flattened(x) for x in (query, key, value))
    return flattened + _of_a_group(query, key, held * dtype.itemsize, backward=False)


def _tiled_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, *_: Any
) -> int:
    dtype = compute_dtype(query.device, query.dtype)
    exact = torch.promote_types(dtype, torch.float32)
    cast = value.numel() + grad.numel() + output.numel() if dtype != query.dtype else 0
    held = (query.numel() + key.numel() + cast) * dtype.itemsize
    held += (key.numel() + value.numel()) * exact.itemsize
    flattened = sum(_flattened(x) for x in (grad, query, key, value, output))
    return flattened + _of_a_group(query, key, held, backward=True)


def _of_a_group(query: Tensor, key: Tensor, held: int, *, backward: bool) -> int:
    """The share of ``held`` of the samples that are worked on at once, and their tiles."""
    samples, length, key_length = query.shape[0] * query.shape[1], query.shape[2], key.shape[2]
    dtype = compute_dtype(query.device, query.dtype)
    group, _ = tile_size(samples, length, key_length)
    tile = tile_scores(samples, length, key_length) * dtype.itemsize
    return held * group // max(1, samples) + tile * (2 if backward else 1)


# Operator -> bytes from its arguments.
WORKSPACE: dict[str, Callable[..., int]] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _fused_backward,
    "cvattn.tiled_attention": _tiled,
    "cvattn.tiled_attention_backward": _tiled_backward,
}


def _flattened(tensor: Tensor) -> int:
    """Bytes of the tensor with batch and heads in one dimension, unless that is a view of it."""
    flat = tensor.flatten(0, 1)
    return 0 if flat.untyped_storage() is tensor.untyped_storage() else _size(flat)


def _channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
