"""Tiles of criss-cross attention: rectangles of queries with all keys of their rows and columns.

So the softmax of a tile is final, and the products are large matrix products.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from cvattn.core.attention.criss_cross_formula import Shown, shown_by
from cvattn.core.attention.precision import score_dtype

# Scores of a tile, 2 MiB in float32.
TILE = 2**19
# Products with fewer rows are slow; so are those with an uneven number.
LEAST_SIDE = 16


def tile_sides(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a tile: all of a map that is small enough, else about as many of each."""
    queries = TILE // (height + width)
    if queries >= height * width:
        return height, width
    rows = min(height, max(LEAST_SIDE, LEAST_SIDE * round((queries**0.5) / LEAST_SIDE)))
    columns = min(width, max(LEAST_SIDE, queries // rows // LEAST_SIDE * LEAST_SIDE))
    return min(height, max(rows, queries // columns)), columns


class Group:
    """Some samples of a call (batch and heads flattened), in the layout and dtype of the products.

    Attributes:
        samples: which ones.
        query: (samples, H, W, E), times the scale.
        row_keys, row_values: (samples, H, W, E or Ev).
        column_keys, column_values: (samples, W, H, E or Ev).
        shown: what the key mask shows; None = everything.
    """

    def __init__(
        self, samples: slice, maps: Sequence[Tensor], key_mask: Tensor | None, scale: float
    ) -> None:
        query, key, value = maps
        self.samples, self.scale = samples, scale
        # Products copy what has another order of strides, as convolutions give it.
        self.query = query.contiguous()
        if scale != 1.0:
            self.query = self.query * scale
        self.row_keys, self.row_values = key.contiguous(), value.contiguous()
        self.column_keys, self.column_values = (
            x.transpose(1, 2).contiguous() for x in (key, value)
        )
        self.shown = None if key_mask is None else shown_by(key_mask)

    def tiles(self) -> Iterator["Tile"]:
        """One after the other. If there are several, there is one sample."""
        height, width = self.query.shape[1:3]
        rows, columns = tile_sides(height, width)
        for y, x in product(range(0, height, rows), range(0, width, columns)):
            yield Tile(self, slice(y, min(y + rows, height)), slice(x, min(x + columns, width)))


class Tile:
    """A rectangle of queries of a group.

    Of each pair of tensors here the first is (samples, rows, columns, W), of the keys of the rows,
    and the second (samples, columns, rows, H), of those of the columns: as products make them.
    """

    def __init__(self, group: Group, rows: slice, columns: slice) -> None:
        self.group, self.rows, self.columns = group, rows, columns
        self.own, self.where = (slice(None), rows, columns), (group.samples, rows, columns)

    def scores(self) -> tuple[Tensor, Tensor]:
        """The scores, -inf where a key is hidden."""
        group = self.group
        row, column = self.products(group.query, group.row_keys, group.column_keys)
        # The position itself is among the keys of its row already.
        count = self.rows.stop - self.rows.start
        column.diagonal(self.rows.start, -2, -1)[..., :count].fill_(float("-inf"))
        shown = self.shown
        if shown is not None:
            row.masked_fill_(~shown.rows, float("-inf"))
            column.masked_fill_(~shown.columns.transpose(1, 2), float("-inf"))
        return row, column

    @property
    def shown(self) -> Shown | None:
        """What the key mask shows to these queries."""
        shown = self.group.shown
        if shown is None:
            return None
        return Shown(
            shown.rows[:, self.rows], shown.columns[:, :, self.columns], shown.some[self.own]
        )

    def products(self, x: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """Of each query's vector in x with those of its row and those of its column."""
        x = x[self.own]
        row, column = by_row[:, self.rows], by_column[:, self.columns]
        return _bmm(x, row.mT), _bmm(x.transpose(1, 2), column.mT)

    def sums(self, row: Tensor, column: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """Of the vectors of row and column by these weights, (samples, rows, columns, width)."""
        found = _bmm(row, by_row[:, self.rows])
        return found.add_(_bmm(column, by_column[:, self.columns]).transpose(1, 2))

    def add_sums(
        self, to_rows: Tensor, to_columns: Tensor, row: Tensor, column: Tensor, x: Tensor
    ) -> None:
        """Add to each key the queries' vectors in x by these weights."""
        x = x[self.own]
        for total, weights, vectors in (
            (to_rows[:, self.rows], row, x),
            (to_columns[:, self.columns], column, x.transpose(1, 2)),
        ):
            total.flatten(0, 1).baddbmm_(weights.mT.flatten(0, 1), vectors.flatten(0, 1))

    @staticmethod
    def subtract(row: Tensor, column: Tensor, x: Tensor) -> None:
        """A number of each query, (samples, rows, columns), from all of its numbers."""
        row.sub_(x[..., None])
        column.sub_(x.transpose(1, 2)[..., None])


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


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

    def kept(self, tile: Tile) -> tuple[Tensor, Tensor] | None:
        """0, or 1 / (1 - p), for each weight; None = no dropout."""
        if self.seed is None:
            return None
        samples, height, width = tile.group.query.shape[:3]
        rows, columns = (part.stop - part.start for part in (tile.rows, tile.columns))
        at = (tile.group.samples.start * height + tile.rows.start) * width + tile.columns.start
        device, dtype = tile.group.query.device, tile.group.query.dtype
        generator = torch.Generator(device)
        generator.manual_seed(self.seed + at)
        shapes = (samples, rows, columns, width), (samples, columns, rows, height)
        row, column = (
            (torch.rand(shape, generator=generator, device=device) >= self.dropout_p)
            .to(dtype)
            .div_(1.0 - self.dropout_p)
            for shape in shapes
        )
        return row, column
