"""The Transformer decoder: masked self-attention, cross-attention to the memory, feed-forward."""

from torch import Tensor, nn

from cvattn.core.cache import DecoderCache, LayerCache
from cvattn.core.feed_forward import Activation, FeedForward
from cvattn.core.multi_head import MultiHeadAttention


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
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias)
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, dropout=dropout, bias=bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias)
        self.cross_attn = MultiHeadAttention(embed_dim, num_heads, dropout=dropout, bias=bias)
        self.norm3 = nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias)
        self.ffn = FeedForward(
            embed_dim, ffn_dim, activation=activation, dropout=dropout, bias=bias
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
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Decode x with the memory in view.

        Args:
            x: (B, L, D), what has been produced so far.
            memory: (B, S, D), the encoder's output.
            attn_mask: which of x may be attended to, besides causality (padding, say).
            memory_mask: which of the memory may be attended to.
            is_causal: token i sees only tokens up to i.
            cache: of the tokens before x, which x is then the continuation of.

        Returns:
            (B, L, D).
        """
        if self.norm_first:
            x = x + self._own(self.norm1(x), attn_mask, is_causal, cache)
            x = x + self._cross(self.norm2(x), memory, memory_mask, cache)
            return x + self.dropout(self.ffn(self.norm3(x)))
        x = self.norm1(x + self._own(x, attn_mask, is_causal, cache))
        x = self.norm2(x + self._cross(x, memory, memory_mask, cache))
        return self.norm3(x + self.dropout(self.ffn(x)))

    def _own(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool, cache: LayerCache | None
    ) -> Tensor:
        if cache is not None and x.shape[1] == 1:
            is_causal = False  # the last token sees all: there is nothing to hide
        own = None if cache is None else cache.own
        return self.dropout(self.self_attn(x, attn_mask=attn_mask, is_causal=is_causal, cache=own))

    def _cross(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        cross = None if cache is None else cache.cross
        return self.dropout(self.cross_attn(x, memory, attn_mask=memory_mask, cache=cross))


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
            )
            for _ in range(num_layers)
        )
        self.norm = (
            nn.LayerNorm(embed_dim, eps=norm_eps, bias=bias) if norm_first else nn.Identity()
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        attn_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        is_causal: bool = True,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """x (B, L, D), memory (B, S, D) -> (B, L, D).

        Args:
            cache: of the tokens before x (:meth:`new_cache`); the memory must stay the same.
        """
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                memory,
                attn_mask=attn_mask,
                memory_mask=memory_mask,
                is_causal=is_causal,
                cache=None if cache is None else cache.layers[index],
            )
        return self.norm(x)

    def new_cache(self) -> DecoderCache:
        """An empty cache, to be passed with each piece of a sequence in turn."""
        return DecoderCache(len(self.layers))
