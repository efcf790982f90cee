"""What a set of attention weights says in a number or a map: entropy, distance, rollout."""

from collections.abc import Mapping

import torch
from torch import Tensor


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, for each head: (B, heads, rows, keys) -> (heads,).

    0 = every query looks at one key; log(keys) = at all of them alike.
    """
    weights = weights.double()
    return torch.special.entr(weights).sum(-1).mean(dim=(0, 2))


def attention_distance(
    weights: Tensor, query_grid: tuple[int, int], key_grid: tuple[int, int] | None = None
) -> Tensor:
    """How far each head looks: mean distance from a query to its keys, weighted, -> (heads,).

    In steps of the query grid. Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), fig. 7.

    Args:
        weights: (B, heads, queries, keys), both in the order of their grids, row by row. Prefix
            tokens have no place: slice them off both sides first; rows are divided by their sums.
        query_grid: (H, W) of the queries.
        key_grid: (H, W) of the keys over the same map; None = as the queries. Pooled keys stand in
            the middle of what they were pooled from.

    Raises:
        ValueError: weights that do not lie on these grids.
    """
    key_grid = query_grid if key_grid is None else key_grid
    queries, keys = query_grid[0] * query_grid[1], key_grid[0] * key_grid[1]
    if weights.ndim != 4 or tuple(weights.shape[2:]) != (queries, keys):
        raise ValueError(
            f"weights {tuple(weights.shape)} do not lie on grids of {query_grid} queries and "
            f"{key_grid} keys (H, W): expected (batch, heads, {queries}, {keys})"
        )
    weights = weights.double()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    places = _places(query_grid, query_grid, weights.device)
    distances = torch.cdist(places, _places(key_grid, query_grid, weights.device))
    return (weights * distances).sum(-1).mean(dim=(0, 2))


def _places(grid: tuple[int, int], over: tuple[int, int], device: torch.device) -> Tensor:
    """(H*W, 2): where the cells of ``grid`` have their middles, in steps of the grid ``over``."""
    axes = [
        (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (whole / size) - 0.5
        for size, whole in zip(grid, over, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def attention_rollout(maps: Mapping[str, Tensor], *, residual: float = 0.5) -> Tensor:
    """How much of each input token is in each output token, through all layers: (B, N, N).

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020): heads are averaged, each
    layer is mixed with the identity for its residual connection, and the layers are multiplied,
    first to last. Rows sum to 1. With a class token first, ``rollout[:, 0, 1:]`` is its map over
    the grid.

    Args:
        maps: self-attention weights (B, heads, N, N) of the layers, first to last, as
            :func:`capture_attention` gives them for all rows.
        residual: share of the identity; 0.5 is the paper's.

    Raises:
        ValueError: no maps, or of other shapes: a subset of rows, pooled keys, cross-attention.
    """
    if not maps:
        raise ValueError("there are no maps to roll out")
    if not 0.0 <= residual < 1.0:
        raise ValueError(f"residual={residual} must be in [0, 1)")
    rollout: Tensor | None = None
    for name, weights in maps.items():
        batch, _, rows, keys = weights.shape
        if rows != keys or (rollout is not None and rollout.shape != (batch, rows, keys)):
            raise ValueError(
                f"{name}: weights {tuple(weights.shape)} cannot be rolled out; every layer has to "
                "attend from all N tokens to the same N"
            )
        mixed = (1.0 - residual) * weights.mean(dim=1)
        mixed = mixed + residual * torch.eye(rows, dtype=mixed.dtype, device=mixed.device)
        mixed = mixed / mixed.sum(-1, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny)
        rollout = mixed if rollout is None else mixed @ rollout
    assert rollout is not None
    return rollout
