"""A map cut into bands of equal tiles, so that one call of attention computes all of a band.

Each axis is cut by itself. A band is a run of tiles of one size, whose keys lie in the same way
about their queries: a mask or bias of one tile is that of all.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from torch import Tensor

from cvattn.core.attention import attention
from cvattn.core.local.tiles import Run, cut, paste


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

    @property
    def queries(self) -> Run:
        return Run(self.start, self.tiles, self.size, self.size)

    @property
    def seen(self) -> Run:
        return Run(self.key_start, self.tiles, self.size, self.keys)


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
    given = [band.queries for band in rows], [band.queries for band in columns]
    seen = [band.seen for band in rows], [band.seen for band in columns]
    shown = None if key_mask is None else cut(key_mask[:, None, :, :, None], *seen)
    tiles = zip(cut(query, *given), cut(key, *seen), cut(value, *seen), strict=True)
    parts = []
    for index, (maps, band) in enumerate(zip(tiles, product(rows, columns), strict=True)):
        mask, bias = terms(*band)
        bias = None if bias is None else bias[None]
        if shown is not None:
            # Two masks would become one with an entry for each score; a bias stays small.
            if mask is not None:
                bias = query.new_zeros(mask.shape) if bias is None else bias
                bias = bias.masked_fill(~mask, float("-inf"))
            mask = shown[index].mT
        output = attention(*maps, attn_mask=mask, attn_bias=bias, scale=scale, dropout_p=dropout_p)
        parts.append(output)
    return paste(parts, *given, query)
