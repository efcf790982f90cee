"""How the scores are cut into tiles, and what mask, bias and causality say of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.core.attention.inputs import causal_rows, known

# Scores in one tile: 4 MiB in float32, about what the caches of two cores hold. Half of it
# is slower at 100 x 100 positions, twice no faster.
TILE = 2**20
# Products with fewer rows are slow, so a tile of very many keys may be larger.
LEAST_ROWS = 16


class Tile(NamedTuple):
    """Which samples (batch and heads flattened), which query rows of them, and which keys."""

    samples: slice
    rows: slice
    keys: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        samples, rows, keys = (part.stop - part.start for part in self)
        return samples, rows, keys


def tile_size(samples: int, length: int, key_length: int) -> tuple[int, int]:
    """(samples, rows) of the largest tile: whole samples while several fit, rows of one beyond."""
    group = max(1, min(samples, TILE // max(1, length * key_length)))
    rows = max(1, min(length, max(LEAST_ROWS, TILE // max(1, key_length))))
    return group, rows


def tile_scores(samples: int, length: int, key_length: int) -> int:
    """How many scores the largest tile has."""
    group, rows = tile_size(samples, length, key_length)
    return group * rows * key_length


def tiles(samples: int, length: int, key_length: int, *, is_causal: bool = False) -> Iterator[Tile]:
    """The tiles of (samples, length, key_length) scores.

    Every tile has all keys that its rows may see: causal ones leave out the last keys, which are
    hidden from all their rows.
    """
    group, step = tile_size(samples, length, key_length)
    for first in range(0, samples, group):
        for row in range(0, length, step):
            last = min(row + step, length)
            keys = max(0, last + key_length - length) if is_causal else key_length
            yield Tile(slice(first, min(first + group, samples)), slice(row, last), slice(0, keys))


@dataclass(frozen=True)
class Terms:
    """Mask, bias and causality of a call with (B, heads, length, key_length) scores."""

    attn_mask: Tensor | None
    attn_bias: Tensor | None
    is_causal: bool
    heads: int
    length: int
    key_length: int

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        attn_mask: Tensor | None,
        attn_bias: Tensor | None,
        is_causal: bool,
    ) -> "Terms":
        """Those of a call."""
        sizes = (query.shape[1], query.shape[2], key.shape[2])
        return cls(attn_mask, attn_bias, is_causal, *sizes)

    @property
    def empty(self) -> bool:
        """Every query may attend to everything, as far as the shapes say."""
        return self.attn_mask is None and self.attn_bias is None and not self.is_causal

    def allowed(self, tile: Tile, device: torch.device) -> Tensor | None:
        """True = may attend, (samples, rows, keys) with 1 where shared; None = everything."""
        allowed = None if self.attn_mask is None else self.part(self.attn_mask, tile)
        bias = self.bias(tile) if self._bias_may_hide else None
        if bias is not None:
            finite = bias != float("-inf")
            allowed = finite if allowed is None else allowed & finite
        if self.is_causal:
            rows = torch.arange(tile.rows.start, tile.rows.stop, device=device)
            causal = causal_rows(self.length, self.key_length, rows)[None, :, tile.keys]
            allowed = causal if allowed is None else allowed & causal
        return allowed

    @cached_property
    def _bias_may_hide(self) -> bool:
        """False where the bias is known to have no -inf, which spares each tile several passes."""
        return self.attn_bias is not None and not known(self.attn_bias != float("-inf"))

    def bias(self, tile: Tile) -> Tensor | None:
        """The bias of a tile, (samples, rows, keys) with 1 where shared."""
        return None if self.attn_bias is None else self.part(self.attn_bias, tile)

    def add_bias_grad(self, total: Tensor, grad: Tensor, tile: Tile) -> None:
        """Add a tile's gradient of the scores to the bias's, summed where the bias is shared."""
        place = total[:, :, tile.rows] if total.shape[2] > 1 else total
        place = place[..., tile.keys] if total.shape[3] > 1 else place
        grad = grad.to(total.dtype)
        if total.shape[:2] == (1, 1):
            place[0] += grad.sum_to_size(1, *place.shape[2:])
            return
        batch, head = self._index(tile, total)
        grad = grad.sum_to_size(len(grad), *place.shape[2:])
        place.flatten(0, 1).index_add_(0, batch * total.shape[1] + head, grad)

    def part(self, term: Tensor, tile: Tile) -> Tensor:
        """A tile's part of a mask or bias, (samples, rows, keys) with 1 where shared by all."""
        term = as_4d(term)
        # Rows and keys first, which are views: the samples are gathered and copied.
        term = term[:, :, tile.rows] if term.shape[2] > 1 else term
        term = term[..., tile.keys] if term.shape[3] > 1 else term
        return term[0] if term.shape[:2] == (1, 1) else term[self._index(tile, term)]

    def _index(self, tile: Tile, term: Tensor) -> tuple[Tensor, Tensor]:
        """Where the samples of a tile stand in the batch and heads of a mask or bias."""
        one = torch.arange(tile.samples.start, tile.samples.stop, device=term.device)
        return one // self.heads % term.shape[0], one % self.heads % term.shape[1]


def as_4d(term: Tensor) -> Tensor:
    """(L, S) -> (1, 1, L, S); (B, heads, L, S) as it is."""
    return term if term.ndim == 4 else term[None, None]


def zeros_of_bias(bias: Tensor | None, like: Tensor) -> Tensor:
    """Where a bias's gradient is summed, in float32 at least; empty if none is wanted."""
    if bias is None:
        return like.new_empty(0)
    return torch.zeros_like(as_4d(bias), dtype=torch.promote_types(bias.dtype, torch.float32))
