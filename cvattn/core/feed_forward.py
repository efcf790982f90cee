"""The position-wise network of a Transformer layer."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvattn.core.norms import Norm, make_norm

Activation = Literal["gelu", "relu", "gelu_tanh", "quick_gelu", "swiglu"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _make_activation(name: Activation) -> nn.Module:
    known: dict[str, Callable[[], nn.Module]] = {
        "gelu": nn.GELU,
        "relu": nn.ReLU,
        "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
        "quick_gelu": QuickGELU,
        "swiglu": nn.SiLU,
    }
    if name not in known:
        raise ValueError(f"activation={name!r}; expected one of {sorted(known)}")
    return known[name]()


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear on each token: (B, N, D) -> (B, N, D).

    Args:
        embed_dim: width D of a token.
        ffn_dim: width between the two layers.
        activation: "gelu" (ViT, BERT), "relu" (the first Transformer), "gelu_tanh" (its
            approximation by tanh), "quick_gelu" (CLIP), or "swiglu": ``fc2(silu(gate(x)) *
            fc1(x))`` with a third layer ``gate`` (Shazeer, "GLU Variants Improve Transformer",
            2020). Of what others keep in one packed layer (DINOv2's w12, timm's ``SwiGLUPacked``),
            the first half is ``gate``, the second ``fc1``; in timm's ``SwiGLU`` they are fc1_g and
            fc1_x.
        dropout: after the activation, in training only.
        bias: biases in all layers.
        norm: a norm before the last layer, of all ``ffn_dim`` numbers (EVA-02, timm's
            ``scale_mlp``).
        norm_eps: its epsilon.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown activation or norm.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        norm: Norm | None = None,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        chosen = _make_activation(activation)
        self.fc1 = nn.Linear(embed_dim, ffn_dim, bias=bias, **made)
        self.activation = chosen
        gated = activation == "swiglu"
        self.gate = nn.Linear(embed_dim, ffn_dim, bias=bias, **made) if gated else None
        self.dropout = nn.Dropout(dropout)
        self.norm = None if norm is None else make_norm(norm, ffn_dim, eps=norm_eps, **made)
        self.fc2 = nn.Linear(ffn_dim, embed_dim, bias=bias, **made)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            x = self.activation(self.fc1(x))
        else:
            x = self.activation(self.gate(x)) * self.fc1(x)
        x = self.dropout(x)
        return self.fc2(x if self.norm is None else self.norm(x))
