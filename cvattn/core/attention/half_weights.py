"""Weights in bfloat16 from scores in float32, with a backward pass in bfloat16.

Left to autograd, float32 scores would make all of the backward pass float32. What it needs are the
weights alone, and rounded ones will do: the slope of a softmax loses no more by it than by the
rounding of its result.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvattn.core.attention.tile_weights import tile_weights
from cvattn.core.attention.tiles import Terms


class HalfWeights(torch.autograd.Function):
    """softmax(scale * Q K^T, over the allowed keys) in the dtype of q and k."""

    @staticmethod
    def serves(query: Tensor, key: Tensor, products: torch.dtype) -> bool:
        """Plain reverse mode in half precision; other ways take the formula itself."""
        return (
            query.dtype == key.dtype == products
            and products.itemsize == 2
            and torch.is_grad_enabled()
            and (query.requires_grad or key.requires_grad)
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0
        )

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        weights = query.new_empty(*query.shape[:3], key.shape[2])
        flat = weights.flatten(0, 1)
        # Tile by tile: float32 scores in fresh memory would cost as much as the softmax itself.
        for group in tile_weights(
            query, key, key, Terms.of(query, key, allowed, None, False), scale
        ):
            for tile in group.tiles:
                flat[tile.samples, tile.rows] = group.weights(tile)
        ctx.save_for_backward(query, key, weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, key, weights = ctx.saved_tensors
        slope = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        # (Q^T dS)^T, which is faster than dS^T Q.
        return (slope @ key) * ctx.scale, (query.mT @ slope).mT * ctx.scale, None, None
