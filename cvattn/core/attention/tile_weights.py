"""The weights of one tile at a time, computed the same way in the forward and backward pass."""

import torch
from torch import Tensor

from cvattn.core.attention.plan import compute_dtype
from cvattn.core.attention.tiles import Terms, Tile, tile_scores, tiles


class TileWeights:
    """The inputs of a call in the layout and dtype of the products, and its tiles of weights."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        scale: float,
        dropout_p: float,
        seed: Tensor | None,
    ) -> None:
        self.dtype = compute_dtype(query.device, query.dtype)
        q, k, v = (x.flatten(0, 1).to(self.dtype) for x in (query, key, value))
        self.terms, self.dropout_p = terms, dropout_p
        self.seed = None if seed is None else int(seed)
        self.bad_rows: Tensor | None = None
        self.bad_keys: Tensor | None = None
        if not terms.empty:
            # 0 x NaN is NaN: what is hidden must be finite, and what is seen is marked by hand.
            bad_rows = ~q.isfinite().all(-1)
            bad_keys = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
            if bad_rows.any() or bad_keys.any():
                self.bad_rows, self.bad_keys = bad_rows[..., None], bad_keys[:, None]
                q, k, v = (x.nan_to_num(0.0, 0.0, 0.0) for x in (q, k, v))
        self.queries, self.keys, self.values = q if scale == 1.0 else q * scale, k, v
        # Contiguous along the keys: the first product is half as fast otherwise.
        self.keys_t = k.mT.contiguous()
        shape = (q.shape[0], terms.length, terms.key_length)
        self.tiles = list(tiles(*shape, is_causal=terms.is_causal))
        self.buffer = q.new_empty(tile_scores(*shape))

    def weights(self, tile: Tile) -> Tensor:
        """softmax of the tile's scores, (samples, rows, keys), valid until the next call."""
        scores = tile_view(self.buffer, tile)
        torch.bmm(self.queries[tile.samples, tile.rows], self._keys_t(tile), out=scores)
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

    def sees_bad(self, tile: Tile) -> Tensor:
        """Rows that may attend to something that is not finite, (samples, rows, 1)."""
        assert self.bad_rows is not None
        assert self.bad_keys is not None
        allowed = self.terms.allowed(tile, self.queries.device)
        bad = self.bad_rows[tile.samples, tile.rows] | self.bad_keys[tile.samples, :, tile.keys]
        bad = bad if allowed is None else bad & allowed
        return bad.any(-1, keepdim=True)

    def kept(self, tile: Tile) -> Tensor | None:
        """What dropout multiplies the tile's weights with; the same in each pass."""
        if self.seed is None:
            return None
        generator = torch.Generator(self.queries.device)
        generator.manual_seed(self.seed + tile.samples.start * self.terms.length + tile.rows.start)
        shape = tile.shape
        drawn = torch.rand(shape, generator=generator, device=self.queries.device)
        return (drawn >= self.dropout_p).to(self.dtype).div_(1.0 - self.dropout_p)

    def _keys_t(self, tile: Tile) -> Tensor:
        return self.keys_t[tile.samples, :, tile.keys]


def tile_view(buffer: Tensor, tile: Tile) -> Tensor:
    """The first part of a buffer, (samples, rows, keys)."""
    samples, rows, keys = tile.shape
    return buffer[: samples * rows * keys].view(samples, rows, keys)
