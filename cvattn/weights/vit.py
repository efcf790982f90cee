"""What the importers of other libraries' Vision Transformers share.

A ViT with its class token in front of the tokens has a row for it in the table of positions. Ours
needs none: one learned vector is enough, so the row is added to the token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvattn.models import VisionTransformer
from cvattn.weights.copying import emptied, set_parameter
from cvattn.weights.plain import refuse_options


def refuse_if(found: dict[str, bool], where: str = "") -> None:
    """Name what is there and has no counterpart."""
    refuse_options(found, f"the model uses {{}}{where}, which VisionTransformer here has not")


def one_for_all(name: str, values: list) -> Any:
    """The value that all layers share."""
    if len(set(values)) > 1:
        raise ValueError(f"{name}: the model has {sorted(set(values))}; ours has one for all")
    return values[0]


def empty_vit(num_classes: int, like: Tensor, **arguments: Any) -> VisionTransformer:
    """Ours, for the device and dtype of ``like``, to be filled; draws no random number."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # what is drawn is thrown away
        ours = VisionTransformer(num_classes, **arguments)
    emptied(ours.to(device=like.device, dtype=like.dtype))
    return ours


def copy_positions(ours: Any, token: nn.Parameter | None, table: nn.Parameter) -> None:
    """``token`` (1, 1, D) and ``table`` (1, N, D), or (1, 1 + N, D) with the token's own row."""
    own_row = table.shape[1] - ours.grid[0] * ours.grid[1]
    if token is not None:
        folded = token[0, 0] + table[0, 0] if own_row else token[0, 0]
        set_parameter(ours, "class_token", folded.detach().requires_grad_(token.requires_grad))
    rows = table[0, own_row:]
    set_parameter(ours.positions, "table", rows.detach().requires_grad_(table.requires_grad))
