"""Second and third derivatives of attention over tiles, for gradient penalties and the like.

Each tile goes through the reference, whose derivatives of any order autograd knows.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from cvattn.core.attention.precision import score_dtype
from cvattn.core.attention.reference import reference_attention
from cvattn.core.attention.tiles import Terms, Tile, as_4d, tiles

# Operators, so that torch's older vmap (hessian(vectorize=True)) runs them one by one.
_LIBRARY = torch.library.Library("cvattn", "FRAGMENT")
_GIVEN = (
    "Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? attn_bias, "
    "Tensor? d_query, Tensor? d_key, Tensor? d_value, Tensor? d_bias, "
    "bool is_causal, float scale, float dropout_p, bool bias_grad"
)
_OUTER = "Tensor of_grad, Tensor of_query, Tensor of_key, Tensor of_value, Tensor of_bias"
_LIBRARY.define(f"tiled_second({_GIVEN}) -> ({', '.join(['Tensor'] * 5)})")
_LIBRARY.define(f"tiled_third({_GIVEN}, {_OUTER}) -> ({', '.join(['Tensor'] * 9)})")

# What the derivatives are of, in this order; the bias and its change are of another kind.
_NAMES = ("grad", "query", "key", "value", "bias", "d_query", "d_key", "d_value", "d_bias")
_BIAS, _D_BIAS = _NAMES.index("bias"), _NAMES.index("d_bias")


@torch.library.impl(_LIBRARY, "tiled_second", "CompositeExplicitAutograd")
def _second(grad, query, key, value, attn_mask, attn_bias, *more) -> tuple[Tensor, ...]:
    """Of s = sum(grad * J t), with the output's derivative J and a change t of its inputs.

    Args:
        d_query, d_key, d_value, d_bias: the parts of t; None = 0.
        bias_grad: the derivative with respect to the bias is wanted, too.

    Returns:
        Derivatives of s with respect to grad (which is J t), query, key, value and bias (empty
        unless wanted).
    """
    *changes, is_causal, scale, dropout_p, bias_grad = more
    given = [grad, query, key, value, attn_bias, *changes]
    return _by_tiles(given, attn_mask, is_causal, scale, dropout_p, bias_grad, None)


@torch.library.impl(_LIBRARY, "tiled_third", "CompositeExplicitAutograd")
def _third(grad, query, key, value, attn_mask, attn_bias, *more) -> tuple[Tensor, ...]:
    """Of the sum of what ``tiled_second`` returns, each times its ``of_...``.

    Returns:
        Derivatives with respect to all of ``_NAMES``; empty where there is no such.
    """
    *changes, is_causal, scale, dropout_p, bias_grad = more[:-5]
    given = [grad, query, key, value, attn_bias, *changes]
    return _by_tiles(given, attn_mask, is_causal, scale, dropout_p, bias_grad, more[-5:])


def _by_tiles(
    given: Sequence[Tensor | None],
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    bias_grad: bool,
    outer: Sequence[Tensor] | None,
) -> tuple[Tensor, ...]:
    if dropout_p > 0.0:
        raise NotImplementedError(
            "attention over tiles has no second derivative with dropout on the weights: set "
            "dropout to 0 for the pass whose gradient is differentiated, or run it within "
            'cvattn.core.use_route("direct")'
        )
    _, query, key, *_ = given
    assert query is not None
    assert key is not None
    terms = Terms.of(query, key, attn_mask, given[_BIAS], is_causal)
    # Products of slopes overflow in float16, and sums over many tiles lose much in bfloat16.
    exact = score_dtype(query.dtype)
    of_s = [*range(_BIAS + bias_grad)]
    totals = _zeros(given, of_s if outer is None else range(len(_NAMES)))
    samples = query.shape[:2].numel()
    for tile in tiles(samples, terms.length, terms.key_length, is_causal=is_causal):
        with torch.enable_grad(), _autograd_here():
            leaves = [
                None
                if x is None
                else _part(index, x, terms, tile).detach().to(exact).requires_grad_()
                for index, x in enumerate(given)
            ]
            bias, allowed = leaves[_BIAS], terms.allowed(tile, query.device)
            output = reference_attention(
                *(x[:, None] for x in leaves[1:_BIAS] if x is not None),
                attn_mask=None if allowed is None else allowed[:, None],
                attn_bias=None if bias is None else bias[:, None],
                scale=scale,
            )[:, 0]
            # Only what changes takes part; the derivative along t is linear in it.
            along = {i: leaves[i + _BIAS] for i in range(1, _BIAS + 1)}
            along = {i: x for i, x in along.items() if x is not None}
            if not along:
                break
            s = _grad(output, leaves, [*along], leaves[0], create_graph=True)
            found = _grad(
                [*s.values()], leaves, of_s, [*along.values()], create_graph=outer is not None
            )
            if outer is not None:
                weights = [_part(i, outer[i], terms, tile).to(exact) for i in of_s]
                found = _grad([found[i] for i in of_s], leaves, [*totals], weights)
        for index, part in found.items():
            _add(index, totals[index], terms, tile, part)
    number = _BIAS + 1 if outer is None else len(_NAMES)
    return tuple(
        query.new_empty(0) if x is None or i not in totals else totals[i].view(x.shape).to(x.dtype)
        for i, x in enumerate(given[:number])
    )


def _autograd_here() -> AbstractContextManager[object]:
    """Autograd within an operator: where modes watch operators, torch has left it above them."""
    return torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)


def _grad(outputs, leaves, of, weights, *, create_graph: bool = False) -> dict[int, Tensor]:
    """Derivatives with respect to the leaves of these indices."""
    found = torch.autograd.grad(
        outputs,
        [leaves[i] for i in of],
        weights,
        create_graph=create_graph,
        materialize_grads=True,
    )
    return dict(zip(of, found, strict=True))


def _zeros(given: Sequence[Tensor | None], of: Sequence[int]) -> dict[int, Tensor]:
    """Sums over many tiles, so not in half precision; batch and heads of tokens flattened."""
    totals = {}
    for index in of:
        x = given[index]
        if x is not None:
            x = as_4d(x) if index in (_BIAS, _D_BIAS) else x.flatten(0, 1)
            totals[index] = torch.zeros_like(x, dtype=score_dtype(x.dtype))
    return totals


def _part(index: int, x: Tensor, terms: Terms, tile: Tile) -> Tensor:
    """A tile's part of what stands at ``index`` of ``_NAMES``."""
    if index in (_BIAS, _D_BIAS):
        return terms.part(x, tile)
    tokens = tile.keys if _NAMES[index].removeprefix("d_") in ("key", "value") else tile.rows
    return x.flatten(0, 1)[tile.samples, tokens]


def _add(index: int, total: Tensor, terms: Terms, tile: Tile, part: Tensor) -> None:
    if index in (_BIAS, _D_BIAS):
        terms.add_bias_grad(total, part, tile)
    else:
        tokens = tile.keys if _NAMES[index].removeprefix("d_") in ("key", "value") else tile.rows
        total[tile.samples, tokens] += part


@torch.library.register_fake("cvattn::tiled_second", lib=_LIBRARY)
def _(grad, query, key, value, attn_mask, attn_bias, *more):
    bias = attn_bias if more[-1] else query.new_empty(0)
    return tuple(x.new_empty(x.shape) for x in (grad, query, key, value, bias))


@torch.library.register_fake("cvattn::tiled_third", lib=_LIBRARY)
def _(grad, query, key, value, attn_mask, attn_bias, *more):
    given = (grad, query, key, value, attn_bias, *more[:4])
    return tuple(query.new_empty(0 if x is None else x.shape) for x in given)
