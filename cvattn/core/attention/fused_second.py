"""The second derivative of torch's fused kernels, which have none: by tiles instead."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cvattn.core.attention.tiled_autograd import TiledBackward


def add_second_derivative(
    output: Tensor, *, is_causal: bool, scale: float, dropout_p: float
) -> None:
    """Make the gradients through ``output`` differentiable, where a fused kernel made it.

    Nothing happens, and nothing is kept, until a backward pass with ``create_graph=True``.

    Args:
        output: of ``F.scaled_dot_product_attention``, called with these arguments.
    """
    # Compiled programs have no second derivative, and say so.
    if torch.compiler.is_compiling() or output.grad_fn is None:
        return
    settings = (is_causal, scale, dropout_p)
    output.grad_fn.register_hook(partial(_differentiable, settings))


def _differentiable(
    settings: tuple[bool, float, float],
    found: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """The gradients of query, key, value (and more) that a node has found, again over tiles."""
    # What torch has no derivative for has a node of this name.
    nodes = [x.grad_fn for x in found if x is not None]
    if not any(x is not None and x.name().endswith("NotImplemented") for x in nodes):
        return None
    if settings[2] > 0.0:
        return tuple(None if x is None else _Refused.apply(x) for x in found)
    # What the kernel has kept; a reference of our own would outlive the backward pass.
    node: Any = torch._C._current_autograd_node()
    query, key, value = node._saved_query, node._saved_key, node._saved_value
    bias = getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None))
    bias_grad = len(found) > 3 and found[3] is not None
    again = TiledBackward.apply(grads[0], query, key, value, None, bias, *settings, None, bias_grad)
    return tuple(None if x is None else y for x, y in zip(found, again, strict=False))


class _Refused(torch.autograd.Function):
    """The identity, whose derivative is refused."""

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError(
            "torch's fused attention has no second derivative with dropout on the weights: set "
            "dropout to 0 for the pass whose gradient is differentiated, or run it within "
            'cvattn.core.use_route("direct")'
        )
