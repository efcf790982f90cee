"""One softmax over a row and a column: of all of a map, or of one tile of its positions at a time.

A tile is a rectangle of queries with all keys of its rows and of its columns, so that its softmax
is final. Its scores are (rows, columns, W + H): those of the row first, then those of the column.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention.precision import score_dtype

# Scores of a tile, 4 MiB in float32.
TILE = 2**20
# Products with fewer rows are slow.
LEAST_SIDE = 8


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


class Rectangle(NamedTuple):
    """Rows and columns of the queries of a tile."""

    rows: slice
    columns: slice


def tile_sides(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a tile: nearly a square, all of a map that is small enough."""
    queries = max(1, TILE // (height + width))
    side = max(LEAST_SIDE, int(queries**0.5))
    rows = min(height, max(side, queries // max(width, 1)))
    columns = min(width, max(side, queries // rows))
    return rows, columns


class Group:
    """Some samples of a call (batch and heads flattened), in the layout and dtype of the products.

    Attributes:
        samples: which ones.
        rectangles: the queries of each tile.
        query: (samples, H, W, E).
        row_keys, row_values: (samples, H, W, E or Ev); column_keys, column_values: (samples, W, H,
            E or Ev).
    """

    def __init__(
        self,
        samples: slice,
        maps: Sequence[Tensor],
        key_mask: Tensor | None,
        scale: float,
    ) -> None:
        query, key, value = maps
        self.samples, self.scale = samples, scale
        self.query, self.row_keys, self.row_values = query, key, value
        self.column_keys = key.transpose(1, 2).contiguous()
        self.column_values = value.transpose(1, 2).contiguous()
        self.shown = None if key_mask is None else shown_by(key_mask)

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        height, width = self.query.shape[1:3]
        rows, columns = tile_sides(height, width)
        return [
            Rectangle(slice(y, min(y + rows, height)), slice(x, min(x + columns, width)))
            for y, x in product(range(0, height, rows), range(0, width, columns))
        ]

    def shown_to(self, part: Rectangle) -> Shown | None:
        """What the key mask shows to a rectangle."""
        if self.shown is None:
            return None
        rows, columns = part
        return Shown(
            self.shown.rows[:, rows],
            self.shown.columns[:, :, columns],
            self.shown.some[:, rows, columns],
        )

    def weights(self, part: Rectangle) -> Tensor:
        """The weights of a tile, (samples, rows, columns, W + H)."""
        rows, columns = part
        return joint_weights(
            self.query[:, rows, columns],
            self.row_keys[:, rows],
            self.column_keys[:, columns],
            self.shown_to(part),
            rows.start,
            self.scale,
        )


def groups(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> Iterator[Group]:
    """All samples, as many at once as share a tile; numbers in float32 at least."""
    heads, height, width = query.shape[1:4]
    dtype = score_dtype(query.dtype)
    flat = [x.flatten(0, 1) for x in (query, key, value)]
    count = max(1, TILE // (height * width * (height + width)))
    for first in range(0, len(flat[0]), count):
        samples = slice(first, min(first + count, len(flat[0])))
        mask = None
        if key_mask is not None:
            mask = key_mask[torch.arange(samples.start, samples.stop, device=query.device) // heads]
        yield Group(samples, [x[samples].to(dtype) for x in flat], mask, scale)


class Dropout:
    """What dropout multiplies the weights of a tile with: the same in each pass."""

    def __init__(self, dropout_p: float, seed: Tensor | None) -> None:
        self.dropout_p, self.seed = dropout_p, None if seed is None else int(seed)

    def kept(self, group: Group, part: Rectangle, weights: Tensor) -> Tensor | None:
        """0, or 1 / (1 - p), for each weight; None = no dropout."""
        if self.seed is None:
            return None
        height, width = group.query.shape[1:3]
        at = (group.samples.start * height + part.rows.start) * width + part.columns.start
        generator = torch.Generator(weights.device)
        generator.manual_seed(self.seed + at)
        drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout_p).to(weights.dtype).div_(1.0 - self.dropout_p)
