"""The forms of U-Nets and the local ones beside what people use for them, with equal weights.

diffusers' and MONAI's are their own classes, Swin's windows torchvision's function. The others are
written by us as snippets have them: a neighbourhood gathered by ``unfold``, criss-cross attention
with all scores of rows and columns stored, ``F.scaled_dot_product_attention`` along each axis.
"""

import copy

import torch
import torch.nn.functional as F
from cases import DIFFUSERS, MONAI, OURS, Case
from torch import Tensor, nn

from cvattn import (
    AxialAttention2d,
    CrissCrossAttention2d,
    NeighborhoodAttention2d,
    SelfAttention2d,
    WindowAttention2d,
    weights,
)
from cvattn.blocks import MapAttention

WINDOW, NEIGHBORS = 8, 7


def build_form(case: Case, name: str) -> nn.Module:
    """The named method of a case; each has the weights of ours."""
    channels = case.shape[1]
    head_dim, groups = channels // case.heads, min(32, channels)
    if case.kind == "unet":
        ours = _filled(SelfAttention2d.unet(channels, head_dim=head_dim, groups=groups))
        others = {DIFFUSERS: weights.to_diffusers, MONAI: _monai}
        return ours if name == OURS else others[name](ours)
    kinds = {
        "window": (lambda c, **form: WindowAttention2d.unet(c, window=WINDOW, **form), Swin),
        "neighborhood": (
            lambda c, **form: NeighborhoodAttention2d.unet(c, window=NEIGHBORS, **form),
            Unfolded,
        ),
        "axial": (AxialAttention2d.unet, ByAxis),
        "criss_cross": (CrissCrossAttention2d.unet, CommonCrissCross),
    }
    make, peer = kinds[case.kind]
    ours = _filled(make(channels, head_dim=head_dim, groups=groups))
    return ours if name == OURS else peer(ours)


def _filled(block: nn.Module) -> nn.Module:
    """Projections that do not start at 0, and scores that are spread."""
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, MapAttention):
                module.proj.weight.normal_(std=0.2)
                module.query.weight.mul_(2.0)
    return block


def _monai(ours: SelfAttention2d) -> nn.Module:
    peer = weights.to_monai(ours)
    peer.attn.use_flash_attention = True  # as its users may: the faster of its two ways
    return peer


class Peer(nn.Module):
    """The layers of one of our blocks around attention of another make."""

    def __init__(self, ours: MapAttention) -> None:
        super().__init__()
        layers = (ours.norm, ours.query, ours.key, ours.value, ours.proj)
        self.norm, self.query, self.key, self.value, self.proj = map(copy.deepcopy, layers)
        self.num_heads = ours.num_heads

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        maps = (layer(normed) for layer in (self.query, self.key, self.value))
        return x + self.proj(self.attend(*maps))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads * d, H, W), three times, -> the same shape."""
        raise NotImplementedError

    def heads(self, x: Tensor) -> Tensor:
        """(B, heads * d, H, W) -> (B, heads, d, H, W)."""
        return x.unflatten(1, (self.num_heads, -1))


class Swin(Peer):
    """torchvision's windows: the projections are done inside, as its function wants it."""

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.models.swin_transformer import shifted_window_attention

        layers = (self.query, self.key, self.value)
        places = WINDOW**2
        attended = shifted_window_attention(
            self.norm(x).permute(0, 2, 3, 1),
            torch.cat([layer.weight[:, :, 0, 0] for layer in layers]),
            self.proj.weight[:, :, 0, 0],
            x.new_zeros(1, self.num_heads, places, places),
            [WINDOW, WINDOW],
            self.num_heads,
            [0, 0],
            qkv_bias=torch.cat([layer.bias for layer in layers]),
            proj_bias=self.proj.bias,
        )
        return x + attended.permute(0, 3, 1, 2)


class Unfolded(Peer):
    """All keys and values of every neighbourhood gathered; at the border the window moves in."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = map(self.heads, (query, key, value))
        k, v = (self._gathered(x) for x in (key, value))
        scores = torch.einsum("bnchw,bnchwk->bnhwk", query, k) * query.shape[2] ** -0.5
        return torch.einsum("bnhwk,bnchwk->bnchw", scores.softmax(-1), v).flatten(1, 2)

    def _gathered(self, x: Tensor) -> Tensor:
        """(B, heads, d, H, W, keys)."""
        for axis in (3, 4):
            size = x.shape[axis]
            first = (torch.arange(size) - NEIGHBORS // 2).clamp(0, size - NEIGHBORS)
            places = first[:, None] + torch.arange(NEIGHBORS)
            x = x.index_select(axis, places.flatten()).unflatten(axis, places.shape)
            x = x.movedim(axis + 1, -1)
        return x.flatten(5)


class ByAxis(nn.Module):
    """Attention along the columns, then along the rows, each folded into the batch."""

    def __init__(self, ours: AxialAttention2d) -> None:
        super().__init__()
        self.columns, self.rows = _Along(ours.columns, 3), _Along(ours.rows, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.columns(x))


class _Along(Peer):
    def __init__(self, ours: MapAttention, axis: int) -> None:
        super().__init__(ours)
        self.axis = axis

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # (B, heads, d, H, W) -> (B, heads, the other axis, this axis, d)
        split = [self.heads(x).movedim((self.axis, 2), (-2, -1)) for x in (query, key, value)]
        attended = F.scaled_dot_product_attention(*split)
        return attended.movedim((-2, -1), (self.axis, 2)).flatten(1, 2)


class CommonCrissCross(Peer):
    """One softmax over the scores of row and column side by side, as CCNet's code has it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = map(self.heads, (query, key, value))
        by_row = torch.einsum("bnchw,bnchv->bnhwv", query, key)
        by_column = torch.einsum("bnchw,bncgw->bnhwg", query, key)
        itself = torch.eye(query.shape[3], dtype=torch.bool)[:, None]
        by_column = by_column.masked_fill(itself, float("-inf"))
        scores = torch.cat([by_row, by_column], -1) * query.shape[2] ** -0.5
        row, column = scores.softmax(-1).split([query.shape[4], query.shape[3]], -1)
        attended = torch.einsum("bnhwv,bnchv->bnchw", row, value)
        return (attended + torch.einsum("bnhwg,bncgw->bnchw", column, value)).flatten(1, 2)
