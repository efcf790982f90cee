"""Keys and values kept between the steps of decoding, so that each is computed once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Projection = Callable[[], tuple[Tensor, Tensor]]


class KeyValues:
    """What one attention has projected so far: two tensors (B, S, D), not yet split into heads.

    Attributes:
        keys, values: None before the first call.
        finite: known to have neither NaN nor infinity.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.finite = False

    def take(self, project: Projection) -> tuple[Tensor, Tensor]:
        """All keys and values to be attended to; ``project()`` makes those of this call."""
        raise NotImplementedError

    def select(self, rows: Tensor) -> None:
        """Keep the samples at ``rows`` (n,), in that order; one may come several times."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class GrowingKeyValues(KeyValues):
    """For self-attention: those of each call are appended."""

    def take(self, project: Projection) -> tuple[Tensor, Tensor]:
        keys, values = project()
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=1)
            values = torch.cat([self.values, values], dim=1)
        self.keys, self.values = keys, values
        return keys, values


class FixedKeyValues(KeyValues):
    """For cross-attention: the memory stays, and is projected in the first call alone."""

    def take(self, project: Projection) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = project()
            # Looked for once instead of in each step.
            self.finite = bool(self.keys.isfinite().all() and self.values.isfinite().all())
        return self.keys, self.values


class LayerCache(NamedTuple):
    """Of one decoder layer."""

    own: GrowingKeyValues
    cross: FixedKeyValues


class DecoderCache:
    """Of a whole :class:`cvattn.core.Decoder`, for one batch (``Decoder.new_cache()``).

    With it, a decoder is given the new tokens alone and gives what it would give for them at the
    end of the whole sequence. All samples have the same number of tokens, none of them padding.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache(GrowingKeyValues(), FixedKeyValues()) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens that were given so far."""
        keys = self.layers[0].own.keys if self.layers else None
        return 0 if keys is None else keys.shape[1]

    def select(self, rows: Tensor) -> None:
        """Keep the samples at ``rows`` (n,), in that order; one may come several times."""
        for layer in self.layers:
            layer.own.select(rows)
            layer.cross.select(rows)
