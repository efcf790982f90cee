"""Attention of each position to those nearest to it."""

from itertools import product

import torch
from torch import Tensor

from cvattn.core.attention.inputs import check_maps
from cvattn.core.local.bands import Band, banded_attention
from cvattn.core.local.inputs import check_neighborhood

# Sides of tiles, and the queries of a tile at which half of the time is not its products': fitted
# to times of windows of 3 x 3 to 13 x 13 and 1 x 31 on a map of 256 x 256, on one core.
_SIDES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)
_THIN = 72


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of each position to the window of positions about it, a sliding window.

    Hassani et al., "Neighborhood Attention Transformer" (2023), and with dilation Hassani & Shi
    (2022), as NATTEN computes them: near the border the window moves inwards, so that each query
    has exactly kh * kw keys; with dilation the positions whose coordinates leave the same
    remainders are a map of their own. Time and memory are linear in the number of positions.

    The specification is :func:`cvattn.core.attention.reference_attention` under
    :func:`cvattn.core.masks.neighborhood_mask_2d`.

    Args:
        query, key: (B, heads, H, W, E).
        value: (B, heads, H, W, Ev); Ev may differ from E.
        window: rows and columns, odd.
        dilation: step between the keys of a window, one for both axes or (rows, columns).
        key_mask: bool, (B, H, W), True = may be attended to.
        bias: (heads, 2 * kh - 1, 2 * kw - 1), added to the scores by the offset from query to key,
            in steps of the dilation, with 0 in the middle; NATTEN's ``rpb``.
        scale: factor on the scores; None = 1/sqrt(E).
        dropout_p: probability of dropping a weight, applied whenever it is > 0.

    Returns:
        (B, heads, H, W, Ev). What :func:`cvattn.core.attention.attention` says of rows that see
        nothing, NaN, precision and derivatives holds here.

    Raises:
        ValueError, TypeError: shapes, windows or masks that do not fit; a window that is larger
            than the map (times the dilation), as in NATTEN.
    """
    check_maps(query, key, value, key_mask)
    height, width = query.shape[2:4]
    steps = check_neighborhood((height, width), window, dilation)
    _check_bias(bias, query.shape[1], window)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return _undilated(q, k, v, window, mask, bias, scale, dropout_p)

    if steps == (1, 1):
        return attend(query, key, value, key_mask)
    strips = []
    for rows in _residues(height, steps[0]):
        parts = []
        for columns in _residues(width, steps[1]):
            q, k, v = (_class_maps(x, rows, columns, steps) for x in (query, key, value))
            mask = key_mask
            if mask is not None:
                mask = _class_maps(mask[:, None, :, :, None], rows, columns, steps)[:, 0, ..., 0]
            output = attend(q, k, v, mask)
            parts.append(output.unflatten(0, (query.shape[0], len(rows), len(columns))))
        strips.append(_interleaved(parts, 2, 5, width))  # (B, row classes, heads, h, W, Ev)
    return _interleaved(strips, 1, 3, height)


def _undilated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: tuple[int, int],
    key_mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    height, width = query.shape[2:4]

    def terms(row: Band, column: Band) -> tuple[Tensor | None, Tensor | None]:
        mask = None
        if row.allowed is not None or column.allowed is not None:
            own = [
                torch.ones(x.size, x.keys, dtype=torch.bool, device=query.device)
                if x.allowed is None
                else x.allowed
                for x in (row, column)
            ]
            both = own[0][:, None, :, None] & own[1][None, :, None, :]
            mask = both.flatten(2).flatten(0, 1)
        if bias is None:
            return mask, None
        y, x = (
            _offsets(one, size, query.device)
            for one, size in zip((row, column), window, strict=True)
        )
        found = bias[:, y[:, None, :, None], x[None, :, None, :]]
        return mask, found.flatten(3).flatten(1, 2)

    tile = tile_sides(window)
    return banded_attention(
        query,
        key,
        value,
        neighborhood_bands(height, window[0], tile[0], query.device),
        neighborhood_bands(width, window[1], tile[1], query.device),
        terms,
        key_mask=key_mask,
        scale=scale,
        dropout_p=dropout_p,
    )


def tile_sides(window: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a tile of queries: what costs least.

    Larger ones multiply more keys that are hidden, (rows + kh - 1) * (columns + kw - 1) a query;
    smaller ones have thin products.
    """

    def cost(sides: tuple[int, int]) -> float:
        keys = (sides[0] + window[0] - 1) * (sides[1] + window[1] - 1)
        return keys * (1 + _THIN / (sides[0] * sides[1]))

    return min(product(_SIDES, _SIDES), key=cost)


