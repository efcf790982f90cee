"""What the local forms of attention on feature maps share: memory linear in the positions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cvattn.blocks.map_attention import MapAttention
from cvattn.core.attention.inputs import check_rows_wanted
from cvattn.core.observed import Observed
from cvattn.core.relative_bias import RelativeGridBias


class LocalAttention2d(MapAttention):
    """Self-attention in which a position sees some others, which :meth:`_visible` tells.

    The rest is as in :class:`cvattn.SelfAttention2d`, which is the specification: under the mask
    that :meth:`_visible` gives for all positions the two are equal.
    """

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        need_weights: bool = False,
        rows: Sequence[int] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Add to each position what it gathers from those that it sees.

        Args:
            x: (B, C, H, W).
            mask: bool (B, H, W), True = real, False = padding, which nothing sees and which stays
                as it is.
            need_weights: return ``(output, weights)``, weights (B, heads, H*W, H*W), 0 where a
                position is not seen: choose ``rows`` of large maps.
            rows: with ``need_weights``, the positions y * W + x whose weights are wanted; None =
                all. Memory is linear in the positions for each row.

        Returns:
            (B, C, H, W), or the pair.
        """
        check_rows_wanted(need_weights, rows)
        tokens = self._prepared(x, mask)
        projected = (self.query(tokens), self.key(tokens), self.value(tokens))
        q, k, v = (self._heads(each) for each in projected)
        del tokens, projected  # maps that need not be there beside what comes now
        attended = self._attend(q, k, v, mask).flatten(2, 3)
        weights = None
        if need_weights or self.observers:
            seen = self._observed(q, k, v, attended, mask)
            for observe in self.observers:
                observe(seen)
            weights = seen.weights(rows) if need_weights else None
            del seen
        del q, k, v  # nor these
        output = self._add(x, attended, mask)
        return output if weights is None else (output, weights)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k (B, heads, H, W, E), v (B, heads, H, W, Ev) -> (B, heads, H, W, Ev)."""
        raise NotImplementedError

    def _visible(self, size: tuple[int, int], rows: Tensor | None, device: torch.device) -> Tensor:
        """Mask (rows, H*W), True = seen, of the chosen positions or of all."""
        raise NotImplementedError

    def _row_bias(self, size: tuple[int, int], rows: Tensor | None) -> Tensor | None:
        """What is added to the scores of the chosen rows, (heads, rows, H*W)."""
        return None

    def _observed(
        self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, mask: Tensor | None
    ) -> Observed:
        size = (q.shape[2], q.shape[3])

        def terms(rows: Tensor | None) -> dict[str, Any]:
            seen = self._visible(size, rows, q.device)
            if mask is not None:
                seen = seen & mask.flatten(1)[:, None, None]
            bias = self._row_bias(size, rows)
            return {
                "attn_mask": seen,
                "attn_bias": None if bias is None else bias[None],
                "scale": self.scale,
            }

        q, k, v = (each.flatten(2, 3) for each in (q, k, v))
        return Observed(q, k, v, attended, terms, size=size, key_size=size)


def pair(name: str, given: int | Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of one number for both, or of two."""
    sides = (given, given) if isinstance(given, int) else tuple(given)
    if len(sides) != 2:
        raise ValueError(f"{name}={given}; expected one number, or (rows, columns)")
    return sides[0], sides[1]


def window_bias(
    wanted: bool,
    num_heads: int,
    window: tuple[int, int],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> RelativeGridBias | None:
    """A relative bias of the offsets in a window, if one is wanted."""
    if not wanted:
        return None
    return RelativeGridBias(num_heads, window, device=device, dtype=dtype)
