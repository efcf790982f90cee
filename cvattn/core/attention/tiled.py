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

from cvattn.core.attention.hidden import add_mark
from cvattn.core.attention.tile_weights import TileWeights, tile_view
from cvattn.core.attention.tiled_second import second_backward
from cvattn.core.attention.tiles import Terms, tile_scores, zeros_of_bias


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
    output, mark = torch.ops.cvattn.tiled_attention(
        query, key, value, attn_mask, attn_bias, is_causal, scale, dropout_p, seed
    )
    hides = attn_mask is not None or attn_bias is not None or is_causal
    return add_mark(output, mark if hides else None)


def workspace_bytes(
    samples: int, length: int, key_length: int, dtype: torch.dtype, *, backward: bool
) -> int:
    """What the operators hold beside their inputs and outputs, in bytes, for the largest tile."""
    return tile_scores(samples, length, key_length) * dtype.itemsize * (2 if backward else 1)


# Not torch.library.custom_op: it loads torch's compiler, which takes seconds, when first called.
_CALL = (
    "Tensor? attn_mask, Tensor? attn_bias, bool is_causal, float scale, float dropout_p, "
    "Tensor? seed"
)
torch.library.define(
    "cvattn::tiled_attention",
    f"(Tensor query, Tensor key, Tensor value, {_CALL}) -> (Tensor, Tensor)",
)
torch.library.define(
    "cvattn::tiled_attention_backward",
    f"(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, {_CALL}, bool bias_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("cvattn::tiled_attention", "default")
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
    with torch.autocast(query.device.type, enabled=False):
        work = TileWeights(query, key, value, terms, scale, dropout_p, seed)
        shape = (work.values.shape[0], terms.length, value.shape[-1])
        output = query.new_empty(shape, dtype=work.dtype)
        mark = query.new_zeros((*shape[:2], 1), dtype=torch.float32)
        for tile in work.tiles:
            weights, kept = work.weights(tile), work.kept(tile)
            if kept is not None:
                weights *= kept
            values = work.values[tile.samples, tile.keys]
            torch.bmm(weights, values, out=output[tile.samples, tile.rows])
            if work.bad_rows is not None:
                bad = work.sees_bad(tile)
                mark[tile.samples, tile.rows].masked_fill_(bad, float("nan"))
    split = query.shape[:2]
    return output.unflatten(0, split).to(query.dtype), mark.unflatten(0, split)


@torch.library.impl("cvattn::tiled_attention_backward", "default")
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
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
    with torch.autocast(query.device.type, enabled=False):
        work = TileWeights(query, key, value, terms, scale, dropout_p, seed)
        grad, output = (x.flatten(0, 1).to(work.dtype) for x in (grad, output))
        slope = work.buffer.new_empty(work.buffer.shape)
        # The row sums that the derivative of the softmax subtracts: sum_j P_ij dP_ij = dO_i . O_i.
        delta = (grad * output).sum(-1, keepdim=True)
        d_query = torch.empty_like(work.queries)
        # Sums over many tiles, so not in half precision.
        exact = torch.promote_types(work.dtype, torch.float32)
        d_key, d_value = (torch.zeros_like(x, dtype=exact) for x in (work.keys, work.values))
        d_bias = zeros_of_bias(attn_bias if bias_grad else None, exact)
        for tile in work.tiles:
            samples, rows, keys = tile
            weights, kept = work.weights(tile), work.kept(tile)
            row_grad = grad[samples, rows]
            d_scores = tile_view(slope, tile)
            torch.bmm(row_grad, work.values[samples, keys].mT, out=d_scores)
            if kept is not None:
                d_scores *= kept
            d_scores -= delta[samples, rows]
            d_scores *= weights
            if kept is not None:
                weights *= kept
            _add_product(d_value[samples, keys], weights.mT, row_grad)
            torch.bmm(d_scores, work.keys[samples, keys], out=d_query[samples, rows])
            _add_product(d_key[samples, keys], d_scores.mT, work.queries[samples, rows])
            if bias_grad:
                terms.add_bias_grad(d_bias, d_scores, tile)
    d_query *= scale
    q, k, v = (
        total.unflatten(0, query.shape[:2]).to(query.dtype) for total in (d_query, d_key, d_value)
    )
    if attn_bias is not None and bias_grad:
        d_bias = d_bias.view(attn_bias.shape).to(attn_bias.dtype)
    return q, k, v, d_bias


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the total's own precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


@torch.library.register_fake("cvattn::tiled_attention")
def _(query, key, value, attn_mask, attn_bias, is_causal, scale, dropout_p, seed):
    shape = query.shape[:3]
    return query.new_empty(*shape, value.shape[-1]), query.new_empty(*shape, 1, dtype=torch.float32)


@torch.library.register_fake("cvattn::tiled_attention_backward")
def _(grad, query, key, value, output, attn_mask, attn_bias, is_causal, scale, p, seed, bias_grad):
    bias = attn_bias if bias_grad else query.new_empty(0)
    return tuple(torch.empty_like(x) for x in (query, key, value, bias))


def _keep_for_backward(ctx, inputs, output) -> None:
    query, key, value, attn_mask, attn_bias, is_causal, scale, dropout_p, seed = inputs
    ctx.save_for_backward(query, key, value, output[0], attn_mask, attn_bias, seed)
    ctx.mark_non_differentiable(output[1])
    ctx.settings = (is_causal, scale, dropout_p)


def _first_backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    bias_grad = ctx.needs_input_grad[4]
    *found, bias = torch.ops.cvattn.tiled_attention_backward(
        grad, *tensors, *ctx.settings, seed, bias_grad
    )
    return (*found, None, bias if bias_grad else None, None, None, None, None)


def _keep_for_second(ctx, inputs, output) -> None:
    grad, query, key, value, _, attn_mask, attn_bias, *settings, _, bias_grad = inputs
    ctx.save_for_backward(grad, query, key, value, attn_mask, attn_bias)
    ctx.is_causal, ctx.scale, ctx.dropout_p = settings
    ctx.bias_grad = bias_grad


torch.library.register_autograd(
    "cvattn::tiled_attention", _first_backward, setup_context=_keep_for_backward
)
torch.library.register_autograd(
    "cvattn::tiled_attention_backward", second_backward, setup_context=_keep_for_second
)
