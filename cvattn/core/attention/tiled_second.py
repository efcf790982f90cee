"""The second derivative of attention over tiles, for gradient penalties and the like."""

import torch
from torch import Tensor

from cvattn.core.attention.precision import score_dtype
from cvattn.core.attention.reference import reference_attention
from cvattn.core.attention.tiles import Terms, tiles, zeros_of_bias


def second_backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of the backward pass, tile by tile through the reference."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "attention over tiles has first and second derivatives, a third was asked for; use "
            "cvattn.core.attention.reference_attention, which stores all scores"
        )
    if ctx.dropout_p > 0.0:
        raise NotImplementedError(
            "attention over tiles has no second derivative with dropout on the weights: set "
            "dropout to 0 for the pass whose gradient is differentiated"
        )
    grad, query, key, value, attn_mask, attn_bias = ctx.saved_tensors
    terms = Terms.of(query, key, attn_mask, attn_bias, ctx.is_causal)
    bias_change = grads[3].view_as(attn_bias) if ctx.bias_grad else None
    changes = Terms.of(query, key, None, bias_change, False)
    inputs = [x.flatten(0, 1) for x in (grad, query, key, value)]
    given = [x.flatten(0, 1) for x in grads[:3]]
    # Products of slopes overflow in float16, and sums over many tiles lose much in bfloat16.
    exact = score_dtype(query.dtype)
    totals = [torch.zeros_like(x, dtype=exact) for x in inputs]
    total_bias = zeros_of_bias(attn_bias if ctx.bias_grad else None)
    sizes = (inputs[0].shape[0], terms.length, terms.key_length)
    for tile in tiles(*sizes, is_causal=ctx.is_causal):
        samples, rows, keys = tile
        at = [(samples, rows), (samples, rows), (samples, keys), (samples, keys)]
        bias = terms.bias(tile)
        with torch.enable_grad():
            leaves: list[Tensor] = [
                x[i].detach().to(exact).requires_grad_() for x, i in zip(inputs, at, strict=True)
            ]
            if bias is not None:
                leaves.append(bias.detach().requires_grad_(ctx.bias_grad))
            wanted = leaves if ctx.bias_grad else leaves[:4]
            allowed = terms.allowed(tile, query.device)
            output = reference_attention(
                *(x[:, None] for x in leaves[1:4]),
                attn_mask=None if allowed is None else allowed[:, None],
                attn_bias=None if bias is None else leaves[4][:, None],
                scale=ctx.scale,
            )
            first = torch.autograd.grad(
                output[:, 0], wanted[1:], leaves[0], create_graph=True, materialize_grads=True
            )
            outer = [x[i].to(exact) for x, i in zip(given, at[1:], strict=True)]
            bias_outer = changes.bias(tile)
            if bias_outer is not None:
                outer.append(bias_outer)
            second = torch.autograd.grad(first, wanted, outer, materialize_grads=True)
        for total, i, found in zip(totals, at, second, strict=False):
            total[i] += found
        if ctx.bias_grad:
            terms.add_bias_grad(total_bias, second[4], tile)
    shaped = [x.unflatten(0, query.shape[:2]).to(query.dtype) for x in totals]
    d_bias = total_bias.view_as(attn_bias).to(attn_bias.dtype) if ctx.bias_grad else None
    return (*shaped, None, None, d_bias, *[None] * 5)
