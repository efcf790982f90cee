"""One softmax over a row and a column, as the formula says it: differentiable by autograd.

The scores of a position are those of its row first, W of them, then the H of its column.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention.precision import score_dtype


class Shown(NamedTuple):
    """What a ``key_mask`` shows to a rectangle of queries.

    Attributes:
        rows, columns: True = may be attended to, (..., R, 1, W) and (..., 1, C, H).
        some: queries that may attend to something, (..., R, C, 1).
    """

    rows: Tensor
    columns: Tensor
    some: Tensor


def sees_some(key_mask: Tensor) -> Tensor:
    """(..., H, W) -> (..., H, W, 1): positions whose row or column has a key to attend to."""
    return (key_mask.any(-1, keepdim=True) | key_mask.any(-2, keepdim=True))[..., None]


def shown_by(key_mask: Tensor) -> Shown:
    """Of all positions: (..., H, W) -> for R = H and C = W."""
    return Shown(key_mask.unsqueeze(-2), key_mask.mT.unsqueeze(-3), sees_some(key_mask))


def joint_weights(
    query: Tensor,
    row_keys: Tensor,
    column_keys: Tensor,
    shown: Shown | None,
    first_row: int,
    scale: float,
) -> Tensor:
    """softmax(scale * scores), (..., R, C, W + H).

    Args:
        query: (..., R, C, E), a rectangle of the map whose first row is ``first_row``.
        row_keys: (..., R, W, E), the keys of its rows.
        column_keys: (..., C, H, E), the keys of its columns.
    """
    query = query if scale == 1.0 else query * scale
    row = query @ row_keys.mT
    column = (query.transpose(-3, -2) @ column_keys.mT).transpose(-3, -2)
    rows, height = query.shape[-3], column_keys.shape[-2]
    # The position itself is among the keys of its row already.
    at = torch.arange(rows, device=query.device) + first_row
    hidden = at[:, None, None] == torch.arange(height, device=query.device)
    if shown is not None:
        row = row.masked_fill(~shown.rows, float("-inf"))
        hidden = hidden | ~shown.columns
    scores = torch.cat([row, column.masked_fill(hidden, float("-inf"))], -1)
    if shown is None:
        return scores.softmax(-1)
    # A row of -inf alone would be 0/0.
    return scores.masked_fill(~shown.some, 0.0).softmax(-1).masked_fill(~shown.some, 0.0)


def joint_output(weights: Tensor, row_values: Tensor, column_values: Tensor) -> Tensor:
    """(..., R, C, W + H) of weights, values as the keys are -> (..., R, C, Ev)."""
    width = row_values.shape[-2]
    column = weights[..., width:].transpose(-3, -2) @ column_values
    return weights[..., :width] @ row_values + column.transpose(-3, -2)


def attend_whole(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """All positions at once, by operators of torch that have every derivative."""
    shown = None if key_mask is None else shown_by(key_mask[:, None])
    dtype = query.dtype
    query, key, value = (x.to(score_dtype(dtype)) for x in (query, key, value))
    weights = joint_weights(query, key, key.transpose(-3, -2), shown, 0, scale)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return joint_output(weights, value, value.transpose(-3, -2)).to(dtype)
