"""Criss-cross attention over tiles: memory linear in the positions, in the first two derivatives.

The backward pass computes the weights of each tile again instead of storing them, as
FlashAttention does (Dao et al., 2022). The operators are opaque to ``torch.compile``, which would
unroll the loops.
"""

import torch
from torch import Tensor

from cvattn.core.attention.criss_cross_tiles import Dropout, groups, joint_output

LIBRARY = torch.library.Library("cvattn", "FRAGMENT")
_CALL = "Tensor? key_mask, float scale, float dropout_p, Tensor? seed"
LIBRARY.define(f"criss_cross(Tensor query, Tensor key, Tensor value, {_CALL}) -> Tensor")
LIBRARY.define(
    f"criss_cross_backward(Tensor grad, Tensor query, Tensor key, Tensor value, {_CALL})"
    " -> (Tensor, Tensor, Tensor)"
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
) -> Tensor:
    output = query.new_empty(*query.shape[:4], value.shape[-1])
    outputs, dropout = output.flatten(0, 1), Dropout(dropout_p, seed)
    for group in groups(query, key, value, key_mask, scale):
        for part in group.rectangles:
            rows, columns = part
            weights = group.weights(part)
            kept = dropout.kept(group, part, weights)
            if kept is not None:
                weights *= kept
            outputs[group.samples, rows, columns] = joint_output(
                weights, group.row_values[:, rows], group.column_values[:, columns]
            ).to(output.dtype)
    return output


@torch.library.impl(LIBRARY, "criss_cross_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
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
    grads, dropout = grad.flatten(0, 1), Dropout(dropout_p, seed)
    width = query.shape[3]
    for group in groups(query, key, value, key_mask, scale):
        row_keys, column_keys, row_values, column_values = (
            torch.zeros_like(x)
            for x in (group.row_keys, group.column_keys, group.row_values, group.column_values)
        )
        d_output = grads[group.samples].to(group.query.dtype)
        for part in group.rectangles:
            rows, columns = part
            weights = group.weights(part)
            kept = dropout.kept(group, part, weights)
            q, u = group.query[:, rows, columns], d_output[:, rows, columns]
            q_t, u_t = q.transpose(1, 2), u.transpose(1, 2)
            row = u @ group.row_values[:, rows].mT
            column = (u_t @ group.column_values[:, columns].mT).transpose(1, 2)
            slope = torch.cat([row, column], -1)
            dropped = weights if kept is None else weights * kept
            if kept is not None:
                slope *= kept
            torch.ops.aten._softmax_backward_data.out(
                slope, weights, -1, weights.dtype, grad_input=slope
            )
            row, column = slope[..., :width], slope[..., width:].transpose(1, 2)
            d_q = row @ group.row_keys[:, rows]
            d_q += (column @ group.column_keys[:, columns]).transpose(1, 2)
            d_queries[group.samples, rows, columns] = (d_q * scale).to(query.dtype)
            row_keys[:, rows] += row.mT @ q
            column_keys[:, columns] += column.mT @ q_t
            row, column = dropped[..., :width], dropped[..., width:].transpose(1, 2)
            row_values[:, rows] += row.mT @ u
            column_values[:, columns] += column.mT @ u_t
        d_keys[group.samples] = row_keys.add_(column_keys.transpose(1, 2)).mul_(scale)
        d_values[group.samples] = row_values.add_(column_values.transpose(1, 2))
    return d_query, d_key, d_value


@torch.library.register_fake("cvattn::criss_cross", lib=LIBRARY)
def _(query, key, value, key_mask, scale, dropout_p, seed):
    return query.new_empty(*query.shape[:4], value.shape[-1])


@torch.library.register_fake("cvattn::criss_cross_backward", lib=LIBRARY)
def _(grad, query, key, value, key_mask, scale, dropout_p, seed):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))
