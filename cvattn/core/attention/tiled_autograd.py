"""The derivatives of attention over tiles, in every mode.

With y(x) for the output and x for query, key, value and bias, four functions are closed under
differentiation up to second order: y itself, J^T u (the backward pass), J t (the forward mode), and
d/dx (u . J t). Each is computed tile by tile.
"""

import torch
from torch.autograd import Function

# The operators; those of y and J^T u are defined where this is used.
import cvattn.core.attention.tiled_second
import cvattn.core.attention.tiled_tangent  # noqa: F401


def one_by_one(function: type[Function], info, in_dims, args):
    """The vmap rule: a call for each sample. Each is many tiles, so that nothing is lost by it."""
    results = [
        function.apply(
            *(
                arg if dim is None else arg.select(dim, index)
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        for index in range(info.batch_size)
    ]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


class Tiled(Function):
    """y: the operator of the same signature."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.tiled_attention(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, is_causal, scale, dropout_p, seed = inputs
        query, key, value, attn_mask, attn_bias = tensors
        kept = (query, key, value, attn_mask, attn_bias, seed)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)
        ctx.mark_non_differentiable(output[1])
        ctx.settings = (is_causal, scale, dropout_p)

    @staticmethod
    def backward(ctx, grad, _):
        *tensors, seed = ctx.saved_tensors
        bias_grad = ctx.needs_input_grad[4]
        *found, bias = TiledBackward.apply(grad, *tensors, *ctx.settings, seed, bias_grad)
        return (*found, None, bias if bias_grad else None, None, None, None, None)

    @staticmethod
    def jvp(ctx, d_query, d_key, d_value, _, d_bias, *rest):
        *tensors, seed = ctx.saved_tensors
        changes = (d_query, d_key, d_value, d_bias)
        return TiledTangent.apply(*tensors, *changes, *ctx.settings, seed)[0], None

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(Tiled, info, in_dims, args)


class TiledBackward(Function):
    """J^T u: (u, query, key, value, mask, bias, settings, seed, bias_grad) -> gradients."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.tiled_attention_backward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, is_causal, scale, dropout_p, seed, bias_grad = inputs
        ctx.save_for_backward(*tensors, seed)
        ctx.save_for_forward(*tensors, seed)
        ctx.settings, ctx.bias_grad = (is_causal, scale, dropout_p), bias_grad

    @staticmethod
    def backward(ctx, *grads):
        *given, _ = ctx.saved_tensors
        changes = (*grads[:3], grads[3] if ctx.bias_grad else None)
        *found, d_bias = TiledSecond.apply(*given, *changes, *ctx.settings, ctx.bias_grad)
        return (*found, None, d_bias if ctx.bias_grad else None, *[None] * 5)

    @staticmethod
    def jvp(ctx, d_grad, d_query, d_key, d_value, _, d_bias, *rest):
        grad, *tensors, seed = ctx.saved_tensors
        changes = (d_query, d_key, d_value, d_bias)
        _, *found = TiledSecond.apply(grad, *tensors, *changes, *ctx.settings, ctx.bias_grad)
        if d_grad is not None:
            more = TiledBackward.apply(d_grad, *tensors, *ctx.settings, seed, ctx.bias_grad)
            found = [x + y for x, y in zip(found, more, strict=True)]
        return tuple(found)

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(TiledBackward, info, in_dims, args)


class TiledTangent(Function):
    """J t: (query, key, value, mask, bias, four parts of t, settings, seed) -> (J t,)."""

    @staticmethod
    def forward(*args):
        return (torch.ops.cvattn.tiled_tangent(*args),)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, is_causal, scale, dropout_p, seed = inputs
        ctx.save_for_backward(*tensors, seed)
        ctx.save_for_forward(*tensors, seed)
        ctx.settings = (is_causal, scale, dropout_p)

    @staticmethod
    def backward(ctx, grad):
        *tensors, seed = ctx.saved_tensors
        given, changes = tensors[:5], tensors[5:]
        bias_grad, change_grad = ctx.needs_input_grad[4], ctx.needs_input_grad[8]
        _, *found, d_bias = TiledSecond.apply(grad, *given, *changes, *ctx.settings, bias_grad)
        # J t is linear in t.
        *of_t, t_bias = TiledBackward.apply(grad, *given, *ctx.settings, seed, change_grad)
        d_bias, t_bias = d_bias if bias_grad else None, t_bias if change_grad else None
        return (*found, None, d_bias, *of_t, t_bias, None, None, None, None)

    @staticmethod
    def jvp(ctx, d_query, d_key, d_value, _, d_bias, *rest):
        *tensors, seed = ctx.saved_tensors
        query, key, value, attn_mask, attn_bias, *changes = tensors
        # d/du of (d/dx (u . J t)) . d is the second derivative along t and d, whatever u is.
        u = query.new_zeros(*query.shape[:3], value.shape[-1])
        of = (u, query, key, value, u if attn_bias is None else attn_bias)
        given = (None, d_query, d_key, d_value, d_bias)
        outer = [torch.zeros_like(x) if d is None else d for x, d in zip(of, given, strict=True)]
        inputs = (u, query, key, value, attn_mask, attn_bias)
        found, *_ = TiledThird.apply(*inputs, *changes, *ctx.settings, d_bias is not None, *outer)
        of_t = rest[:4]
        if any(x is not None for x in of_t):
            (more,) = TiledTangent.apply(*tensors[:5], *of_t, *ctx.settings, seed)
            found = found + more
        return (found,)

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(TiledTangent, info, in_dims, args)


class TiledSecond(Function):
    """J t and d/dx (u . J t): the operator ``tiled_second``."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.tiled_second(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:10])
        ctx.settings = inputs[10:]

    @staticmethod
    def backward(ctx, *grads):
        found = TiledThird.apply(*ctx.saved_tensors, *ctx.settings, *grads)
        given = (*found[:4], None, *found[4:])
        needed = zip(given, ctx.needs_input_grad[:10], strict=True)
        return (*(x if needs else None for x, needs in needed), *[None] * 4)

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("forward mode over a second derivative")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(TiledSecond, info, in_dims, args)


class TiledThird(Function):
    """What the second derivative's own is, such as hvp() of torch.autograd.functional asks for."""

    @staticmethod
    def forward(*args):
        return torch.ops.cvattn.tiled_third(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        _refuse("a fourth derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("a fourth derivative")

    @staticmethod
    def vmap(info, in_dims, *args):
        return one_by_one(TiledThird, info, in_dims, args)


def _refuse(what: str) -> None:
    raise NotImplementedError(
        f"attention over tiles was asked for {what}, which it does not have: run it within "
        'cvattn.core.use_route("direct"), which stores all scores and has every derivative'
    )
