"""Criss-cross attention tile by tile: the operators of its forward and backward pass.

The backward pass computes the weights of a tile again from the logarithm of the softmax's sum, as
FlashAttention does (Dao et al., 2022). The operators are opaque to ``torch.compile``, which would
unroll the loops.
"""

import torch
from torch import Tensor

from cvattn.core.attention.criss_cross_tiles import Dropout, groups
from cvattn.core.attention.precision import score_dtype
from cvattn.core.attention.tile_weights import NOT_CAPTURED

LIBRARY = torch.library.Library("cvattn", "FRAGMENT")
_CALL = "Tensor? key_mask, float scale, float dropout_p, Tensor? seed"
_MAPS = "Tensor query, Tensor key, Tensor value"
LIBRARY.define(f"criss_cross({_MAPS}, {_CALL}) -> (Tensor, Tensor)", tags=NOT_CAPTURED)
LIBRARY.define(
    f"criss_cross_backward(Tensor grad, Tensor output, Tensor log_sum, {_MAPS}, {_CALL})"
    " -> (Tensor, Tensor, Tensor)",
    tags=NOT_CAPTURED,
)


@torch.library.impl(LIBRARY, "criss_cross", "CompositeExplicitAutograd")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of powers of each position, (B, heads, H, W)."""
    output = query.new_empty(*query.shape[:4], value.shape[-1])
    log_sum = query.new_empty(query.shape[:4], dtype=score_dtype(query.dtype))
    outputs, log_sums = output.flatten(0, 1), log_sum.flatten(0, 1)
    dropout = Dropout(dropout_p, seed)
    for group in groups(query, key, value, key_mask, scale):
        for tile in group.tiles():
            row, column = tile.scores()
            top = torch.maximum(row.amax(-1), column.amax(-1).transpose(1, 2))
            if group.shown is not None:
                top.clamp_(min=torch.finfo(top.dtype).min)  # where nothing is seen
            tile.subtract(row, column, top)
            row.exp_()
            column.exp_()
            total = row.sum(-1).add_(column.sum(-1).transpose(1, 2))
            if group.shown is not None:
                total.masked_fill_(total == 0, 1.0)
            kept = dropout.kept(tile)
            if kept is not None:
                row, column = row.mul_(kept[0]), column.mul_(kept[1])
            found = tile.sums(row, column, group.row_values, group.column_values)
            outputs[tile.where] = found.div_(total[..., None]).to(output.dtype)
            log_sums[tile.where] = top.add_(total.log_())
    return output, log_sum


@torch.library.impl(LIBRARY, "criss_cross_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    output: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    found = d_query, d_key, d_value = tuple(x.new_empty(x.shape) for x in (query, key, value))
    d_queries, d_keys, d_values = (x.flatten(0, 1) for x in found)
    grads, outputs, log_sums = (x.flatten(0, 1) for x in (grad, output, log_sum))
    dropout = Dropout(dropout_p, seed)
    for group in groups(query, key, value, key_mask, scale):
        row_keys, column_keys, row_values, column_values = (
            torch.zeros_like(x)
            for x in (group.row_keys, group.column_keys, group.row_values, group.column_values)
        )
        d_output = grads[group.samples].to(group.query.dtype).contiguous()
        # What softmax takes off the slopes: their mean by the weights, dropped or not.
        means = (d_output * outputs[group.samples]).sum(-1)
        for tile in group.tiles():
            row, column = tile.scores()
            tile.subtract(row, column, log_sums[tile.where])
            row.exp_()
            column.exp_()
            row_slope, column_slope = tile.products(d_output, group.row_values, group.column_values)
            kept = dropout.kept(tile)
            if kept is not None:
                row_slope.mul_(kept[0])
                column_slope.mul_(kept[1])
            tile.subtract(row_slope, column_slope, means[tile.own])
            row_slope.mul_(row)
            column_slope.mul_(column)
            slopes = row_slope, column_slope
            d_tile = tile.sums(*slopes, group.row_keys, group.column_keys)
            d_queries[tile.where] = d_tile.mul_(scale).to(query.dtype)
            tile.add_sums(row_keys, column_keys, *slopes, group.query)
            if kept is not None:
                row, column = row.mul_(kept[0]), column.mul_(kept[1])
            tile.add_sums(row_values, column_values, row, column, d_output)
        d_keys[group.samples] = row_keys.add_(column_keys.transpose(1, 2))
        d_values[group.samples] = row_values.add_(column_values.transpose(1, 2))
    return d_query, d_key, d_value


@torch.library.register_fake("cvattn::criss_cross", lib=LIBRARY)
def _(query, key, value, key_mask, scale, dropout_p, seed):
    dtype = score_dtype(query.dtype)
    output = query.new_empty(*query.shape[:4], value.shape[-1])
    return output, query.new_empty(query.shape[:4], dtype=dtype)


@torch.library.register_fake("cvattn::criss_cross_backward", lib=LIBRARY)
def _(grad, output, log_sum, query, key, value, key_mask, scale, dropout_p, seed):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))
