"""All the attention weights of some images, small enough for a page: 8 bits, on coarse grids."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.blocks import MapAttention
from cvattn.maps import (
    AttentionMaps,
    attention_distance,
    attention_entropy,
    attention_rollout,
    capture_attention,
)
from cvattn.maps.grids import Layout

POSITIONS = 256  # of a map, at most: 16 x 16
# Of all weights together, a byte each: deflated and written as text they take about as much.
BYTES = 5_000_000
ROLLOUT = "rollout"


@dataclass(frozen=True)
class Block:
    """An attention block as the page shows it.

    Attributes:
        name: of the module; ``ROLLOUT`` for all layers of a ViT multiplied.
        grid: (H, W) that is shown, of queries and keys alike.
        full: (H, W) that the block has; larger than ``grid`` where weights were pooled.
        num_prefix_tokens: queries before those of the grid.
        reads: queries are the characters of the answer, and none of the grid.
        gamma: of a SAGAN block, else None.
        entropy, distance: for each head, over all images; nats, steps of ``full``. Characters are
            no distance away from anything: none then.
    """

    name: str
    grid: tuple[int, int]
    full: tuple[int, int]
    num_prefix_tokens: int
    num_heads: int
    gamma: float | None
    entropy: list[float]
    distance: list[float]
    reads: bool = False


@dataclass(frozen=True)
class Seen:
    """One block's weights for one image; a row is a query: prefix tokens first, then the grid; or
    the characters.

    Attributes:
        shares: (heads, rows, keys) uint8; 255 = the row's largest weight on the grid.
        peaks: (heads, rows) float32, that largest weight.
        prefix: (heads, rows) float32, what the row gives to prefix tokens.
    """

    shares: np.ndarray
    peaks: np.ndarray
    prefix: np.ndarray


@dataclass(frozen=True)
class AllWeights:
    """``seen[image][block]``, blocks in order."""

    blocks: list[Block]
    seen: list[list[Seen]]


def collect(network: nn.Module, images: Tensor, layers: Iterable[str] | None = None) -> AllWeights:
    """Run the network on each image and keep what its blocks attend to.

    Args:
        network: in eval mode.
        images: (B, C, H, W), normalised.
        layers: names of the blocks; None = all.

    Raises:
        ValueError: no attention block with a grid; unknown names.
    """
    kept: list[list[Seen]] = []
    measures: dict[str, list[tuple[Tensor, Tensor]]] = {}
    layouts: dict[str, Layout] = {}
    grids: dict[str, tuple[int, int]] = {}
    for image in images.split(1):
        with torch.no_grad(), capture_attention(network, layers) as maps:
            network(image)
        with_rollout(maps)
        if not layouts:
            layouts = dict(maps.layout)
            if not layouts:
                raise ValueError(f"the attention of {type(network).__name__} lies on no grid")
            grids = choose_grids(maps, len(images))
        kept.append([_seen(maps, name, grids[name]) for name in layouts])
        for name, layout in layouts.items():
            pictures = maps.on_grid(name)[:, :, layout.num_prefix_tokens :]
            measures.setdefault(name, []).append(
                (attention_entropy(maps[name]), attention_distance(pictures))
            )
    blocks = []
    for name, layout in layouts.items():
        entropy, distance = (
            torch.stack(values).mean(0) for values in zip(*measures[name], strict=True)
        )
        blocks.append(
            Block(
                name=name,
                grid=grids[name],
                full=layout.query_grid,
                num_prefix_tokens=layout.num_prefix_tokens,
                num_heads=len(entropy),
                gamma=_gamma(network, name),
                entropy=entropy.tolist(),
                distance=distance.tolist(),
            )
        )
    return AllWeights(blocks, kept)


def with_rollout(maps: AttentionMaps) -> None:
    """Add ``ROLLOUT`` beside the layers, where there are several on one grid of tokens."""
    layouts = set(maps.layout.values())
    if len(maps.layout) > 1 and len(layouts) == 1 and next(iter(layouts)).kv_pool == 1:
        maps[ROLLOUT] = attention_rollout({name: maps[name] for name in maps.layout})[:, None]
        (maps.layout[ROLLOUT],) = layouts


def choose_grids(maps: AttentionMaps, num_images: int) -> dict[str, tuple[int, int]]:
    """Each block's grid: its own, or the finest that keeps all of it within the page."""
    for most in (POSITIONS, 196, 144, 100, 64, 49, 36, 25, 16):
        grids = {name: _at_most(layout.query_grid, most) for name, layout in maps.layout.items()}
        shares = sum(maps[name].shape[1] * math.prod(grid) ** 2 for name, grid in grids.items())
        if shares * num_images <= BYTES:
            break
    return grids


def _at_most(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """The grid, or one of about its shape with no more than ``most`` positions."""
    height, width = grid
    if height * width <= most:
        return grid
    factor = math.sqrt(most / (height * width))
    h = min(max(1, round(height * factor)), most)
    return h, min(max(1, round(width * factor)), most // h)


def _seen(maps: AttentionMaps, name: str, grid: tuple[int, int]) -> Seen:
    layout = maps.layout[name]
    weights = maps.on_grid(name)[0].cpu().double()  # (heads, prefix + queries, H, W)
    if grid != layout.query_grid:
        weights = coarser(weights, layout, grid)
    return in_bytes(weights)


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


def coarser(weights: Tensor, layout: Layout, grid: tuple[int, int]) -> Tensor:
    """(heads, prefix + H*W, H, W) -> (heads, prefix + h*w, h, w): mean queries, summed keys."""
    (height, width), prefix = layout.query_grid, layout.num_prefix_tokens
    rows, columns = _overlaps(height, grid[0], weights), _overlaps(width, grid[1], weights)
    keys = rows @ weights @ columns.mT
    queries = keys[:, prefix:].unflatten(1, (height, width))
    area = (height / grid[0]) * (width / grid[1])
    mean = torch.einsum("yi,xj,hijkl->hyxkl", rows, columns, queries) / area
    return torch.cat([keys[:, :prefix], mean.flatten(1, 2)], dim=1)


def _overlaps(fine: int, coarse: int, like: Tensor) -> Tensor:
    """(coarse, fine): how much of each fine cell lies in each coarse one; columns sum to 1."""
    edges = torch.arange(coarse + 1, dtype=like.dtype, device=like.device) * (fine / coarse)
    cells = torch.arange(fine, dtype=like.dtype, device=like.device)
    upper = torch.minimum(edges[1:, None], cells + 1)
    lower = torch.maximum(edges[:-1, None], cells)
    return (upper - lower).clamp_min(0)


def _gamma(network: nn.Module, name: str) -> float | None:
    block = dict(network.named_modules()).get(name)
    gamma = block.gamma if isinstance(block, MapAttention) else None
    return None if gamma is None else float(gamma.detach())
