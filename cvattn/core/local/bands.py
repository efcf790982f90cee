"""A map cut into bands of equal tiles, so that one call of attention computes all of a band.

Each axis is cut by itself. A band is a run of tiles of one size, whose keys lie in the same way
about their queries: a mask or bias of one tile is that of all.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.core.attention import attention
from cvattn.core.local.overlap import overlapping_tiles


class Band(NamedTuple):
    """Tiles of queries next to each other along one axis, and the keys that they may see.

    Attributes:
        start: the first query.
        tiles: how many there are.
        size: queries in each.
        key_start: the first key of the first tile; that of the next lies ``size`` further.
        keys: keys of each tile.
        offset: where the first key of a tile lies as seen from its first query.
        allowed: (size, keys), True = may attend; None = all.
    """

    start: int
    tiles: int
    size: int
    key_start: int
    keys: int
    allowed: Tensor | None = None

    @property
    def offset(self) -> int:
        return self.key_start - self.start


# The mask (queries, keys) and the bias (heads, queries, keys) of a tile, each None for none.
Terms = Callable[[Band, Band], tuple[Tensor | None, Tensor | None]]


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: list[Band],
    columns: list[Band],
    terms: Terms,
    *,
    key_mask: Tensor | None,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Attention of each tile to its keys: (B, heads, H, W, Ev)."""
    shown = None if key_mask is None else key_mask[:, None, :, :, None]
    strips = []
    for row in rows:
        parts = []
        for column in columns:
            mask, bias = terms(row, column)
            if bias is not None:
                bias = bias[None]
            if shown is not None:
                # Two masks would become one with an entry for each score; a bias stays small.
                if mask is not None:
                    bias = query.new_zeros(mask.shape) if bias is None else bias
                    bias = bias.masked_fill(~mask, float("-inf"))
                mask = _keys(shown, row, column).mT
            output = attention(
                _queries(query, row, column),
                _keys(key, row, column),
                _keys(value, row, column),
                attn_mask=mask,
                attn_bias=bias,
                scale=scale,
                dropout_p=dropout_p,
            )
            parts.append(_as_map(output, query.shape[0], row, column))
        strips.append(parts[0] if len(parts) == 1 else torch.cat(parts, 3))
    return strips[0] if len(strips) == 1 else torch.cat(strips, 2)


def _queries(x: Tensor, row: Band, column: Band) -> Tensor:
    """(B, heads, H, W, E) -> (B * tiles, heads, queries, E)."""
    x = x.narrow(2, row.start, row.tiles * row.size)
    x = x.narrow(3, column.start, column.tiles * column.size)
    x = x.unflatten(3, (column.tiles, column.size)).unflatten(2, (row.tiles, row.size))
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def _keys(x: Tensor, row: Band, column: Band) -> Tensor:
    """(B, heads, H, W, E) -> (B * tiles, heads, keys, E)."""
    if row.keys == row.size and column.keys == column.size:
        return _queries(x, row, column)
    x = x.narrow(2, row.key_start, (row.tiles - 1) * row.size + row.keys)
    x = x.narrow(3, column.key_start, (column.tiles - 1) * column.size + column.keys)
    return overlapping_tiles(x, (row.size, column.size), (row.keys, column.keys))


def _as_map(x: Tensor, batch: int, row: Band, column: Band) -> Tensor:
    """(B * tiles, heads, queries, E) -> the band's part of the map, (B, heads, h, w, E)."""
    x = x.unflatten(2, (row.size, column.size)).unflatten(0, (batch, row.tiles, column.tiles))
    return x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
