"""Memory that operators take and give back while they run, which no trace of tensors can see.

For those where it counts, found by measuring each alone on a CPU with torch 2.15.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvattn.core.attention.criss_cross_tiles import TILE as CRISS_CROSS_TILE
from cvattn.core.attention.criss_cross_tiles import tile_sides
from cvattn.core.attention.precision import product_dtype, score_dtype
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


def _tiled(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> int:
    """A tile; of the samples in it the scaled queries, the transposed keys, and casts."""
    exact, products = score_dtype(query.dtype), product_dtype(query.device, query.dtype)
    held = (query.numel() + key.numel()) * exact.itemsize
    if products != query.dtype:
        held += (query.numel() + key.numel() + value.numel()) * products.itemsize
    elif products != exact and others[0] is None and others[1] is None and not others[2]:
        return _in_kernel(query, key, value)
    flattened = sum(_flattened(x) for x in (query, key, value))
    return flattened + _of_a_group(query, key, held, backward=False)


def _in_kernel(query: Tensor, key: Tensor, value: Tensor) -> int:
    """torch's kernel: inputs of one width, and its output."""
    width = max(query.shape[-1], value.shape[-1])
    widened = [x for x in (query, key, value) if x.shape[-1] < width or x.stride(-1) != 1]
    rows = query.shape[:3].numel()
    held = rows + sum(x.shape[:3].numel() for x in widened)
    return held * width * query.element_size()


def _tiled_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    exact, products = score_dtype(query.dtype), product_dtype(query.device, query.dtype)
    held = (query.numel() + key.numel()) * exact.itemsize  # as the scores take them
    held += (key.numel() + value.numel()) * exact.itemsize  # sums of their gradients
    if products != query.dtype:
        cast = query.numel() + key.numel() + value.numel() + grad.numel()
        held += cast * products.itemsize
    flattened = sum(_flattened(x) for x in (grad, query, key, value))
    return flattened + _of_a_group(query, key, held, backward=True)


def _of_a_group(query: Tensor, key: Tensor, held: int, *, backward: bool) -> int:
    """The share of ``held`` of the samples that are worked on at once, and their tiles."""
    samples, length, key_length = query.shape[0] * query.shape[1], query.shape[2], key.shape[2]
    exact, products = score_dtype(query.dtype), product_dtype(query.device, query.dtype)
    group, _ = tile_size(samples, length, key_length)
    # The scores; where they differ in dtype, the weights; in the backward pass their gradient.
    bytes_each = exact.itemsize + products.itemsize * ((products != exact) + backward)
    tile = tile_scores(samples, length, key_length) * bytes_each
    return held * group // max(1, samples) + tile


def _criss_cross(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    flattened = sum(_flattened(x) for x in (query, key, value))
    return flattened + _of_crosses(query, key, value)


def _of_crosses(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Copies of the samples that are worked on at once, those by column too, and a tile."""
    exact = score_dtype(query.dtype).itemsize
    samples, height, width = query.shape[0] * query.shape[1], query.shape[2], query.shape[3]
    group = min(samples, max(1, CRISS_CROSS_TILE // (height * width * (height + width))))
    copies = query.numel() + 2 * (key.numel() + value.numel())
    rows, columns = tile_sides(height, width)
    tile = group * rows * columns * (height + width)
    return (copies * group // max(1, samples) + tile) * exact


def _criss_cross_backward(grad: Tensor, output: Tensor, _: Tensor, *call: Any) -> int:
    """Gradients of the copies, and those of a tile's weights, besides."""
    flattened = sum(_flattened(x) for x in (grad, output, *call[:3]))
    return flattened + 2 * _of_crosses(*call[:3])


# Operator -> bytes from its arguments.
WORKSPACE: dict[str, Callable[..., int]] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _fused_backward,
    "cvattn.criss_cross": _criss_cross,
    "cvattn.criss_cross_backward": _criss_cross_backward,
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
