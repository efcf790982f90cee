"""What may stand between a branch and the residual sum: LayerScale and DropPath."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first: (..., D) -> (..., D).

    Touvron et al., "Going deeper with Image Transformers" (2021).
    """

    def __init__(
        self,
        embed_dim: int,
        init: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init = float(init)
        self.gamma = nn.Parameter(torch.empty(embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        # In the branch's type: under autocast, one in float32 would lift the residual sum to it.
        return x * self.gamma.to(x.dtype)


class DropPath(nn.Module):
    """Drops a whole branch for some samples of the batch, in training only (stochastic depth).

    Huang et al., "Deep Networks with Stochastic Depth" (2016). Kept branches are divided by the
    probability of being kept, so that eval needs no correction.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"drop_path={probability} is not a probability in [0, 1)")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device).bernoulli_(keep)
        return x * (kept / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.probability}"