def neighborhood_bands(size: int, window: int, tile: int, device: torch.device) -> list[Band]:
    """Tiles along one axis: at each end one with the border's windows, equal ones between."""
    reach = window // 2
    # Each end has the positions whose windows moved, and one more: all of a window's keys.
    between = (size - 2 * reach - 2) // tile
    if between < 1:
        return [_band(0, size, 0, size, window, size, device)]
    rest = size - between * tile
    first, last = rest // 2, size - (rest - rest // 2)
    return [
        _band(0, first, 0, first + reach, window, size, device),
        _band(first, tile, first - reach, tile + 2 * reach, window, size, device, between),
        _band(last, size - last, last - reach, size - last + reach, window, size, device),
    ]


def _band(
    start: int,
    queries: int,
    key_start: int,
    keys: int,
    window: int,
    size: int,
    device: torch.device,
    tiles: int = 1,
) -> Band:
    """Tiles with the mask of the first of them; None where that hides nothing."""
    first = [window_start(at, window, size) - key_start for at in range(start, start + queries)]
    allowed = None
    if any(at > 0 or at + window < keys for at in first):
        # Computed there: a list that is brought to a GPU has to be waited for.
        begin = _window_starts(torch.arange(start, start + queries, device=device), window, size)
        begin = begin[:, None] - key_start
        key = torch.arange(keys, device=device)
        allowed = (key >= begin) & (key < begin + window)
    return Band(start, tiles, queries, key_start, keys, allowed)


def window_start(position: int, window: int, size: int) -> int:
    """The first key of a query's window: centred on it, or moved inwards at the border."""
    return min(max(position - window // 2, 0), size - window)


def _window_starts(positions: Tensor, window: int, size: int) -> Tensor:
    """:func:`window_start` of several."""
    return (positions - window // 2).clamp(0, size - window)


def _offsets(band: Band, window: int, device: torch.device) -> Tensor:
    """(queries, keys): where a key stands in an axis of the bias; anywhere, if it is hidden."""
    query, key = (torch.arange(n, device=device) for n in (band.size, band.keys))
    offset = key[None] + band.offset - query[:, None]
    return offset.clamp(1 - window, window - 1) + window - 1


def _residues(size: int, step: int) -> list[range]:
    """The remainders of positions by the step: those that have one position more, and the rest."""
    more = size % step
    return [one for one in (range(more), range(more, step)) if len(one) > 0]


def _class_maps(x: Tensor, rows: range, columns: range, steps: tuple[int, int]) -> Tensor:
    """(B, heads, H, W, E) -> (B * classes, heads, h, w, E): every step-th row and column."""
    for axis, classes, step in ((2, rows, steps[0]), (4, columns, steps[1])):
        size = x.shape[axis]
        length = (size - 1 - classes.start) // step + 1  # positions of each class
        whole = -(-size // step) * step
        if whole > size:
            x = torch.cat([x, x.narrow(axis, 0, whole - size)], axis)  # left out below
        x = x.unflatten(axis, (-1, step)).narrow(axis, 0, length)
        x = x.narrow(axis + 1, classes.start, len(classes))
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)


def _interleaved(parts: list[Tensor], classes: int, axis: int, size: int) -> Tensor:
    """Positions of the classes back in turn: the dimension ``classes`` goes into that before
    ``axis``, which becomes ``size`` long."""
    parts = [part.movedim(classes, axis) for part in parts]
    longest = parts[0].shape[axis - 1]
    for index, part in enumerate(parts):
        if part.shape[axis - 1] < longest:
            missing = part.narrow(axis - 1, 0, 1)
            parts[index] = torch.cat([part, missing], axis - 1)
    return torch.cat(parts, axis).flatten(axis - 1, axis).narrow(axis - 1, 0, size)


def _check_bias(bias: Tensor | None, heads: int, window: tuple[int, int]) -> None:
    if bias is None:
        return
    if not bias.is_floating_point():
        raise TypeError(f"bias is {bias.dtype}; expected a float tensor, added to the scores")
    wanted = (heads, 2 * window[0] - 1, 2 * window[1] - 1)
    if tuple(bias.shape) != wanted:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; expected (heads, 2 * kh - 1, 2 * kw - 1) = "
            f"{wanted} for window={window}"
        )
