"""The derivatives of criss-cross attention over tiles: reverse mode, twice.

The second derivative differentiates the formula of one tile at a time, so that its memory is linear
in the positions too. Forward mode and more are the route ``direct``'s.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from cvattn.core.attention.criss_cross_formula import joint_output, joint_weights
from cvattn.core.attention.criss_cross_ops import LIBRARY
from cvattn.core.attention.criss_cross_tiles import Dropout, Tile, groups
from cvattn.core.attention.tiled_autograd import one_by_one


class CrissCross(Function):
    """(query, key, value, key_mask, scale, dropout_p, seed) -> (output, log_sum)."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.criss_cross(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, scale, dropout_p, seed = inputs
        ctx.save_for_backward(*output, *tensors, seed)
        ctx.mark_non_differentiable(output[1])
        ctx.settings = (scale, dropout_p)

    @staticmethod
    def backward(ctx, grad, _):
        *tensors, seed = ctx.saved_tensors
        return (*CrissCrossBackward.apply(grad, *tensors, *ctx.settings, seed), *[None] * 4)

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("forward mode")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(CrissCross, info, in_dims, args)


class CrissCrossBackward(Function):
    """(grad, output, log_sum, query, key, value, key_mask, scale, dropout_p, seed) -> gradients.

    A function of grad, query, key and value: output and log_sum are those of the forward pass.
    """

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
        grad, _, _, *given = tensors
        found = CrissCrossSecond.apply(grad, *given, *ctx.settings, seed, *changes)
        return (found[0], None, None, *found[1:], *[None] * 4)

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
            for tile in group.tiles():
                parts = _second_of_tile(tile, dropout, *own)
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


def _second_of_tile(
    tile: Tile, dropout: Dropout, grad: Tensor, d_query: Tensor, d_key: Tensor, d_value: Tensor
) -> list[tuple[tuple[slice, ...], Tensor]]:
    """(where, what to add) for grad, query, and the rows and columns of key and value."""
    group, rows, columns = tile.group, tile.rows, tile.columns
    given = [
        grad[tile.own],
        group.query[tile.own],
        group.row_keys[:, rows],
        group.column_keys[:, columns],
        group.row_values[:, rows],
        group.column_values[:, columns],
    ]
    along = [d_query[tile.own] * group.scale]
    for change in (d_key, d_value):
        along += [change[:, rows], change.transpose(1, 2)[:, columns]]
    kept = dropout.kept(tile)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in given]
        u, query, row_keys, column_keys, row_values, column_values = leaves
        # The queries are those times the scale.
        weights = joint_weights(query, row_keys, column_keys, tile.shown, rows.start, 1.0)
        if kept is not None:
            weights = weights * torch.cat([kept[0], kept[1].transpose(1, 2)], -1)
        output = joint_output(weights, row_values, column_values)
        slopes = torch.autograd.grad(output, leaves[1:], u, create_graph=True)
        pairs = zip(slopes, along, strict=True)
        total = torch.stack([(slope * change).sum() for slope, change in pairs]).sum()
        found = list(torch.autograd.grad(total, leaves))
    found[1] = found[1] * group.scale
    found[3], found[5] = found[3].transpose(1, 2), found[5].transpose(1, 2)
    strip, pile = (slice(None), rows), (slice(None), slice(None), columns)
    return list(zip((tile.own, tile.own, strip, pile, strip, pile), found, strict=True))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _refuse(what: str) -> None:
    raise NotImplementedError(
        f"criss-cross attention over tiles was asked for {what}, which it does not have: run it "
        'within cvattn.core.use_route("direct"), which stores all scores and has every derivative'
    )


def _compiled_backward(ctx, grad, _):
    *tensors, seed = ctx.saved_tensors
    found = torch.ops.cvattn.criss_cross_backward(grad, *tensors, *ctx.settings, seed)
    return (*found, *[None] * 4)


# What a compiler, or a traced program, finds at the operator: the first derivative.
torch.library.register_autograd(
    "cvattn::criss_cross",
    _compiled_backward,
    setup_context=CrissCross.setup_context,
    lib=LIBRARY,
)
