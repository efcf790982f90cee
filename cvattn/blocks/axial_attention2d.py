"""Attention along the rows and columns of a feature map."""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from cvattn.blocks.local_attention2d import LocalAttention2d
from cvattn.blocks.map_attention import unet_form
from cvattn.core.local import criss_cross_attention, window_attention
from cvattn.core.local_masks import axis_mask_2d, criss_cross_mask_2d


class AxisAttention2d(LocalAttention2d):
    """Self-attention of each row, or of each column, of a map (B, C, H, W) with itself.

    Args:
        in_channels: channels C of the map.
        axis: "row", a position sees its row; or "column".
        form: as in :class:`AxialAttention2d`.
    """

    def __init__(self, in_channels: int, *, axis: Literal["row", "column"], **form: Any) -> None:
        super().__init__(in_channels, **form)
        if axis not in ("row", "column"):
            raise ValueError(f"axis={axis!r}; expected 'row' or 'column'")
        self.axis = axis

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        height, width = q.shape[2], q.shape[3]
        window = (1, width) if self.axis == "row" else (height, 1)
        return window_attention(
            q, k, v, window=window, key_mask=mask, scale=self.scale, dropout_p=self._dropout_p
        )

    def _visible(self, size: tuple[int, int], rows: Tensor | None, device: torch.device) -> Tensor:
        return axis_mask_2d(*size, 1 if self.axis == "row" else 0, rows=rows, device=device)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, axis={self.axis}"


class AxialAttention2d(nn.Module):
    """Attention along the columns of a map (B, C, H, W), then along its rows.

    Two residual branches with projections of their own, one after the other, so that every position
    reaches every other in one block: Ho et al., "Axial Attention in Multidimensional Transformers"
    (2019), and Wang et al., "Axial-DeepLab" (2020), whose order this is, without their positions.
    A new block is the identity.

    Args:
        in_channels: channels C of the map.
        form: ``qk_channels``, ``value_channels``, ``num_heads``, ``norm_groups``, ``scale``,
            ``gamma_init``, ``dropout``, ``device``, ``dtype`` of both, as in
            :class:`cvattn.SelfAttention2d`; also ``AxialAttention2d.unet(channels)``.

    Shape:
        (B, C, H, W) -> (B, C, H, W); any H, W >= 1. Memory is linear in H * W, time in
        H * W * (H + W).

    Weights are those of the two branches: ``capture_attention`` shows ``columns`` and ``rows``.
    """

    def __init__(self, in_channels: int, **form: Any) -> None:
        super().__init__()
        self.columns = AxisAttention2d(in_channels, axis="column", **form)
        self.rows = AxisAttention2d(in_channels, axis="row", **form)

    @classmethod
    def unet(
        cls, in_channels: int, *, head_dim: int | None = None, groups: int = 32, **others: Any
    ) -> Self:
        """The form of U-Nets, see :meth:`cvattn.SelfAttention2d.unet`."""
        return cls(in_channels, **{**unet_form(in_channels, head_dim, groups), **others})

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """x (B, C, H, W); mask bool (B, H, W), True = real, False = padding."""
        return self.rows(self.columns(x, mask=mask), mask=mask)


class CrissCrossAttention2d(LocalAttention2d):
    """Self-attention of each position of a map (B, C, H, W) to its row and its column at once.

    One softmax over H + W - 1 positions, itself counted once. Huang et al., "CCNet: Criss-Cross
    Attention for Semantic Segmentation" (2019); applied twice, as there, every position reaches
    every other. The default form is that paper's: q and k of C/8 channels, scores as they are,
    gamma that starts at 0.

    Args:
        in_channels: channels C of the map.
        form: ``qk_channels``, ``value_channels``, ``num_heads``, ``norm_groups``, ``scale``,
            ``gamma_init``, ``dropout``, ``device``, ``dtype``, as in
            :class:`cvattn.SelfAttention2d`; also ``CrissCrossAttention2d.unet(channels)``.

    Shape:
        (B, C, H, W) -> (B, C, H, W); any H, W >= 1. Memory is linear in H * W, time in
        H * W * (H + W).
    """

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return criss_cross_attention(
            q, k, v, key_mask=mask, scale=self.scale, dropout_p=self._dropout_p
        )

    def _visible(self, size: tuple[int, int], rows: Tensor | None, device: torch.device) -> Tensor:
        return criss_cross_mask_2d(*size, rows=rows, device=device)
