"""The Transformer encoder: self-attention and a feed-forward network, each in a residual branch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvattn.core.feed_forward import Activation, FeedForward
from cvattn.core.multi_head import MultiHeadAttention, QKVBias
from cvattn.core.norms import Norm, make_norm
from cvattn.core.residual import DropPath, LayerScale
from cvattn.core.rotary import Rotation


class EncoderLayer(nn.Module):
    """One encoder layer on (B, N, D).

    Pre-norm (default): ``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``. Post-norm
    (``norm_first=False``), as in Vaswani et al. (2017): ``norm1(x + attn(x))`` and so on. Same
    arithmetic as ``nn.TransformerEncoderLayer``, with LayerScale and DropPath beside it for ViTs.

    Args:
        embed_dim, num_heads, ffn_dim: D, heads, and the width inside the feed-forward network.
        dropout: on the attention weights, after each branch and inside the feed-forward network.
        activation: as in :class:`cvattn.core.FeedForward`.
        norm_first: pre-norm or post-norm.
        bias: biases in every linear layer and layer norm.
        norm_eps: epsilon of all norms.
        layer_scale: initial LayerScale factor; None = no LayerScale.
        drop_path: probability of dropping a branch for a sample, in training.
        norm: "layer" or "rms".
        qkv_bias, qk_norm: as in :class:`cvattn.core.MultiHeadAttention`.
        ffn_norm: a norm inside the feed-forward network too (EVA-02).
        device, dtype: of the parameters.
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
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm: Norm = "layer",
        qkv_bias: QKVBias | None = None,
        qk_norm: Norm | None = None,
        ffn_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        norms: dict[str, Any] = {"eps": norm_eps, "bias": bias, **made}
        self.norm_first = norm_first
        self.norm1 = make_norm(norm, embed_dim, **norms)
        self.self_attn = MultiHeadAttention(
            embed_dim,
            num_heads,
            dropout=dropout,
            bias=bias,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            norm_eps=norm_eps,
            **made,
        )
        self.norm2 = make_norm(norm, embed_dim, **norms)
        self.ffn = FeedForward(
            embed_dim,
            ffn_dim,
            activation=activation,
            dropout=dropout,
            bias=bias,
            norm=norm if ffn_norm else None,
            norm_eps=norm_eps,
            **made,
        )
        self.branch1, self.branch2 = (
            _branch_end(embed_dim, dropout, layer_scale, drop_path, **made) for _ in range(2)
        )

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
        rotary: Rotation | None = None,
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D); the others as in :class:`cvattn.core.MultiHeadAttention`."""
        terms: dict[str, Any] = {
            "attn_mask": attn_mask,
            "attn_bias": attn_bias,
            "is_causal": is_causal,
            "rotary": rotary,
        }
        if self.norm_first:
            x = x + self.branch1(self.self_attn(self.norm1(x), **terms))
            return x + self.branch2(self.ffn(self.norm2(x)))
        x = self.norm1(x + self.branch1(self.self_attn(x, **terms)))
        return self.norm2(x + self.branch2(self.ffn(x)))


class Encoder(nn.Module):
    """``num_layers`` encoder layers, and for pre-norm the final norm that its last sum needs.

    Args:
        drop_path: probability for the last layer; earlier ones rise to it linearly from 0.
        final_norm: False = no norm after the last layer; post-norm layers need none.
        gradient_checkpointing: in training, keep only what goes into each layer, and compute the
            rest again for the gradients: a layer's worth of memory in place of all layers', for a
            forward pass more. An attribute, which may be set later. Same numbers, dropout included.
        others: as in :class:`EncoderLayer`.
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
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm: Norm = "layer",
        qkv_bias: QKVBias | None = None,
        qk_norm: Norm | None = None,
        ffn_norm: bool = False,
        final_norm: bool = True,
        gradient_checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(
                embed_dim,
                num_heads,
                ffn_dim,
                dropout=dropout,
                activation=activation,
                norm_first=norm_first,
                bias=bias,
                norm_eps=norm_eps,
                layer_scale=layer_scale,
                drop_path=drop_path * index / max(1, num_layers - 1),
                norm=norm,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                ffn_norm=ffn_norm,
                device=device,
                dtype=dtype,
            )
            for index in range(num_layers)
        )
        self.norm = (
            make_norm(norm, embed_dim, eps=norm_eps, bias=bias, device=device, dtype=dtype)
            if norm_first and final_norm
            else nn.Identity()
        )
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
        rotary: Rotation | None = None,
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D); the others as in :class:`cvattn.core.MultiHeadAttention`."""
        for layer in self.layers:
            x = self._through(layer, x, attn_mask, attn_bias, is_causal, rotary)
        return self.norm(x)

    def layer_outputs(
        self,
        x: Tensor,
        layers: Sequence[int],
        *,
        norm: bool = True,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
        rotary: Rotation | None = None,
    ) -> list[Tensor]:
        """What comes out of chosen layers, (B, N, D) each, in the order asked for.

        Args:
            layers: indices; negative ones count from the end. Layers after the last of them are
                not computed.
            norm: through the final norm, each of them.
            others: as in :meth:`forward`.

        Raises:
            ValueError: an index out of range.
        """
        count = len(self.layers)
        wrong = [index for index in layers if not -count <= index < count]
        if wrong:
            raise ValueError(f"layers={list(layers)}: there are {count}, -{count} to {count - 1}")
        wanted = [index % count for index in layers]
        found: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers[: max(wanted, default=-1) + 1]):
            x = self._through(layer, x, attn_mask, attn_bias, is_causal, rotary)
            if index in wanted:
                found[index] = self.norm(x) if norm else x
        return [found[index] for index in wanted]

    def _through(self, layer: nn.Module, x: Tensor, *terms: Any) -> Tensor:
        named = dict(zip(("attn_mask", "attn_bias", "is_causal", "rotary"), terms, strict=True))
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, use_reentrant=False, **named)
        return layer(x, **named)


def _branch_end(
    embed_dim: int, dropout: float, layer_scale: float | None, drop_path: float, **made: Any
) -> nn.Module:
    """What a branch passes through before it is added; only the parts that do something."""
    parts: list[nn.Module] = []
    if layer_scale is not None:
        parts.append(LayerScale(embed_dim, layer_scale, **made))
    if dropout:
        parts.append(nn.Dropout(dropout))
    if drop_path:
        parts.append(DropPath(drop_path))
    return nn.Sequential(*parts)
