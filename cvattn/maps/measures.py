"""What a set of attention weights says in a number for each head: entropy, distance."""

import torch
from torch import Tensor

from cvattn.core.devices import widest_float


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, for each head: (B, heads, rows, keys) -> (heads,).

    0 = every query looks at one key; log(keys) = at all of them alike. As a penalty it has finite
    gradients, of weights that are 0 (masked) too.
    """
    weights = weights.to(widest_float(weights.device))
    logs = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return -(weights * logs).sum(-1).mean(dim=(0, 2))


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
