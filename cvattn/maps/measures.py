"""What a set of attention weights says in a number or a map: entropy, distance, rollout."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cvattn.core.devices import widest_float


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, for each head: (B, heads, rows, keys) -> (heads,).

    0 = every query looks at one key; log(keys) = at all of them alike.
    """
    weights = weights.to(widest_float(weights.device))
    return torch.special.entr(weights).sum(-1).mean(dim=(0, 2))


def attention_distance(pictures: Tensor) -> Tensor:
    """How far each head looks: mean distance from a query to its keys, weighted, -> (heads,).

    In steps of the grid. Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), figure 7.

    Args:
        pictures: (B, heads, H * W, H, W), a picture for each query of the grid, as
            ``AttentionMaps.on_grid`` gives them. Rows of prefix tokens have no place: slice them
            off first. Pictures are divided by their sums, which prefix keys lessen.

    Raises:
        ValueError: another shape.
    """
    if pictures.ndim != 5 or pictures.shape[2] != pictures.shape[3] * pictures.shape[4]:
        raise ValueError(
            f"pictures have shape {tuple(pictures.shape)}; expected (batch, heads, H * W, H, W), "
            "one for each query of the grid, without prefix tokens"
        )
    height, width = pictures.shape[3:]
    y, x = torch.arange(height), torch.arange(width)
    weights = pictures.to(widest_float(pictures.device)).flatten(3)
    places = torch.cartesian_prod(y, x).to(weights)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return (weights * torch.cdist(places, places)).sum(-1).mean(dim=(0, 2))


def attention_rollout(maps: Mapping[str, Tensor], *, residual: float = 0.5) -> Tensor:
    """How much of each input token is in each output token, through all layers: (B, N, N).

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020): heads are averaged, each
    layer is mixed with the identity for its residual connection, and the layers are multiplied,
    first to last, in float32 at least. Rows sum to 1. With a class token first,
    ``rollout[:, 0, 1:]`` is its map over the grid.

    Args:
        maps: self-attention weights (B, heads, N, N) of the layers, first to last, as
            :func:`capture_attention` gives them for all rows.
        residual: share of the identity; 0.5 is the paper's.

    Raises:
        ValueError: no maps, or of other shapes: a subset of rows, pooled keys; cross-attention
            among them, also where it has as many keys as queries.
    """
    if not maps:
        raise ValueError("there are no maps to roll out")
    if not 0.0 <= residual < 1.0:
        raise ValueError(f"residual={residual} must be in [0, 1)")
    rollout: Tensor | None = None
    cross = sorted(getattr(maps, "cross", ()))
    if cross:
        raise ValueError(
            f"{', '.join(cross)}: keys of other tokens than the queries'; rollout is of the "
            "self-attention of one stack: capture_attention(model, layers=[...])"
        )
    for name, weights in maps.items():
        # Rounded to half precision after each layer, rows would soon no longer sum to 1.
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
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
