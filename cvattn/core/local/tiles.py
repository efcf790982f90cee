"""A map cut into tiles, and tiles pasted into a map: each the other's derivative.

Left to autograd, each band of tiles would have a gradient of the whole map, of zeros but for its
own part; and torch's ``unfold`` has a backward pass that adds number by number.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class Run(NamedTuple):
    """Equal tiles along one axis: ``size`` long, one each ``step`` from ``start`` on."""

    start: int
    tiles: int
    step: int
    size: int

    @property
    def length(self) -> int:
        """Positions from the first to the last."""
        return (self.tiles - 1) * self.step + self.size


Runs = Sequence[Run]


def cut(x: Tensor, rows: Runs, columns: Runs) -> tuple[Tensor, ...]:
    """(B, heads, H, W, E) -> for each band (B * tiles, heads, n, E), the tile's positions in rows.

    A band is a run of rows and a run of columns; those of the first run of rows come first.
    """
    return _cut(x, rows, columns) if _plain(rows, columns) else Cut.apply(x, rows, columns)


def paste(parts: Sequence[Tensor], rows: Runs, columns: Runs, like: Tensor) -> Tensor:
    """The bands of a map, (B * tiles, heads, n, E) each, side by side -> (B, heads, H, W, E).

    Args:
        rows, columns: runs of tiles that do not overlap and leave nothing out.
        like: a map whose batch and order of strides the result has.
    """
    if not _plain(rows, columns):
        return Paste.apply(rows, columns, _layout(like), *parts)
    grids = (
        _as_grid(part, *band, like.shape[0])
        for part, band in zip(parts, product(rows, columns), strict=True)
    )
    bands = [grid.movedim(1, -2).flatten(3, 4).flatten(1, 2) for grid in grids]  # heads as in cut
    count = len(columns)
    strips = [torch.cat(bands[at : at + count], 2) for at in range(0, len(bands), count)]
    return torch.cat(strips, 1).movedim(-2, 1)


class Layout(NamedTuple):
    """What a map is like, but for its width: its batch, height, width, and its axes in memory."""

    batch: int
    height: int
    width: int
    order: tuple[int, ...]


def _layout(x: Tensor) -> Layout:
    # Largest stride first; axes of one position stand as they are.
    order = sorted(range(5), key=lambda axis: x.stride()[axis], reverse=True)
    return Layout(x.shape[0], x.shape[2], x.shape[3], tuple(order))


def _plain(rows: Runs, columns: Runs) -> bool:
    """Whether torch's own derivatives are as good.

    They are of one band of tiles side by side. Compilers fuse the plain form with what comes after.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    return len(rows) == len(columns) == 1 and _apart(rows, columns)


def _cut(x: Tensor, rows: Runs, columns: Runs) -> tuple[Tensor, ...]:
    parts = []
    if not _apart(rows, columns) and x.stride(-1) != 1:
        x = x.contiguous()  # each number is read several times
    for row, column in product(rows, columns):
        part = x.narrow(2, row.start, row.length).narrow(3, column.start, column.length)
        if row.step == row.size and column.step == column.size:
            part = part.unflatten(3, (column.tiles, -1)).unflatten(2, (row.tiles, -1))
            part = part.permute(0, 2, 4, 1, 3, 5, 6)
            parts.append(part.reshape(-1, x.shape[1], row.size * column.size, x.shape[-1]))
        else:
            part = part.unfold(2, row.size, row.step).unfold(3, column.size, column.step)
            # Heads beside each other in memory, as convolutions give them: much is copied, and so
            # in long pieces.
            part = part.permute(0, 2, 3, 5, 6, 1, 4)
            part = part.reshape(-1, row.size * column.size, x.shape[1], x.shape[-1])
            parts.append(part.transpose(1, 2))
    return tuple(parts)


def _apart(rows: Runs, columns: Runs) -> bool:
    """Whether no tiles overlap."""
    return all(run.step == run.size for run in (*rows, *columns))


def _as_grid(part: Tensor, row: Run, column: Run, batch: int) -> Tensor:
    """(B * tiles, heads, n, E) -> (B, heads, tiles, rows, tiles, columns, E)."""
    part = part.unflatten(2, (row.size, column.size))
    return part.unflatten(0, (batch, row.tiles, column.tiles)).permute(0, 3, 1, 4, 2, 5, 6)


def _paste(parts: Sequence[Tensor], rows: Runs, columns: Runs, layout: Layout) -> Tensor:
    """The sum of tiles where they overlap, 0 where there are none."""
    batch, height, width, order = layout
    shape = (batch, parts[0].shape[1], height, width, parts[0].shape[-1])
    apart = _apart(rows, columns)
    make = parts[0].new_empty if apart else parts[0].new_zeros
    if not apart:
        order = (0, 2, 3, 1, 4)  # sums are slow in another
    total = make([shape[axis] for axis in order])
    total = total.permute([order.index(axis) for axis in range(5)])
    for part, (row, column) in zip(parts, product(rows, columns), strict=True):
        grid = _as_grid(part, row, column, batch)
        # Parts of a tile that meet no other's same part.
        for y, x in product(range(0, row.size, row.step), range(0, column.size, column.step)):
            piece = grid[:, :, :, y : y + row.step, :, x : x + column.step]
            rest = Run(row.start + y, row.tiles, row.step, piece.shape[3])
            place = _strided(total, 2, rest)
            rest = Run(column.start + x, column.tiles, column.step, piece.shape[5])
            place = _strided(place, 4, rest)
            if apart:
                place.copy_(piece)
            else:
                place.add_(piece)
    return total


def _strided(x: Tensor, axis: int, run: Run) -> Tensor:
    """A view of an axis as (tiles, positions) of tiles that do not overlap."""
    x = x.narrow(axis, run.start, run.length).unfold(axis, run.size, run.step)
    return x.movedim(-1, axis + 1)


class Cut(Function):
    """(map, rows, columns) -> bands."""

    @staticmethod
    def forward(x, rows, columns):
        return _cut(x, rows, columns)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.runs = inputs
        ctx.layout = _layout(x)

    @staticmethod
    def backward(ctx, *grads):
        return Paste.apply(*ctx.runs, ctx.layout, *grads), None, None

    @staticmethod
    def jvp(ctx, tangent, *rest):
        return Cut.apply(tangent, *ctx.runs)

    @staticmethod
    def vmap(info, in_dims, x, rows, columns):
        parts = Cut.apply(x.movedim(in_dims[0], 0).flatten(0, 1), rows, columns)
        count = info.batch_size
        return tuple(part.unflatten(0, (count, -1)) for part in parts), (0,) * len(parts)


class Paste(Function):
    """(rows, columns, layout, *bands) -> map."""

    @staticmethod
    def forward(rows, columns, layout, *parts):
        return _paste(parts, rows, columns, layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.runs, ctx.layout = inputs[:2], inputs[2]

    @staticmethod
    def backward(ctx, grad):
        return (None, None, None, *Cut.apply(grad, *ctx.runs))

    @staticmethod
    def jvp(ctx, rows, columns, layout, *tangents):
        return Paste.apply(*ctx.runs, ctx.layout, *tangents)

    @staticmethod
    def vmap(info, in_dims, rows, columns, layout, *parts):
        count = info.batch_size
        moved = [
            (part.expand(count, *part.shape) if dim is None else part.movedim(dim, 0)).flatten(0, 1)
            for part, dim in zip(parts, in_dims[3:], strict=True)
        ]
        layout = layout._replace(batch=count * layout.batch)
        return Paste.apply(rows, columns, layout, *moved).unflatten(0, (count, -1)), 0
