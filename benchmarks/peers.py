"""The alternatives that people use, written by us from their descriptions, with our weights.

Map side: two ways through one block, since the forms in the wild differ in one step alone. Token
side: torch's and timm's own modules.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn import MultiHeadAttention, SelfAttention2d


class MapPeer(nn.Module):
    """``gamma * proj(attended) + x`` with 1x1 convolutions, as the common snippets arrange it.

    With the layers of :class:`SelfAttention2d` as it comes this is the common ``Self_Attn`` (Zhang
    et al., 2019, as most snippets have it); with those of ``SelfAttention2d.biggan`` it is the
    released form (Brock et al., 2019): keys and values max-pooled 2x2, an output convolution.
    """

    def __init__(self, ours: SelfAttention2d) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            copy.deepcopy(layer) for layer in (ours.query, ours.key, ours.value)
        )
        self.proj = copy.deepcopy(ours.proj)
        self.gamma = nn.Parameter(ours.gamma.detach().clone())
        self.kv_pool = ours.kv_pool

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.kv_pool > 1:
            key, value = F.max_pool2d(key, self.kv_pool), F.max_pool2d(value, self.kv_pool)
        attended = self.attend(query.flatten(2), key.flatten(2), value.flatten(2))
        attended = attended.unflatten(2, x.shape[2:])
        if self.proj is not None:
            attended = self.proj(attended)
        return self.gamma * attended + x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, d, N), (B, d, M), (B, Cv, M) -> (B, Cv, N)."""
        raise NotImplementedError


class CommonSelfAttention(MapPeer):
    """The common block: bmm, softmax, bmm, with all N x M weights stored."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        energy = torch.bmm(query.transpose(1, 2), key)
        weights = energy.softmax(dim=-1)
        return torch.bmm(value, weights.transpose(1, 2))


class SdpaSelfAttention(MapPeer):
    """The same block through ``F.scaled_dot_product_attention``, with nothing done to help it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2).unsqueeze(1) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return attended.squeeze(1).transpose(1, 2)


class TokenSdpa(nn.Module):
    """Our layers around ``F.scaled_dot_product_attention``; masks as that takes them."""

    def __init__(self, ours: MultiHeadAttention) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            copy.deepcopy(layer) for layer in (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)
        )
        self.num_heads = ours.num_heads

    def forward(
        self, x: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        heads = (self.num_heads, -1)
        q, k, v = (layer(x).unflatten(-1, heads).transpose(1, 2) for layer in self.layers[:3])
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        return self.layers[3](attended.transpose(1, 2).flatten(2))


def timm_attention(ours: MultiHeadAttention) -> nn.Module:
    """timm's ``Attention`` with our weights."""
    from timm.layers import Attention  # takes as long to import as torch, and memory

    peer = Attention(ours.embed_dim, num_heads=ours.num_heads, qkv_bias=True)
    weight, bias = _packed(ours)
    _set(peer.qkv.weight, weight)
    _set(peer.qkv.bias, bias)
    _set(peer.proj.weight, ours.out_proj.weight)
    _set(peer.proj.bias, ours.out_proj.bias)
    return peer


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """``nn.MultiheadAttention`` (batch first) with our weights."""
    peer = nn.MultiheadAttention(ours.embed_dim, ours.num_heads, batch_first=True)
    weight, bias = _packed(ours)
    _set(peer.in_proj_weight, weight)
    _set(peer.in_proj_bias, bias)
    _set(peer.out_proj.weight, ours.out_proj.weight)
    _set(peer.out_proj.bias, ours.out_proj.bias)
    return peer


def _packed(ours: MultiHeadAttention) -> tuple[Tensor, Tensor]:
    layers = (ours.q_proj, ours.k_proj, ours.v_proj)
    return torch.cat([layer.weight for layer in layers]), torch.cat([la.bias for la in layers])


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
