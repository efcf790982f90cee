"""Tiles of a map that overlap, and the sum of such tiles, each the other's derivative.

torch's ``unfold`` has these as well, but its backward pass adds number by number, and has no rule
for ``torch.func.vmap``.
"""

from itertools import product

import torch
from torch import Tensor
from torch.autograd import Function

Sides = tuple[int, int]


def overlapping_tiles(x: Tensor, step: Sides, tile: Sides) -> Tensor:
    """(B, heads, H, W, E) -> (B * tiles, heads, rows * columns, E), row by row.

    Args:
        step: rows and columns from a tile to the next.
        tile: rows and columns of a tile; the tiles end where the map does.
    """
    # Compilers fuse the plain form with what comes after.
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return _spread(x, step, tile) if tracing else _Spread.apply(x, step, tile)


def _spread(x: Tensor, step: Sides, tile: Sides) -> Tensor:
    x = x.unfold(2, tile[0], step[0]).unfold(3, tile[1], step[1])
    return x.permute(0, 2, 3, 1, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def _gather(x: Tensor, size: Sides, step: Sides, tile: Sides) -> Tensor:
    """The sum of tiles where they overlap: (B * tiles, heads, rows * columns, E) -> the map."""
    counts = [(size[i] - tile[i]) // step[i] + 1 for i in range(2)]
    heads, _, width = x.shape[1:]
    x = x.unflatten(2, tile).unflatten(0, (-1, *counts)).permute(0, 3, 1, 4, 2, 5, 6)
    # A map of whole steps, in which each part of a tile has a place of its own.
    over = [-(-tile[i] // step[i]) - 1 for i in range(2)]
    whole = [counts[i] + over[i] for i in range(2)]
    total = x.new_zeros(x.shape[0], heads, whole[0], step[0], whole[1], step[1], width)
    for row, column in product(range(over[0] + 1), range(over[1] + 1)):
        part = x[:, :, :, row * step[0] : (row + 1) * step[0]]
        part = part[:, :, :, :, :, column * step[1] : (column + 1) * step[1]]
        place = total[:, :, row : row + counts[0], : part.shape[3]]
        place[:, :, :, :, column : column + counts[1], : part.shape[5]] += part
    return total.flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]


class _Spread(Function):
    """(map, step, tile) -> tiles."""

    @staticmethod
    def forward(x, step, tile):
        return _spread(x, step, tile)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, step, tile = inputs
        ctx.settings = (tuple(x.shape[2:4]), step, tile)

    @staticmethod
    def backward(ctx, grad):
        return _Gather.apply(grad, *ctx.settings), None, None

    @staticmethod
    def jvp(ctx, tangent, *rest):
        return _Spread.apply(tangent, *ctx.settings[1:])

    @staticmethod
    def vmap(info, in_dims, x, step, tile):
        return _in_batch(_Spread, info, in_dims[0], x, step, tile)


class _Gather(Function):
    """(tiles, size of the map, step, tile) -> map."""

    @staticmethod
    def forward(x, size, step, tile):
        return _gather(x, size, step, tile)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings = inputs[1:]

    @staticmethod
    def backward(ctx, grad):
        return _Spread.apply(grad, *ctx.settings[1:]), None, None, None

    @staticmethod
    def jvp(ctx, tangent, *rest):
        return _Gather.apply(tangent, *ctx.settings)

    @staticmethod
    def vmap(info, in_dims, x, *settings):
        return _in_batch(_Gather, info, in_dims[0], x, *settings)


def _in_batch(function, info, dim, x, *settings):
    """The vmap rule: what is mapped over becomes part of the batch, which comes first in both."""
    found = function.apply(x.movedim(dim, 0).flatten(0, 1), *settings)
    return found.unflatten(0, (info.batch_size, -1)), 0
