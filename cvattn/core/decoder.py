"""The Transformer decoder: masked self-attention, cross-attention to the memory, feed-forward."""

from typing import Any

import torch
from torch import Tensor, nn

from cvattn.core.cache import DecoderCache, LayerCache
from cvattn.core.feed_forward import Activation, FeedForward
from cvattn.core.multi_head import MultiHeadAttention, QKVBias
from cvattn.core.norms import Norm, make_norm
from cvattn.core.rotary import Rotation


class DecoderLayer(nn.Module):
    """One decoder layer on (B, L, D), looking at the encoder's output (B, S, D).

    Vaswani et al. (2017), section 3.1; same arithmetic as ``nn.TransformerDecoderLayer``, except
    that self-attention is causal unless told otherwise. The two attentions have parameters of their
    own.

    Args:
        all: as in :class:`cvattn.core.EncoderLayer`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        norm_first: bool = True,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm: Norm = "layer",
        qkv_bias: QKVBias | None = None,
        qk_norm: Norm | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        norms: dict[str, Any] = {"eps": norm_eps, "bias": bias, **made}
        attention: dict[str, Any] = {
            "dropout": dropout,
            "bias": bias,
            "qkv_bias": qkv_bias,
            "qk_norm": qk_norm,
            "norm_eps": norm_eps,
            **made,
        }
        self.norm_first = norm_first
        self.norm1 = make_norm(norm, embed_dim, **norms)
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, **attention)
        self.norm2 = make_norm(norm, embed_dim, **norms)
        self.cross_attn = MultiHeadAttention(embed_dim, num_heads, **attention)
        self.norm3 = make_norm(norm, embed_dim, **norms)
        self.ffn = FeedForward(
            embed_dim, ffn_dim, activation=activation, dropout=dropout, bias=bias, **made
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        attn_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        is_causal: bool = True,
        rotary: Rotation | None = None,
        memory_rotary: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Decode x with the memory in view.

        Args:
            x: (B, L, D), what has been produced so far.
            memory: (B, S, D), the encoder's output.
            attn_mask: which of x may be attended to, besides causality (padding, say).
            memory_mask: which of the memory may be attended to.
            is_causal: token i sees only tokens up to i.
            rotary: where the tokens of x are, for self-attention, and for cross-attention if
            memory_rotary: says where those of the memory are, in the same units.
            cache: of the tokens before x, which x is then the continuation of.

        Returns:
            (B, L, D).
        """
        own = (attn_mask, is_causal, rotary, cache)
        asked = None if memory_rotary is None else rotary
        cross = (memory, memory_mask, (asked, memory_rotary), cache)
        if self.norm_first:
            x = x + self._own(self.norm1(x), *own)
            x = x + self._cross(self.norm2(x), *cross)
            return x + self.dropout(self.ffn(self.norm3(x)))
        x = self.norm1(x + self._own(x, *own))
        x = self.norm2(x + self._cross(x, *cross))
        return self.norm3(x + self.dropout(self.ffn(x)))

    def _own(
        self,
        x: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        rotary: Rotation | None,
        cache: LayerCache | None,
    ) -> Tensor:
        if cache is not None and x.shape[1] == 1:
            is_causal = False  # the last token sees all: there is nothing to hide
        found = self.self_attn(
            x,
            attn_mask=attn_mask,
            is_causal=is_causal,
            rotary=rotary,
            cache=None if cache is None else cache.own,
        )
        return self.dropout(found)

    def _cross(
        self,
        x: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        rotary: tuple[Rotation | None, Rotation | None],
        cache: LayerCache | None,
    ) -> Tensor:
        found = self.cross_attn(
            x,
            memory,
            attn_mask=memory_mask,
            rotary=rotary[0],
            key_rotary=rotary[1],
            cache=None if cache is None else cache.cross,
        )
        return self.dropout(found)


class Decoder(nn.Module):
    """``num_layers`` decoder layers, and for pre-norm the final norm.

    Args:
        all but ``num_layers``: as in :class:`DecoderLayer`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        norm_first: bool = True,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm: Norm = "layer",
        qkv_bias: QKVBias | None = None,
        qk_norm: Norm | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                embed_dim,
                num_heads,
                ffn_dim,
                dropout=dropout,
                activation=activation,
                norm_first=norm_first,
                bias=bias,
                norm_eps=norm_eps,
                norm=norm,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_layers)
        )
        self.norm = (
            make_norm(norm, embed_dim, eps=norm_eps, bias=bias, device=device, dtype=dtype)
            if norm_first
            else nn.Identity()
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        attn_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        is_causal: bool = True,
        rotary: Rotation | None = None,
        memory_rotary: Rotation | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """x (B, L, D), memory (B, S, D) -> (B, L, D).

        Args:
            rotary: where the tokens of x are; with a cache, ``Rotary(...)(L, start=cache.length)``.
            memory_rotary: where the memory's are, if cross-attention is to know.
            cache: of the tokens before x (:meth:`new_cache`); the memory must stay the same.
        """
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                memory,
                attn_mask=attn_mask,
                memory_mask=memory_mask,
                is_causal=is_causal,
                rotary=rotary,
                memory_rotary=memory_rotary,
                cache=None if cache is None else cache.layers[index],
            )
        return self.norm(x)

    def new_cache(self) -> DecoderCache:
        """An empty cache, to be passed with each piece of a sequence in turn."""
        return DecoderCache(len(self.layers))
