"""The derivatives of criss-cross attention over tiles: reverse mode, twice.

The second derivative differentiates the formula of one tile at a time, so that its memory is linear
in the positions too. Forward mode and more are the route ``direct``'s.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from cvattn.core.attention.criss_cross_ops import LIBRARY
from cvattn.core.attention.criss_cross_tiles import (
    Dropout,
    groups,
    joint_output,
    joint_weights,
)
from cvattn.core.attention.tiled_autograd import one_by_one


class CrissCross(Function):
    """(query, key, value, key_mask, scale, dropout_p, seed) -> output."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.criss_cross(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, scale, dropout_p, seed = inputs
        ctx.save_for_backward(*tensors, seed)
        ctx.settings = (scale, dropout_p)

    @staticmethod
    def backward(ctx, grad):
        *tensors, seed = ctx.saved_tensors
        return (*CrissCrossBackward.apply(grad, *tensors, *ctx.settings, seed), *[None] * 4)

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("forward mode")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(CrissCross, info, in_dims, args)


class CrissCrossBackward(Function):
    """(grad, query, key, value, key_mask, scale, dropout_p, seed) -> gradients of q, k and v."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.criss_cross_backward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, scale, dropout_p, seed = inputs
        ctx.save_for_backward(*tensors, seed)
        ctx.settings = (scale, dropout_p)

    @staticmethod
    def backward(ctx, *changes):
        *tensors, seed = ctx.saved_tensors
        found = CrissCrossSecond.apply(*tensors, *ctx.settings, seed, *changes)
        return (*found, *[None] * 4)

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("forward mode")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(CrissCrossBackward, info, in_dims, args)


class CrissCrossSecond(Function):
    """The gradients of u . (gradients of q, k and v), for grad, query, key and value."""

    @staticmethod
    def forward(grad, query, key, value, key_mask, scale, dropout_p, seed, *changes):
        given = (grad, query, key, value)
        found = [x.new_zeros(x.shape, dtype=_sum_dtype(x)) for x in given]
        flat = [x.flatten(0, 1) for x in found]
        dropout = Dropout(dropout_p, seed)
        for group in groups(query, key, value, key_mask, scale):
            own = [x.flatten(0, 1)[group.samples].to(group.query.dtype) for x in (grad, *changes)]
            for part in group.rectangles:
                parts = _second_of_tile(group, part, dropout, *own)
                for total, (index, more) in zip((0, 1, 2, 2, 3, 3), parts, strict=True):
                    flat[total][group.samples][index] += more
        return tuple(total.to(x.dtype) for total, x in zip(found, given, strict=True))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        _refuse("a third derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("forward mode over a second derivative")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(CrissCrossSecond, info, in_dims, args)


def _second_of_tile(group, part, dropout, grad, d_query, d_key, d_value):
    """(where, what to add) for grad, query, and the rows and columns of key and value."""
    rows, columns = part
    every = slice(None)
    rectangle, strip, column = (every, rows, columns), (every, rows), (every, every, columns)
    leaves = [
        x.detach().requires_grad_()
        for x in (
            grad[rectangle],
            group.query[rectangle],
            group.row_keys[strip],
            group.column_keys[:, columns],
            group.row_values[strip],
            group.column_values[:, columns],
        )
    ]
    along = [
        d_query[rectangle],
        *(x for d in (d_key, d_value) for x in (d[strip], d.transpose(1, 2)[:, columns])),
    ]
    with torch.enable_grad():
        u, q, row_keys, column_keys, row_values, column_values = leaves
        shown = group.shown_to(part)
        weights = joint_weights(q, row_keys, column_keys, shown, rows.start, group.scale)
        kept = dropout.kept(group, part, weights)
        weights = weights if kept is None else weights * kept
        output = joint_output(weights, row_values, column_values)
        slopes = torch.autograd.grad(output, leaves[1:], u, create_graph=True)
        total = sum((slope * change).sum() for slope, change in zip(slopes, along, strict=True))
        found = torch.autograd.grad(total, leaves)
    where = (rectangle, rectangle, strip, column, strip, column)
    turned = (x if n not in (3, 5) else x.transpose(1, 2) for n, x in enumerate(found))
    return list(zip(where, turned, strict=True))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _refuse(what: str) -> None:
    raise NotImplementedError(
        f"criss-cross attention over tiles was asked for {what}, which it does not have: run it "
        'within cvattn.core.use_route("direct"), which stores all scores and has every derivative'
    )


# What a compiler, or a traced program, finds at the operator: the first derivative.
torch.library.register_autograd(
    "cvattn::criss_cross",
    lambda ctx, grad: (
        *torch.ops.cvattn.criss_cross_backward(
            grad, *ctx.saved_tensors[:-1], *ctx.settings, ctx.saved_tensors[-1]
        ),
        *[None] * 4,
    ),
    setup_context=CrissCross.setup_context,
    lib=LIBRARY,
)
