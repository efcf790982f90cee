"""Attention of each position of a feature map to those around it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cvattn.blocks.local_attention2d import LocalAttention2d, pair, window_bias
from cvattn.core.local import neighborhood_attention
from cvattn.core.local.inputs import check_neighborhood
from cvattn.core.local_masks import neighborhood_mask_2d


class NeighborhoodAttention2d(LocalAttention2d):
    """Self-attention of each position of a map (B, C, H, W) to the window around it.

    Hassani et al., "Neighborhood Attention Transformer" (2023): at the border the window moves
    inwards, so that every position sees as many. With ``dilation`` the window has gaps (Hassani and
    Shi, "Dilated Neighborhood Attention Transformer", 2022). Here in plain operators of torch, with
    gradients of every order, on any device and for any head width.

    Args:
        in_channels: channels C of the map.
        window: odd side, or (rows, columns); the map must be at least as large (times dilation).
        dilation: distance of neighbours in rows and columns.
        relative_bias: a learned bias for each offset in a window, as in the first paper.
        form: ``qk_channels``, ``value_channels``, ``num_heads``, ``norm_groups``, ``scale``,
            ``gamma_init``, ``dropout``, ``device``, ``dtype``, as in
            :class:`cvattn.SelfAttention2d`; also ``NeighborhoodAttention2d.unet(channels)``.

    Shape:
        (B, C, H, W) -> (B, C, H, W). Time and memory are linear in H * W.

    Raises:
        ValueError: channels or windows that do not fit; in the pass, a map that is too small.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        window: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        relative_bias: bool = False,
        **form: Any,
    ) -> None:
        super().__init__(in_channels, **form)
        self.window, self.dilation = pair("window", window), pair("dilation", dilation)
        check_neighborhood(None, self.window, self.dilation)
        like = {name: form.get(name) for name in ("device", "dtype")}
        self.relative_bias = window_bias(relative_bias, self.num_heads, self.window, **like)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return neighborhood_attention(
            q,
            k,
            v,
            window=self.window,
            dilation=self.dilation,
            key_mask=mask,
            bias=None if self.relative_bias is None else self.relative_bias.table,
            scale=self.scale,
            dropout_p=self._dropout_p,
        )

    def _visible(self, size: tuple[int, int], rows: Tensor | None, device: torch.device) -> Tensor:
        return neighborhood_mask_2d(*size, self.window, self.dilation, rows=rows, device=device)

    def _row_bias(self, size: tuple[int, int], rows: Tensor | None) -> Tensor | None:
        if self.relative_bias is None:
            return None
        return self.relative_bias(size, rows=rows, step=self.dilation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, dilation={self.dilation}"
