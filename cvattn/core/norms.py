"""Which norm a layer has: LayerNorm or RMSNorm."""

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer", "rms"]
NORMS = ("layer", "rms")


class RMSNorm(nn.RMSNorm):
    """torch's, that under autocast computes in the dtype of its weights, as its layer norm does.

    torch's own takes a slower way there and warns of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


def make_norm(
    kind: Norm,
    width: int,
    *,
    eps: float,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A norm over the last ``width`` numbers, with learned weights.

    Args:
        kind: "layer" (Ba et al., 2016), or "rms", which subtracts no mean and has no bias (Zhang
            and Sennrich, "Root Mean Square Layer Normalization", 2019).
        width: of what is normalised.
        eps: added to the variance or the mean square.
        bias: of a layer norm.

    Raises:
        ValueError: another kind.
    """
    if kind == "layer":
        return nn.LayerNorm(width, eps=eps, bias=bias, device=device, dtype=dtype)
    if kind == "rms":
        return RMSNorm(width, eps=eps, device=device, dtype=dtype)
    raise ValueError(f"norm={kind!r}; expected one of {list(NORMS)}")
