"""Weights small enough for a page: 8 bits, on grids as fine as the page has room for."""

import math
import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cvattn.maps import AttentionMaps
from cvattn.maps.grids import Layout

POSITIONS, CHARACTERS, WORDS, TOKENS = "positions", "characters", "words", "tokens"  # of rows
FINEST = 256  # positions of a map: 16 x 16
_SIZES = (FINEST, 196, 144, 100, 81, 64, 49, 36, 25, 16)
# Of the weights of all images, deflated. As text they take a third more: 24 images with pictures
# of 224 pixels stay below 6 MB.
BYTES = 3_800_000


class Grids(NamedTuple):
    """(H, W) that the page shows of a block: of its queries, and those that a row lies on."""

    queries: tuple[int, int]
    drawn: tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """One block's weights for one image; a row is what the block's ``rows`` say (:func:`rows_of`).

    Attributes:
        shares: (heads, rows, positions) uint8; 255 = the row's largest weight on the grid.
        peaks: (heads, rows) float32, that largest weight.
        prefix: (heads, rows) float32, what the row gives to prefix tokens; 0 for words.
    """

    shares: np.ndarray
    peaks: np.ndarray
    prefix: np.ndarray


def rows_of(layout: Layout) -> str:
    """What the rows belong to that the page has of a block.

    Positions of the map, with prefix tokens before them; ``WORDS``, keys that lie on no grid, each
    with what the positions give to it; or ``TOKENS``, queries that lie on none.
    """
    if layout.query_grid is None:
        return TOKENS
    return WORDS if layout.key_grid is None else POSITIONS


def full_grids(layout: Layout) -> Grids:
    """The grids that the block has; keys that were pooled count as spread over the queries'."""
    queries = layout.query_grid or layout.key_grid
    drawn = queries if layout.kv_pool > 1 else layout.key_grid or queries
    assert queries is not None  # a layout has one of them
    assert drawn is not None
    return Grids(queries, drawn)


def choose_grids(maps: AttentionMaps, num_images: int) -> dict[str, Grids]:
    """Each block's grids: its own, or the finest that keep all images within ``BYTES``.

    What deflating brings depends on the weights (those of windows are mostly 0), so it is measured
    on this image.
    """
    deflated = 0.0  # share of the bytes, on the grids that were tried last
    for most in _SIZES:
        grids = {}
        for name in maps.layout:
            queries, drawn = full_grids(maps.layout[name])
            grids[name] = Grids(at_most(queries, most), at_most(drawn, most))
        size = num_images * sum(_bytes(maps, name, grids[name]) for name in grids)
        if size * deflated > BYTES:
            continue
        shares = b"".join(seen(maps, name, grids[name]).shares.tobytes() for name in grids)
        deflated = len(zlib.compress(shares)) / max(1, len(shares))
        if size * deflated <= BYTES:
            break
    return grids


def _bytes(maps: AttentionMaps, name: str, grids: Grids) -> int:
    (_, heads, rows, keys), layout = maps[name].shape, maps.layout[name]
    shown = {
        POSITIONS: layout.num_prefix_tokens + math.prod(grids.queries),
        WORDS: keys,
        TOKENS: rows,
    }
    return heads * shown[rows_of(layout)] * math.prod(grids.drawn)


def at_most(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """The grid, or one of about its shape with no more than ``most`` positions."""
    height, width = grid
    if height * width <= most:
        return grid
    factor = math.sqrt(most / (height * width))
    h = min(max(1, round(height * factor)), most)
    return h, min(max(1, round(width * factor)), most // h)


def seen(maps: AttentionMaps, name: str, grids: Grids) -> Seen:
    """A block's weights of the first image, on the grids that the page shows."""
    layout = maps.layout[name]
    if rows_of(layout) == WORDS:
        # The mean of its cells, so that a position still shares 1 between its words.
        found = in_bytes(averaged(maps.of_keys(name)[0].cpu().double(), grids.drawn))
        return replace(found, prefix=np.zeros_like(found.prefix))
    full = full_grids(layout)
    # Without queries on a grid, all rows stay as they are.
    prefix = layout.num_prefix_tokens if layout.query_grid else maps[name].shape[2]
    # Head by head: large maps in float64 take much memory.
    pooled = [
        coarser(head.cpu().double(), full, grids, prefix) for head in maps.on_grid(name)[0].split(1)
    ]
    return in_bytes(torch.cat(pooled))


def in_bytes(pictures: Tensor) -> Seen:
    """(heads, rows, H, W), float64 -> what the page carries of them."""
    shares = pictures.flatten(2)
    peaks = shares.amax(-1)
    scaled = (shares / peaks.clamp_min(1e-300)[..., None] * 255).round()
    return Seen(
        scaled.to(torch.uint8).numpy(force=True),
        peaks.float().numpy(force=True),
        (1 - shares.sum(-1)).clamp_min(0).float().numpy(force=True),
    )


def coarser(weights: Tensor, full: Grids, grids: Grids, prefix: int = 0) -> Tensor:
    """(heads, prefix + H*W, H, W) -> (heads, prefix + h*w, h, w): mean queries, summed keys."""
    if grids == full:
        return weights
    keys = weights
    if grids.drawn != full.drawn:
        rows, columns = _both_overlaps(full.drawn, grids.drawn, weights)
        keys = rows @ weights @ columns.mT
    if grids.queries == full.queries or prefix == weights.shape[1]:
        return keys
    queries = keys[:, prefix:].unflatten(1, full.queries).movedim((1, 2), (-2, -1))
    mean = averaged(queries, grids.queries).movedim((-2, -1), (1, 2))
    return torch.cat([keys[:, :prefix], mean.flatten(1, 2)], dim=1)


def averaged(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., H, W) -> (..., h, w): the mean of what lies in each cell."""
    full = (values.shape[-2], values.shape[-1])
    if grid == full:
        return values
    rows, columns = _both_overlaps(full, grid, values)
    return rows @ values @ columns.mT / (math.prod(full) / math.prod(grid))


def _both_overlaps(
    fine: tuple[int, int], coarse: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    return _overlaps(fine[0], coarse[0], like), _overlaps(fine[1], coarse[1], like)


def _overlaps(fine: int, coarse: int, like: Tensor) -> Tensor:
    """(coarse, fine): how much of each fine cell lies in each coarse one; columns sum to 1."""
    edges = torch.arange(coarse + 1, dtype=like.dtype, device=like.device) * (fine / coarse)
    cells = torch.arange(fine, dtype=like.dtype, device=like.device)
    upper = torch.minimum(edges[1:, None], cells + 1)
    lower = torch.maximum(edges[:-1, None], cells)
    return (upper - lower).clamp_min(0)
