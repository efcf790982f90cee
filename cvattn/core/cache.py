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

    def take(self, key: Tensor, value: Tensor, project: Projection) -> tuple[Tensor, Tensor]:
        """All keys and values to be attended to; ``project()`` makes those of key and value."""
        raise NotImplementedError

    def select(self, rows: Tensor) -> None:
        """Keep the samples at ``rows`` (n,), in that order; one may come several times."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class GrowingKeyValues(KeyValues):
    """For self-attention: those of each call are appended, in place, so without gradients.

    Attributes:
        length: how many keys there are; ``keys`` and ``values`` have room for more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def take(self, key: Tensor, value: Tensor, project: Projection) -> tuple[Tensor, Tensor]:
        keys, values = project()
        start, self.length = self.length, self.length + keys.shape[1]
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        # Room that doubles: what came before is copied now and then, not in every step.
        if self.length > self.keys.shape[1]:
            self.keys = _room(self.keys, 2 * self.length)
            self.values = _room(self.values, 2 * self.length)
        self.keys[:, start : self.length] = keys
        self.values[:, start : self.length] = values
        return self.keys[:, : self.length], self.values[:, : self.length]


def _room(given: Tensor, size: int) -> Tensor:
    """(B, S, D) -> (B, size, D), which begins with what was given."""
    wide = given.new_empty(given.shape[0], size, given.shape[2])
    wide[:, : given.shape[1]] = given
    return wide


class FixedKeyValues(KeyValues):
    """For cross-attention: the memory stays, and is projected in the first call alone.

    Raises:
        ValueError: from :meth:`take`, for another memory than that of the first call. After
            :meth:`select` the memory's rows are another tensor, of which the shape is compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: tuple[Tensor, Tensor] | None = None
        self._versions: tuple[int, ...] = ()

    def take(self, key: Tensor, value: Tensor, project: Projection) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = project()
            # Looked for once instead of in each step.
            self.finite = bool(self.keys.isfinite().all() and self.values.isfinite().all())
        elif not self._is_known(key, value):
            raise ValueError(
                f"the cache holds keys and values of another memory, {tuple(self.keys.shape[:2])} "
                f"(samples, tokens); given {tuple(key.shape[:2])}. Begin each sequence with a new "
                "cache: Decoder.new_cache()"
            )
        self._memory, self._versions = (key, value), _versions(key, value)
        return self.keys, self.values

    def _is_known(self, key: Tensor, value: Tensor) -> bool:
        assert self.keys is not None
        if key.shape[:2] != self.keys.shape[:2]:
            return False
        if self._memory is None:
            return True
        first = self._memory
        if key is first[0] and value is first[1]:
            return _versions(key, value) == self._versions
        return torch.equal(key, first[0]) and torch.equal(value, first[1])

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self._memory = None


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """How often each was changed in place; tensors of inference mode do not count it."""
    return tuple(0 if x.is_inference() else x._version for x in tensors)


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
        return self.layers[0].own.length if self.layers else 0

    def select(self, rows: Tensor) -> None:
        """Keep the samples at ``rows`` (n,), in that order; one may come several times."""
        for layer in self.layers:
            layer.own.select(rows)
            layer.cross.select(rows)
