"""The Transformer encoder: self-attention and a feed-forward network, each in a residual branch."""

from torch import Tensor, nn

from cvattn.core.feed_forward import Activation, FeedForward
from cvattn.core.multi_head import MultiHeadAttention
from cvattn.core.residual import DropPath, LayerScale


class EncoderLayer(nn.Module):
    """One encoder layer on (B, N, D).

    Pre-norm (default): ``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``. Post-norm
    (``norm_first=False``), as in Vaswani et al. (2017): ``norm1(x + attn(x))`` and so on. Same
    arithmetic as ``nn.TransformerEncoderLayer``, with LayerScale and DropPath beside it for ViTs.

    Args:
        embed_dim, num_heads, ffn_dim: D, heads, and the width inside the feed-forward network.
        dropout: on the attention weights, after each branch and inside the feed-forward network.
        activation: "gelu" or "relu".
        norm_first: pre-norm or post-norm.
        bias: biases in every linear layer and norm.
        norm_eps: epsilon of the layer norms.
        layer_scale: initial LayerScale factor; None = no LayerScale.
        drop_path: probability of dropping a branch for a sample, in training.
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
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias)
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, dropout=dropout, bias=bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias)
        self.ffn = FeedForward(
            embed_dim, ffn_dim, activation=activation, dropout=dropout, bias=bias
        )
        self.branch1 = _branch_end(embed_dim, dropout, layer_scale, drop_path)
        self.branch2 = _branch_end(embed_dim, dropout, layer_scale, drop_path)

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D); mask and bias as in :class:`MultiHeadAttention`."""
        terms = {"attn_mask": attn_mask, "attn_bias": attn_bias, "is_causal": is_causal}
        if self.norm_first:
            x = x + self.branch1(self.self_attn(self.norm1(x), **terms))
            return x + self.branch2(self.ffn(self.norm2(x)))
        x = self.norm1(x + self.branch1(self.self_attn(x, **terms)))
        return self.norm2(x + self.branch2(self.ffn(x)))


class Encoder(nn.Module):
    """``num_layers`` encoder layers, and for pre-norm the final norm that its last sum needs.

    Args:
        drop_path: probability for the last layer; earlier ones rise to it linearly from 0.
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
            )
            for index in range(num_layers)
        )
        self.norm = (
            nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias) if norm_first else nn.Identity()
        )

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            x = layer(x, attn_mask=attn_mask, attn_bias=attn_bias, is_causal=is_causal)
        return self.norm(x)


def _branch_end(
    embed_dim: int, dropout: float, layer_scale: float | None, drop_path: float
) -> nn.Module:
    """What a branch passes through before it is added; only the parts that do something."""
    parts: list[nn.Module] = []
    if layer_scale is not None:
        parts.append(LayerScale(embed_dim, layer_scale))
    if dropout:
        parts.append(nn.Dropout(dropout))
    if drop_path:
        parts.append(DropPath(drop_path))
    return nn.Sequential(*parts)
