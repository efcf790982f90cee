"""Rotary positions: queries and keys are turned by angles that say where their token is.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021). The numbers of a
head are taken in pairs, and each pair is turned by its own multiple of the position: the product of
a query and a key then depends on how far they lie apart, and on nothing else of their positions.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cvattn.core.initial_values import ComputedTable

Pairs = Literal["interleaved", "halves"]

# How the formulas are computed: equal on all devices, of which some have no float64.
EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


class Rotation(NamedTuple):
    """How far each token's pairs are turned.

    Attributes:
        cos, sin: of the angles, (N, head_dim / 2), or (B, N, head_dim / 2) where samples differ.
        pairs: which numbers are a pair: "interleaved" = (0, 1), (2, 3), ... (RoFormer, EVA) or
            "halves" = (0, d/2), (1, d/2 + 1), ... (LLaMA, DINOv3).
    """

    cos: Tensor
    sin: Tensor
    pairs: Pairs = "interleaved"

    def turn(self, x: Tensor) -> Tensor:
        """(B, N, heads, head_dim) -> the same shape and dtype, each token turned by its angles.

        Raises:
            ValueError: another number of tokens, or another head_dim, than the angles are for.
        """
        return turn(x, self.cos, self.sin, self.pairs)


def turn(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:
    """:meth:`Rotation.turn` as a function, which torch.fx keeps as one call."""
    if cos.shape[-2] != x.shape[1] or 2 * cos.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"the rotation is for {cos.shape[-2]} tokens with head_dim={2 * cos.shape[-1]}; "
            f"given {x.shape[1]} tokens with head_dim={x.shape[-1]}"
        )
    # In float32 at least: a far position in half precision would lose the angle.
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one for all heads
    if pairs == "interleaved":
        first, second = wide[..., ::2], wide[..., 1::2]
    else:
        first, second = wide.chunk(2, dim=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    if pairs == "interleaved":
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
    return torch.cat(turned, dim=-1).to(x.dtype)


torch.fx.wrap("turn")


def frequencies(count: int, theta: float) -> Tensor:
    """(count,) float64: theta^(-i / count), the angle per step of the i-th pair."""
    return theta ** -(torch.arange(count, **EXACT) / count)


class RotaryTable(ComputedTable):
    """Keeps (2, N, head_dim / 2): cosines and sines, in float32 at least whatever the module is."""

    table: Tensor

    def __init__(self, head_dim: int, theta: float, pairs: Pairs, *, divisor: int) -> None:
        super().__init__()
        if head_dim % divisor or head_dim < divisor:
            raise ValueError(f"head_dim={head_dim} must be divisible by {divisor} to be turned")
        if not theta > 0:
            raise ValueError(f"theta={theta} must be above 0")
        if pairs not in ("interleaved", "halves"):
            raise ValueError(f"pairs={pairs!r}; expected 'interleaved' or 'halves'")
        self.head_dim, self.theta, self.pairs = head_dim, theta, pairs

    def _exact(self) -> Tensor:
        """In float64 on the CPU."""
        raise NotImplementedError

    def _compute_table(self) -> Tensor:
        return self._exact().to(torch.promote_types(torch.get_default_dtype(), torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.table
        super()._apply(fn, recurse)
        if self.table is not before and not self.table.is_meta:
            dtype = torch.promote_types(self.table.dtype, torch.float32)
            self.table = self._exact().to(dtype).to(self.table.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.head_dim}, theta={self.theta}, pairs={self.pairs!r}"


class Rotary(RotaryTable):
    """Rotary positions of a sequence: ``rotary(length, start=...)`` -> :class:`Rotation`.

    Pair i of token t is turned by t * theta^(-2i / head_dim), as in Su et al. (2021).

    Args:
        head_dim: width of one head; even.
        theta: largest wavelength, as a multiple of 2 pi.
        pairs: which numbers of a head are a pair, see :class:`Rotation`.
        max_length: size of the table kept ready; positions beyond are computed when they come.
        device: of the table.

    Raises:
        ValueError: an odd ``head_dim``, a ``theta`` that is not above 0, unknown ``pairs``.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        theta: float = 10000.0,
        pairs: Pairs = "interleaved",
        max_length: int = 512,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(head_dim, theta, pairs, divisor=2)
        self._length = max_length
        self._register_table(device=device)

    def _exact(self) -> Tensor:
        return self._of(torch.arange(self._length, **EXACT))

    def _of(self, positions: Tensor) -> Tensor:
        return as_table(positions[:, None] * frequencies(self.head_dim // 2, self.theta))

    def forward(self, length: int, *, start: int = 0) -> Rotation:
        """For ``length`` tokens, of which the first stands at ``start``."""
        if start + length <= self.table.shape[1]:
            table = self.table[:, start : start + length]
        else:
            table = self._of(torch.arange(start, start + length, **EXACT))
            table = table.to(self.table.dtype).to(self.table.device)
        return Rotation(table[0], table[1], self.pairs)

    def at(self, positions: Tensor) -> Rotation:
        """For tokens at positions (N,) or (B, N), whole or not, through which gradients flow."""
        rates = frequencies(self.head_dim // 2, self.theta).to(self.table.dtype)
        angles = positions.to(self.table.dtype).unsqueeze(-1) * rates.to(positions.device)
        return Rotation(angles.cos(), angles.sin(), self.pairs)


def as_table(angles: Tensor) -> Tensor:
    """(N, F) -> (2, N, F), cosines and sines."""
    return torch.stack([angles.cos(), angles.sin()])
