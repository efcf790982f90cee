"""Tensors of attention as others shape them, brought to (B, heads, L, E)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def per_head(x: Tensor, heads: int | None, batch: int | None) -> Tensor:
    """(..., L, E) -> (B, heads, L, E), a view where there are up to four dimensions.

    Of three dimensions the first holds batch and heads, batch first.

    Args:
        heads: as many as the module says it has; None = it does not say.
        batch: as many images as the model was given; None = unknown.
    """
    if x.ndim == 2:
        return x[None, None]
    if x.ndim == 3:
        count, images = x.shape[0], batch or 1
        if heads is None or count % (heads * images):
            heads = count // images if batch and count % images == 0 else 1
        return x.unflatten(0, (count // heads, heads))
    return x if x.ndim == 4 else x.flatten(0, -4)


def terms_per_head(
    terms: Mapping[str, Any], query: Tensor, groups: Sequence[int]
) -> dict[str, Any]:
    """Masks and biases that broadcast to ``query``'s scores, for queries (B, heads, L, E).

    Args:
        terms: whose tensors these are.
        query: as given.
        groups: (B, heads) of what became of it.
    """
    return {
        name: _per_head(term, query, groups) if isinstance(term, Tensor) else term
        for name, term in terms.items()
    }


def _per_head(term: Tensor, query: Tensor, groups: Sequence[int]) -> Tensor:
    if term.ndim == 2 or (term.ndim == 4 and query.ndim == 4):
        return term
    if query.ndim < 3 or (term.ndim == 3 and (query.ndim == 4 or term.shape[0] == 1)):
        return term.reshape(1, -1, *term.shape[-2:])
    if query.ndim == 3:
        return term.reshape(*groups, *term.shape[-2:])
    lead = torch.broadcast_shapes(term.shape[:-2], query.shape[:-2])
    return term.expand(*lead, *term.shape[-2:]).reshape(*groups, *term.shape[-2:])
