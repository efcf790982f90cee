"""Attention over tiles of the scores: memory linear in the tokens.

A tile holds all keys of some query rows (or whole samples, while these are small), so that its
softmax is final and each product is a large matrix product. The backward pass computes the tiles
again instead of storing them, as FlashAttention does (Dao et al., 2022). Unlike its kernels, the
tiles take whole rows, q may be much narrower than v, masks and biases may have any shape, and there
is a second derivative.

The two operators are opaque to ``torch.compile``, which would unroll the loops.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cvattn.core.attention import tile_kernel
from cvattn.core.attention.nonfinite import propagate_nonfinite
from cvattn.core.attention.tile_weights import (
    NOT_CAPTURED,
    TileDropout,
    tile_view,
    tile_weights,
)
from cvattn.core.attention.tiled_autograd import Tiled, TiledBackward
from cvattn.core.attention.tiles import Terms, zeros_of_bias


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Attention as the reference has it; q, k and v of one dtype, checked before."""
    # A tensor, so that a compiled graph draws it anew in each run.
    seed = torch.randint(2**62, (1,)) if dropout_p > 0.0 else None
    # The operator is what graphs hold; it has the first two derivatives in reverse mode alone.
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    call = torch.ops.cvattn.tiled_attention if tracing else Tiled.apply
    output, nan_rows = call(
        query, key, value, attn_mask, attn_bias, is_causal, scale, dropout_p, seed
    )
    hides = attn_mask is not None or attn_bias is not None or is_causal
    return propagate_nonfinite(output, nan_rows if hides else None)


# Not torch.library.custom_op: it loads torch's compiler, which takes seconds, when first called.
_CALL = (
    "Tensor? attn_mask, Tensor? attn_bias, bool is_causal, float scale, float dropout_p, "
    "Tensor? seed"
)
# An object, so that a module that is loaded anew, as notebooks do, defines them anew.
LIBRARY = torch.library.Library("cvattn", "FRAGMENT")
LIBRARY.define(
    f"tiled_attention(Tensor query, Tensor key, Tensor value, {_CALL}) -> (Tensor, Tensor)",
    tags=NOT_CAPTURED,
)
LIBRARY.define(
    "tiled_attention_backward"
    f"(Tensor grad, Tensor query, Tensor key, Tensor value, {_CALL}, bool bias_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=NOT_CAPTURED,
)


@torch.library.impl(LIBRARY, "tiled_attention", "CompositeExplicitAutograd")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and what to add to its rows: 0, or NaN where what they see is not finite."""
    terms = Terms.of(query, key, attn_mask, attn_bias, is_causal)
    dropout = TileDropout(dropout_p, seed, terms)
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    nan_rows = query.new_zeros(*query.shape[:3], 1, dtype=torch.float32)
    outputs, flat_nan_rows = output.flatten(0, 1), nan_rows.flatten(0, 1)
    in_kernel = tile_kernel.takes(query, key, value, terms, dropout_p)
    if in_kernel and terms.empty:
        return output.copy_(tile_kernel.attend(query, key, value, None, scale)), nan_rows
    with torch.autocast(query.device.type, enabled=False):
        for group in tile_weights(query, key, value, terms, scale):
            for tile in group.tiles:
                target = outputs[tile.samples, tile.rows]
                if in_kernel:
                    target.copy_(tile_kernel.attend_tile(group, tile, scale))
                else:
                    weights = group.weights(tile)
                    kept = dropout.kept(tile, weights)
                    if kept is not None:
                        weights *= kept
                    _product(target, group.rounded(weights, tile), group.values[:, tile.keys])
                bad = group.sees_bad(tile)
                if bad is not None:
                    flat_nan_rows[tile.samples, tile.rows].masked_fill_(bad, float("nan"))
    return output, nan_rows


@torch.library.impl(LIBRARY, "tiled_attention_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias (empty unless asked for)."""
    terms = Terms.of(query, key, attn_mask, attn_bias, is_causal)
    dropout = TileDropout(dropout_p, seed, terms)
    d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
    d_queries, d_keys, d_values = (x.flatten(0, 1) for x in (d_query, d_key, d_value))
    d_bias = zeros_of_bias(attn_bias if bias_grad else None, query)
    grads = grad.flatten(0, 1)
    with torch.autocast(query.device.type, enabled=False):
        for group in tile_weights(query, key, value, terms, scale):
            dtype = group.values.dtype
            d_scores = torch.empty_like(group.buffers.weights)
            d_out = grads[group.samples].to(dtype)
            # Sums over many tiles, so not in half precision.
            sum_key, sum_value = (_zeros(x) for x in (group.keys, group.values))
            for tile in group.tiles:
                samples, rows, keys = tile
                exact = group.weights(tile)
                kept = dropout.kept(tile, exact)
                weights = group.rounded(exact, tile)
                slope = tile_view(d_scores, tile)
                torch.bmm(d_out[:, rows], group.values[:, keys].mT, out=slope)
                if kept is not None:
                    slope *= kept
                # weights * (slope - their sum of each row); in place, each row read twice before.
                torch.ops.aten._softmax_backward_data.out(
                    slope, weights, -1, dtype, grad_input=slope
                )
                _add_product(sum_key[:, keys], slope.mT, group.queries[:, rows])
                d_queries[samples, rows] = torch.bmm(slope, group.keys[:, keys]).mul_(scale)
                if bias_grad:
                    terms.add_bias_grad(d_bias, slope, tile)
                if kept is not None:
                    weights = group.rounded(exact.mul_(kept), tile)
                _add_product(sum_value[:, keys], weights.mT, d_out[:, rows])
            d_keys[group.samples], d_values[group.samples] = sum_key.mul_(scale), sum_value
    if attn_bias is not None and bias_grad:
        d_bias = d_bias.view(attn_bias.shape).to(attn_bias.dtype)
    return d_query, d_key, d_value, d_bias


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target = left @ right, without a copy between where the dtype is the same."""
    if target.dtype == left.dtype:
        torch.bmm(left, right, out=target)
    else:
        target.copy_(torch.bmm(left, right))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the total's own precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


@torch.library.register_fake("cvattn::tiled_attention", lib=LIBRARY)
def _(query, key, value, attn_mask, attn_bias, is_causal, scale, dropout_p, seed):
    shape = query.shape[:3]
    return query.new_empty(*shape, value.shape[-1]), query.new_empty(*shape, 1, dtype=torch.float32)


@torch.library.register_fake("cvattn::tiled_attention_backward", lib=LIBRARY)
def _(grad, query, key, value, attn_mask, attn_bias, is_causal, scale, p, seed, bias_grad):
    bias = attn_bias if bias_grad else query.new_empty(0)
    return tuple(x.new_empty(x.shape) for x in (query, key, value, bias))


# What a compiler, or a traced program, finds at the operators.
for _name, _function in (("tiled_attention", Tiled), ("tiled_attention_backward", TiledBackward)):
    torch.library.register_autograd(
        f"cvattn::{_name}", _function.backward, setup_context=_function.setup_context, lib=LIBRARY
    )


# Multiply-accumulates count 2, and what is hidden counts, as torch's own formulas have it.
@register_flop_formula(torch.ops.cvattn.tiled_attention)
def _forward_flops(query, key, value, *args, **kwargs) -> int:
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


@register_flop_formula(torch.ops.cvattn.tiled_attention_backward)
def _backward_flops(grad, query, key, value, *args, **kwargs) -> int:
    """The scores once more, and two products for each of the forward pass."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])
