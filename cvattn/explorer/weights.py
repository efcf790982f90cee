"""All the attention weights of some images, and what the page says of each block."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.blocks import MapAttention
from cvattn.explorer.names import follow_each_other, short_names
from cvattn.explorer.pooling import (
    POSITIONS,
    WORDS,
    Grids,
    Seen,
    choose_grids,
    full_grids,
    rows_of,
    seen,
)
from cvattn.maps import (
    AttentionMaps,
    attention_distance,
    attention_entropy,
    attention_rollout,
    capture_attention,
)
from cvattn.maps.grids import Layout

ROLLOUT = "rollout"
_NOTHING = 1e-30  # Swin adds -100 to the scores of what lies across a border of its map


@dataclass(frozen=True)
class Block:
    """An attention block as the page shows it.

    Attributes:
        name: of the module; ``ROLLOUT`` for all layers of a ViT multiplied.
        label: a short one.
        kind: "self", "window 7 × 7" and the like where no query sees all keys, or "cross".
        rows: what a row of weights belongs to: a query among the positions of the image, one of the
            characters of an answer, one of the words that positions attend to, or another token
            that attends to positions.
        grid: (H, W) of the queries that is shown; where they lie on none, that of the keys.
        drawn: (H, W) that a row lies on: of the keys, or of the queries that attend to a word.
        full: (H, W) that the block has; larger than ``grid`` where weights were pooled.
        num_prefix_tokens: queries before those of the grid.
        gamma: of a SAGAN block, else None.
        entropy, distance: for each head, over all images; nats, steps of ``full``. No distance
            where queries and keys lie on different grids.
        words: names of the rows that are words or tokens.
    """

    name: str
    label: str
    kind: str
    rows: str
    grid: tuple[int, int]
    drawn: tuple[int, int]
    full: tuple[int, int]
    num_prefix_tokens: int
    num_heads: int
    gamma: float | None
    entropy: list[float]
    distance: list[float]
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AllWeights:
    """``seen[image][block]``, blocks in order; names of the blocks whose queries lie on no grid."""

    blocks: list[Block]
    seen: list[list[Seen]]
    without_grid: list[str] = field(default_factory=list)


def collect(
    network: nn.Module,
    images: Tensor,
    layers: Iterable[str] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    forward: Callable[[Tensor], Any] | None = None,
    words: Sequence[str] | None = None,
) -> AllWeights:
    """Run the network on each image and keep what its blocks attend to.

    Args:
        network: in eval mode.
        images: (B, C, H, W), normalised.
        layers: names of the blocks; None = all.
        grid: (H, W) of tokens whose grid is not found.
        forward: runs it on one image (1, C, H, W); the network itself if None.
        words: names of the keys that lie on no grid; their numbers if None.

    Raises:
        ValueError: no attention block with a grid; unknown names; another number of words.
    """
    kept: list[list[Seen]] = []
    entropies: dict[str, list[Tensor]] = {}
    distances: dict[str, list[Tensor]] = {}
    facts: dict[str, tuple[Layout, Grids, str]] = {}
    for image in images.split(1):
        with torch.no_grad(), capture_attention(network, layers, grid=grid) as maps:
            (forward or network)(image)
        with_rollout(maps)
        if not facts:
            if not maps.layout:
                raise ValueError(f"the attention of {type(network).__name__} lies on no grid")
            named = _names_of_rows(maps, words)
            chosen = choose_grids(maps, len(images))
            facts = {
                name: (maps.layout[name], grids, kind_of(maps, name))
                for name, grids in chosen.items()
            }
            without_grid = [name for name in maps if name not in maps.layout]
        kept.append([seen(maps, name, chosen[name]) for name in chosen])
        for name in facts:
            entropies.setdefault(name, []).append(_by_head(attention_entropy, maps[name]))
            layout = maps.layout[name]
            if (
                layout.query_grid
                and layout.query_grid == full_grids(layout).drawn
                and layout.key_grid
            ):
                pictures = maps.on_grid(name)[:, :, layout.num_prefix_tokens :]
                distances.setdefault(name, []).append(_by_head(attention_distance, pictures))
    labels = dict(zip(names := [n for n in facts if n != ROLLOUT], short_names(names), strict=True))
    blocks = [
        Block(
            name=name,
            label=labels.get(name, name),
            kind=kind,
            rows=rows_of(layout),
            grid=grids.queries,
            drawn=grids.drawn,
            full=full_grids(layout).queries,
            num_prefix_tokens=layout.num_prefix_tokens if layout.query_grid else 0,
            num_heads=len(entropies[name][0]),
            gamma=_gamma(network, name),
            entropy=_mean(entropies[name]),
            distance=_mean(distances.get(name, [])),
            words=named.get(name, []),
        )
        for name, (layout, grids, kind) in facts.items()
    ]
    return AllWeights(blocks, kept, without_grid)


def with_rollout(maps: AttentionMaps) -> None:
    """Add ``ROLLOUT`` beside the layers, where they are one stack on one grid of tokens."""
    layouts, names = set(maps.layout.values()), list(maps.layout)
    if len(names) < 2 or len(layouts) > 1 or maps.cross & maps.layout.keys():
        return
    if any(len(maps.runs.get(name, ())) > 1 for name in names):  # a shared layer has only its last
        return
    (layout,) = layouts
    if layout.kv_pool == 1 and layout.query_grid == layout.key_grid and follow_each_other(names):
        maps[ROLLOUT] = attention_rollout({name: maps[name] for name in names})[:, None]
        maps.layout[ROLLOUT] = layout


def kind_of(maps: AttentionMaps, name: str) -> str:
    """Whether it is self-attention, to all positions or some, or attention to something else."""
    if name in maps.cross or rows_of(maps.layout[name]) != POSITIONS:
        return "cross"
    layout, weights = maps.layout[name], maps[name][0]
    prefix = layout.num_prefix_tokens
    some = slice(prefix, None, weights.shape[1] // 64 | 1)  # queries, not all in one column
    reached = (weights[:, some, prefix:] > _NOTHING).any(0)  # (queries, keys)
    counts = reached.sum(-1)
    most = int(counts.max())
    if most == reached.shape[-1] or layout.key_grid is None:
        return "self"
    ys, xs = reached[counts.argmax()].unflatten(0, layout.key_grid).nonzero(as_tuple=True)
    height, width = (int(places.max() - places.min()) + 1 for places in (ys, xs))
    # Of a plain window; a grid over the map, a cross and the like have holes.
    return f"window {height} × {width}" if height * width == most else f"self, {most} keys each"


def _names_of_rows(maps: AttentionMaps, words: Sequence[str] | None) -> dict[str, list[str]]:
    """Of blocks whose rows are words or other tokens: each by its name, or else its number."""
    named: dict[str, list[str]] = {}
    taken = words is None
    for name, layout in maps.layout.items():
        rows = rows_of(layout)
        if rows == POSITIONS:
            continue
        count = maps[name].shape[-1 if rows == WORDS else -2]
        if words is not None and len(words) == count:
            named[name], taken = [*map(str, words)], True
        elif words is not None and rows == WORDS:
            raise ValueError(f"{len(words)} words, but {name} has {count} keys: name each of them")
        else:
            named[name] = [f"{rows[:-1]} {index + 1}" for index in range(count)]
    if not taken:
        raise ValueError(f"{len(words or ())} words: no block attends to or from as many tokens")
    return named


def _by_head(measure: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """(heads,): one by one, since a measure takes several times the memory of what it measures."""
    return torch.cat([measure(head) for head in values.split(1, dim=1)])


def _mean(values: list[Tensor]) -> list[float]:
    return torch.stack(values).mean(0).tolist() if values else []


def _gamma(network: nn.Module, name: str) -> float | None:
    block = dict(network.named_modules()).get(name)
    gamma = block.gamma if isinstance(block, MapAttention) else None
    return None if gamma is None else float(gamma.detach())
