"""The weights of one tile at a time, computed the same way in the forward and backward pass."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.core.attention.inputs import can_ask
from cvattn.core.attention.precision import product_dtype, score_dtype
from cvattn.core.attention.tiles import Terms, Tile, tile_scores, tiles

# With as many the first product is twice as fast where its keys are contiguous, which is a copy.
MANY_ROWS = 256
# What a seed of dropout draws on a GPU would be the same in each replay of a CUDA graph.
NOT_CAPTURED = (torch.Tag.cudagraph_unsafe,)


class Buffers(NamedTuple):
    """What every tile of a call is computed in, one after the other.

    Attributes:
        scores: scores and their softmax, in float32 at least.
        weights: the weights as the products take them; the same memory where the dtype is.
    """

    scores: Tensor
    weights: Tensor

    @classmethod
    def of(cls, query: Tensor, size: int) -> "Buffers":
        """Those of a call whose largest tile has ``size`` scores."""
        scores = query.new_empty(size, dtype=score_dtype(query.dtype))
        dtype = product_dtype(query.device, query.dtype)
        return cls(scores, scores if dtype == scores.dtype else query.new_empty(size, dtype=dtype))


class TileWeights:
    """Some samples of a call in the layout and dtype of the products, and their tiles of weights.

    Attributes:
        samples: which ones, of batch and heads flattened.
        tiles: their tiles.
        queries, keys, values: (samples, tokens, width), in the dtype of the products.
    """

    def __init__(
        self,
        samples: slice,
        own_tiles: Sequence[Tile],
        flat: Sequence[Tensor],
        terms: Terms,
        scale: float,
        buffers: Buffers,
    ) -> None:
        self.samples, self.tiles, self.terms, self.buffers = samples, own_tiles, terms, buffers
        q, k, v = (x[samples].to(buffers.weights.dtype) for x in flat)
        self.bad_rows: Tensor | None = None
        self.bad_keys: Tensor | None = None
        if not terms.empty:
            # 0 x NaN is NaN: what is hidden must be finite, and what is seen is marked by hand.
            bad_rows = ~q.isfinite().all(-1)
            bad_keys = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
            # Where one would have to wait for the answer, as if there were some.
            if not can_ask(q.device) or bad_rows.any() or bad_keys.any():
                self.bad_rows, self.bad_keys = bad_rows[..., None], bad_keys[:, None]
                q, k, v = (x.nan_to_num(0.0, 0.0, 0.0) for x in (q, k, v))
        self.queries, self.keys, self.values, self.scale = q, k, v, scale

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The queries times the scale, and the keys as (samples, width, tokens), for the scores."""
        dtype = self.buffers.scores.dtype
        queries, keys = self.queries.to(dtype), self.keys.to(dtype).mT
        if self.terms.length >= MANY_ROWS:
            keys = keys.contiguous()
        if self.scale == 1.0:
            return queries, keys
        cast = queries is not self.queries
        return queries.mul_(self.scale) if cast else queries * self.scale, keys

    def scores(self, tile: Tile) -> Tensor:
        """Where a tile's scores are computed, (samples, rows, keys)."""
        return tile_view(self.buffers.scores, tile)

    def weights(self, tile: Tile) -> Tensor:
        """softmax of the tile's scores, (samples, rows, keys), valid until the next call."""
        scores, (queries, keys_t) = self.scores(tile), self._scaled
        torch.bmm(queries[:, tile.rows], keys_t[..., tile.keys], out=scores)
        bias = self.terms.bias(tile)
        if bias is not None:
            scores += bias
        allowed = self.terms.allowed(tile, scores.device)
        if allowed is not None:
            scores.masked_fill_(~allowed, float("-inf"))
        # In place: each row is read before it is written.
        torch.softmax(scores, -1, out=scores)
        if allowed is not None:
            scores.masked_fill_(~allowed.any(-1, keepdim=True), 0.0)
        return scores

    def rounded(self, weights: Tensor, tile: Tile) -> Tensor:
        """Weights of a tile in the dtype of the products, valid until the next call."""
        if weights.dtype == self.buffers.weights.dtype:
            return weights
        return tile_view(self.buffers.weights, tile).copy_(weights)

    def sees_bad(self, tile: Tile) -> Tensor | None:
        """Rows that may attend to something that is not finite, (samples, rows, 1); None = none."""
        if self.bad_rows is None or self.bad_keys is None:
            return None
        allowed = self.terms.allowed(tile, self.queries.device)
        bad = self.bad_rows[:, tile.rows] | self.bad_keys[..., tile.keys]
        bad = bad if allowed is None else bad & allowed
        return bad.any(-1, keepdim=True)


def tile_weights(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, scale: float
) -> Iterator[TileWeights]:
    """All samples, as many at once as share a tile: what is copied and cast is theirs alone."""
    flat = [x.flatten(0, 1) for x in (query, key, value)]
    sizes = (flat[0].shape[0], terms.length, terms.key_length)
    buffers = Buffers.of(query, tile_scores(*sizes))
    every = tiles(*sizes, is_causal=terms.is_causal)
    for samples, own in groupby(every, key=lambda tile: tile.samples):
        yield TileWeights(samples, list(own), flat, terms, scale, buffers)


class TileDropout:
    """What dropout multiplies the weights of a tile with: the same in the forward and backward."""

    def __init__(self, dropout_p: float, seed: Tensor | None, terms: Terms) -> None:
        self.dropout_p, self.length = dropout_p, terms.length
        self.seed = None if seed is None else int(seed)

    def kept(self, tile: Tile, weights: Tensor) -> Tensor | None:
        """0, or 1 / (1 - p), for each weight; None = no dropout."""
        if self.seed is None:
            return None
        generator = torch.Generator(weights.device)
        generator.manual_seed(self.seed + tile.samples.start * self.length + tile.rows.start)
        drawn = torch.rand(tile.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout_p).to(weights.dtype).div_(1.0 - self.dropout_p)


def tile_view(buffer: Tensor, tile: Tile) -> Tensor:
    """The first part of a buffer, (samples, rows, keys)."""
    samples, rows, keys = tile.shape
    return buffer[: samples * rows * keys].view(samples, rows, keys)
