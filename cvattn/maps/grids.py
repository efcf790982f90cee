"""Where queries and keys lie: from positions in a row to positions on a picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """How the positions of an attention block lie on its map.

    Attributes:
        query_grid: (H, W) of the queries, row by row.
        key_grid: (H, W) of the keys: the same, or smaller where keys are pooled.
        num_prefix_tokens: queries and keys before those of the grid (a class token, registers).
        kv_pool: side of the square that a key was pooled from; 1 = not pooled.
    """

    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    num_prefix_tokens: int = 0
    kv_pool: int = 1


def token_layout(
    model: nn.Module,
    name: str,
    queries: int,
    keys: int,
    grids: Mapping[nn.Module, tuple[int, int]],
) -> Layout | None:
    """Of a token block inside a network that knows its grid; None where the counts do not agree.

    A network says it by ``grid`` and ``num_prefix_tokens``; timm's ViTs have the former in
    ``patch_embed.grid_size``, unless :func:`watch_grids` saw another.
    """
    path = name.split(".")
    for end in range(len(path), -1, -1):
        around = model.get_submodule(".".join(path[:end]))
        embed: Any = getattr(around, "patch_embed", None)
        grid = getattr(around, "grid", None)
        if grid is None:
            grid = grids[embed] if embed in grids else getattr(embed, "grid_size", None)
        if grid is None:
            continue
        prefix = getattr(around, "num_prefix_tokens", 0)
        if queries == keys == prefix + grid[0] * grid[1]:
            return Layout(tuple(grid), tuple(grid), prefix)
        return None
    return None


def watch_grids(model: nn.Module, grids: dict[nn.Module, tuple[int, int]]) -> Callable[[], None]:
    """Note the grid of each pass where images may be of any size; what is returned ends it.

    timm's patch embeddings then (``dynamic_img_size``) give (B, H, W, D).
    """

    def note(embed: nn.Module, _: tuple, output: Tensor) -> None:
        if output.ndim == 4:
            grids[embed] = (output.shape[1], output.shape[2])

    embeds = [
        getattr(around, "patch_embed", None)
        for around in model.modules()
        if getattr(around, "dynamic_img_size", False)
    ]
    handles = [e.register_forward_hook(note) for e in embeds if isinstance(e, nn.Module)]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def spread(weights: Tensor, layout: Layout) -> Tensor:
    """(..., keys) -> (..., H, W) of the query grid; a pooled key's share goes to its positions."""
    height, width = layout.query_grid
    on_keys = weights[..., layout.num_prefix_tokens :].unflatten(-1, layout.key_grid)
    if layout.kv_pool == 1:
        return on_keys
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
