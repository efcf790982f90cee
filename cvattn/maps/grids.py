"""Where queries and keys lie: from positions in a row to positions on a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cvattn.maps.running import Frame

Grid = tuple[int, int]
# Tokens before a grid, where their number is not said: a class token and four registers; a class
# token and one of distillation.
_MOST_PREFIX, _FEW_PREFIX = 5, 2


@dataclass(frozen=True)
class Layout:
    """How the positions of an attention block lie on its map.

    Attributes:
        query_grid: (H, W) of the queries, row by row; None where they are no map.
        key_grid: (H, W) of the keys: the same, smaller where keys are pooled, another map's; None
            where they are no map (words).
        num_prefix_tokens: queries and keys before those of the grid (a class token, registers).
        kv_pool: side of the square that a key was pooled from; 1 = not pooled.
    """

    query_grid: Grid | None
    key_grid: Grid | None
    num_prefix_tokens: int = 0
    kv_pool: int = 1


def find_layout(
    frames: Sequence[Frame], queries: int, keys: int, *, is_cross: bool, given: Grid | None
) -> Layout | None:
    """The layout of a call from what is around it; None where nothing there agrees.

    In this order: what a network says (``grid`` and ``num_prefix_tokens``; timm's
    ``patch_embed``), a map that a module around was given and that has as many positions,
    ``given``, the caller's, what a convolution gave (a ViT's patches, behind up to five tokens),
    an image and a patch size that divides it (up to two).

    Args:
        frames: the running modules, innermost last.
        queries, keys: how many there are.
        is_cross: the keys are known to come from other tokens than the queries; else they do where
            there are others, unless a map's positions were pooled to as many.
    """
    if not is_cross and keys == queries:
        for grid, prefix in _candidates(frames, queries, given):
            return Layout(grid, grid, prefix)
        return None
    for grid in () if is_cross else maps_given_to(frames):
        pool = _pool(grid, keys) if grid[0] * grid[1] == queries else 0
        if pool:
            return Layout(grid, (grid[0] // pool, grid[1] // pool), kv_pool=pool)
    for grid in maps_given_to(frames, as_tokens=False):
        if grid[0] * grid[1] == queries:
            return Layout(grid, None)
    for grid, prefix in _candidates(frames, keys, given):
        return Layout(None, grid, prefix)
    return None


def _candidates(
    frames: Sequence[Frame], tokens: int, given: Grid | None
) -> Iterator[tuple[Grid, int]]:
    """Grids of as many tokens, and how many of these come before the grid."""
    for frame in reversed(frames):
        yield from _said(frame, tokens)
    for grid in maps_given_to(frames):
        if grid[0] * grid[1] == tokens:
            yield grid, 0
    if given is not None and given[0] * given[1] <= tokens:
        yield given, tokens - given[0] * given[1]
    patches = (grid for frame in reversed(frames) for grid in reversed(frame.conv_grids))
    guesses = [(grid, _MOST_PREFIX) for grid in patches]
    guesses += [(grid, _FEW_PREFIX) for grid in _divisions(frames)]
    for grid, most in guesses:
        positions = grid[0] * grid[1]
        if positions <= tokens <= positions + min(most, positions - 1):
            yield grid, tokens - positions


def _said(frame: Frame, tokens: int) -> Iterator[tuple[Grid, int]]:
    """What a network says of itself; in this pass its convolutions may have seen other images."""
    module: Any = frame.module
    said = getattr(module, "grid", None)
    if said is None:
        said = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if not isinstance(said, (tuple, list)) or len(said) != 2:
        return
    prefix = getattr(module, "num_prefix_tokens", 0)
    for height, width in (*reversed(frame.conv_grids), said):
        if prefix + height * width == tokens:
            yield (int(height), int(width)), prefix


def maps_given_to(frames: Sequence[Frame], *, as_tokens: bool = True) -> Iterator[Grid]:
    """(H, W) of maps that modules were given, from the innermost on; channels first or last.

    Args:
        as_tokens: tokens (B, N, C) count as one if N is what is left of a convolution's map, halved
            some times.
    """
    images = [shape for frame in frames[:1] for shape in frame.shapes if len(shape) == 4]
    for frame in reversed(frames):
        for shape in frame.shapes:
            if len(shape) == 4 and frame is frames[0]:
                yield shape[2], shape[3]  # images have their channels first
            elif len(shape) == 4:
                readings = [(shape[2], shape[3]), (shape[1], shape[2])]
                if images:  # rather the one that is shaped as the image
                    readings.sort(key=lambda grid: _distortion(grid, images[0]))
                yield from readings
            elif len(shape) == 3 and as_tokens:
                for outer in frames:
                    for height, width in outer.conv_grids[:1]:
                        yield from _halved(height, width, shape[1])


def _distortion(grid: Grid, image: Sequence[int]) -> float:
    """How much wider or higher than the image (B, C, H, W) a grid is."""
    sides = (grid[0] * image[3], grid[1] * image[2])
    return max(sides) / max(min(sides), 1)


def _halved(height: int, width: int, positions: int) -> Iterator[Grid]:
    while height * width > positions and min(height, width) > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width == positions:
        yield height, width


def _divisions(frames: Sequence[Frame]) -> Iterator[Grid]:
    """The image cut into squares of each size that divides it."""
    for shape in frames[0].shapes[:1] if len(frames) > 1 else ():
        if len(shape) == 4:
            height, width = shape[2:]
            for side in range(2, min(height, width) + 1):
                if height % side == width % side == 0:
                    yield height // side, width // side


def _pool(grid: Grid, keys: int) -> int:
    """Side of the squares that cover the grid with as many keys; 0 = there is none."""
    for side in range(2, max(grid) + 1):
        if grid[0] % side == grid[1] % side == 0 and grid[0] * grid[1] == keys * side * side:
            return side
    return 0


def spread(weights: Tensor, layout: Layout) -> Tensor:
    """(..., keys) -> (..., H, W) of the query grid; a pooled key's share goes to its positions."""
    assert layout.key_grid is not None
    on_keys = weights[..., layout.num_prefix_tokens :].unflatten(-1, layout.key_grid)
    if layout.kv_pool == 1:
        return on_keys
    assert layout.query_grid is not None
    height, width = layout.query_grid
    rows = _members(height, layout.kv_pool, weights)
    columns = _members(width, layout.kv_pool, weights)
    return rows.mT @ on_keys @ columns


def _members(size: int, pool: int, like: Tensor) -> Tensor:
    """(keys, positions): the share of each position in the pooled key over it, along one axis."""
    positions = like.new_zeros(-(-size // pool), size)
    for key, row in enumerate(positions):
        inside = row[key * pool : (key + 1) * pool]
        inside.fill_(1 / len(inside))
    return positions
