"""What the importers of other libraries' Vision Transformers share.

A ViT with a class token and registers in front of the tokens may have rows for them in the table of
positions. Ours needs none: one learned vector is enough, so the row is added to the token.
"""

from typing import Any

import torch
from torch import Tensor

from cvattn.models import VisionTransformer
from cvattn.weights.copying import emptied, set_parameter
from cvattn.weights.plain import refuse_options


def refuse_if(found: dict[str, bool], where: str = "") -> None:
    """Name what is there and has no counterpart."""
    refuse_options(found, f"the model uses {{}}{where}, which VisionTransformer here has not")


def one_for_all(name: str, values: list) -> Any:
    """The value that all layers share."""
    if len(set(values)) > 1:
        found = sorted(set(values), key=lambda value: (str(type(value)), value))
        raise ValueError(f"{name}: the model has {found}; ours has one for all")
    return values[0]


def empty_vit(num_classes: int, like: Tensor, **arguments: Any) -> VisionTransformer:
    """Ours, for the device and dtype of ``like``, to be filled; draws no random number."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # what is drawn is thrown away
        ours = VisionTransformer(num_classes, **arguments)
    emptied(ours.to(device=like.device, dtype=like.dtype))
    return ours


def copy_positions(
    ours: Any, token: Tensor | None, table: Tensor | None, registers: Tensor | None = None
) -> None:
    """``token`` (1, 1, D), ``registers`` (1, R, D), ``table`` (1, N, D) or with their rows first.

    Raises:
        ValueError: the table has rows for another number of tokens.
    """
    before = [each for each in (token, registers) if each is not None]
    own = 0
    if table is not None:
        places, count = ours.grid[0] * ours.grid[1], sum(each.shape[1] for each in before)
        own = table.shape[1] - places
        if own not in (0, count):
            raise ValueError(
                f"the table of positions has {table.shape[1]} rows; expected {places} for the "
                f"grid of {ours.grid}, or {places + count} with the tokens before it"
            )
        rows = table[0, own:]
        set_parameter(ours.positions, "table", rows.detach().requires_grad_(table.requires_grad))
    start = 0
    for name, given in (("class_token", token), ("registers", registers)):
        if given is None:
            continue
        end = start + given.shape[1]
        folded = given[0] + table[0, start:end] if own and table is not None else given[0]
        folded = folded[0] if name == "class_token" else folded
        set_parameter(ours, name, folded.detach().requires_grad_(given.requires_grad))
        start = end
