"""Attention inside the windows of a feature map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cvattn.blocks.local_attention2d import LocalAttention2d, pair, window_bias
from cvattn.core.local import window_attention
from cvattn.core.local.inputs import check_window
from cvattn.core.local_masks import window_mask_2d


class WindowAttention2d(LocalAttention2d):
    """Self-attention of each window of a map (B, C, H, W) with itself.

    Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    section 3.2. Windows at the border are cut, whatever H and W are; with ``shift`` the first ones
    are, which equals that paper's cyclic shift under its mask. Blocks alternate between shift 0 and
    window // 2, so that what they learn crosses the windows' borders.

    Args:
        in_channels: channels C of the map.
        window: side, or (rows, columns).
        shift: rows and columns of the first window of each axis; 0 = a whole one.
        relative_bias: a learned bias for each offset in a window, as in that paper.
        form: ``qk_channels``, ``value_channels``, ``num_heads``, ``norm_groups``, ``scale``,
            ``gamma_init``, ``dropout``, ``device``, ``dtype``, as in
            :class:`cvattn.SelfAttention2d`; also ``WindowAttention2d.unet(channels, window=8)``.

    Shape:
        (B, C, H, W) -> (B, C, H, W); any H, W >= 1. Time and memory are linear in H * W.

    Raises:
        ValueError: channels, windows or shifts that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        window: int | Sequence[int] = 8,
        shift: int | Sequence[int] = 0,
        relative_bias: bool = False,
        **form: Any,
    ) -> None:
        super().__init__(in_channels, **form)
        self.window, self.shift = pair("window", window), pair("shift", shift)
        check_window(self.window, self.shift)
        like = {name: form.get(name) for name in ("device", "dtype")}
        self.relative_bias = window_bias(relative_bias, self.num_heads, self.window, **like)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return window_attention(
            q,
            k,
            v,
            window=self.window,
            shift=self.shift,
            key_mask=mask,
            bias=self.relative_bias,
            scale=self.scale,
            dropout_p=self._dropout_p,
        )

    def _visible(self, size: tuple[int, int], rows: Tensor | None, device: torch.device) -> Tensor:
        return window_mask_2d(*size, self.window, self.shift, rows=rows, device=device)

    def _row_bias(self, size: tuple[int, int], rows: Tensor | None) -> Tensor | None:
        return None if self.relative_bias is None else self.relative_bias(size, rows=rows)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, shift={self.shift}"
