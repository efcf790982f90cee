"""The position-wise network of a Transformer layer."""

from typing import Literal

from torch import Tensor, nn

Activation = Literal["gelu", "relu"]
_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear on each token: (B, N, D) -> (B, N, D).

    Args:
        embed_dim: width D of a token.
        ffn_dim: width between the two layers.
        activation: "gelu" (ViT, BERT) or "relu" (the first Transformer).
        dropout: after the activation, in training only.
        bias: biases in both layers.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}; expected one of {sorted(_ACTIVATIONS)}")
        self.fc1 = nn.Linear(embed_dim, ffn_dim, bias=bias)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(ffn_dim, embed_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))
