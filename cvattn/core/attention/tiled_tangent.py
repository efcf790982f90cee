"""Forward-mode differentiation of attention over tiles."""

import torch
from torch import Tensor

from cvattn.core.attention.tile_weights import TileDropout, tile_weights
from cvattn.core.attention.tiles import Terms

_LIBRARY = torch.library.Library("cvattn", "FRAGMENT")
_LIBRARY.define(
    "tiled_tangent(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? attn_bias, "
    "Tensor? d_query, Tensor? d_key, Tensor? d_value, Tensor? d_bias, "
    "bool is_causal, float scale, float dropout_p, Tensor? seed) -> Tensor"
)


@torch.library.impl(_LIBRARY, "tiled_tangent", "CompositeExplicitAutograd")
def _tangent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    d_query: Tensor | None,
    d_key: Tensor | None,
    d_value: Tensor | None,
    d_bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """How the output changes with its inputs: dY = dP V + P dV, dP = P * (dS - rowsum(P * dS)).

    Args:
        d_query, d_key, d_value, d_bias: changes of the inputs, of their shapes; None = 0.
        others: of the call.

    Returns:
        (B, heads, L, Ev).
    """
    terms = Terms.of(query, key, attn_mask, attn_bias, is_causal)
    changes = Terms.of(query, key, None, d_bias, False)
    dropout = TileDropout(dropout_p, seed, terms)
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    outputs = output.flatten(0, 1)
    given = [None if x is None else x.flatten(0, 1) for x in (d_query, d_key, d_value)]
    with torch.autocast(query.device.type, enabled=False):
        for group in tile_weights(query, key, value, terms, scale):
            # All of it in the scores' dtype, float32 at least: the change of a softmax cancels.
            exact = group.buffers.scores.dtype
            queries, all_keys, values = (
                x.to(exact) for x in (group.queries, group.keys, group.values)
            )
            d_queries, d_keys, d_values = (
                None if x is None else x[group.samples].to(exact) for x in given
            )
            for tile in group.tiles:
                rows, keys = tile.rows, tile.keys
                weights = group.weights(tile)
                slope = torch.zeros_like(weights)
                if d_queries is not None:
                    slope.baddbmm_(d_queries[:, rows], all_keys[:, keys].mT, alpha=scale)
                if d_keys is not None:
                    slope.baddbmm_(queries[:, rows], d_keys[:, keys].mT, alpha=scale)
                change = changes.bias(tile)
                if change is not None:
                    slope += change
                slope -= (slope * weights).sum(-1, keepdim=True)
                slope *= weights
                kept = dropout.kept(tile, weights)
                if kept is not None:
                    slope *= kept
                    weights *= kept
                found = torch.bmm(slope, values[:, keys])
                if d_values is not None:
                    found.baddbmm_(weights, d_values[:, keys])
                outputs[tile.samples, rows] = found.to(output.dtype)
    return output


@torch.library.register_fake("cvattn::tiled_tangent", lib=_LIBRARY)
def _(query, key, value, *more):
    return query.new_empty(*query.shape[:3], value.shape[-1])
