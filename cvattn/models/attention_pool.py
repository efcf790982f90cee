"""One vector from many tokens, by attention."""

from typing import Any

import torch
from torch import Tensor, nn

from cvattn.core import FeedForward, MultiHeadAttention
from cvattn.core.feed_forward import Activation
from cvattn.core.norms import Norm, make_norm


class AttentionPool(nn.Module):
    """A learned query attends to all tokens: ``y = attn(query, x)``, then ``y + ffn(norm(y))``.

    Zhai et al., "Scaling Vision Transformers" (2022), and the head of SigLIP (Zhai et al., 2023);
    timm's ``AttentionPoolLatent``, with one query (``global_pool="map"``).

    Args:
        embed_dim, num_heads, ffn_dim, activation, norm, norm_eps: as in the encoder's layers.
        device, dtype: of the parameters.

    Shape:
        (B, N, D) -> (B, D).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Parameter(torch.empty(embed_dim, **made))
        self.attn = MultiHeadAttention(embed_dim, num_heads, **made)
        self.norm = make_norm(norm, embed_dim, eps=norm_eps, **made)
        self.ffn = FeedForward(embed_dim, ffn_dim, activation=activation, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the query anew."""
        nn.init.trunc_normal_(self.query, std=self.query.numel() ** -0.5)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed (also what timm's optimisers ask for)."""
        return {"query"}

    def forward(self, x: Tensor) -> Tensor:
        # A copy: what torch's counters are given of a parameter's view, they take for a leaf.
        query = self.query.to(x.dtype).repeat(x.shape[0], 1, 1)
        y = self.attn(query, x)
        return (y + self.ffn(self.norm(y)))[:, 0]
