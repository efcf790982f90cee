"""What all attention blocks for feature maps have in common: around the attention itself."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cvattn.blocks.group_norm import MapGroupNorm
from cvattn.blocks.map_checks import (
    check_groups,
    check_map,
    fit_widths,
    near_divisors,
    refuse_batch_norm,
)
from cvattn.blocks.plain_layers import is_plain
from cvattn.core.initial_values import start_at_zero
from cvattn.core.observed import Observers

CONVOLUTIONS: dict[int, Callable[..., Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

# One node in a graph of torch.fx: it branches on shapes, which a tracer does not know.
torch.fx.wrap("check_map")


class MapAttention(nn.Module):
    """A residual branch on a map (B, C, ...): norm, q, k, v; attention, a projection, a factor.

    ``y = x + gamma * proj(attended)``. What is attended to is for the subclasses, which list the
    arguments: :class:`cvattn.SelfAttention2d` explains them.

    Attributes:
        dimensions: of the map's sizes.
        observers: see :mod:`cvattn.core.observed`.
    """

    observers: Observers = ()
    dimensions = 2

    def __init__(
        self,
        in_channels: int,
        *,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 1,
        norm_groups: int | None = None,
        scale: float | None = 1.0,
        gamma_init: float | None = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        has_proj = value_channels is not None or gamma_init is None
        widths = fit_widths(in_channels, qk_channels, value_channels, num_heads)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.scale = scale
        self.gamma_init = None if gamma_init is None else float(gamma_init)
        self.dropout = dropout
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = CONVOLUTIONS[self.dimensions]
        self.norm: MapGroupNorm | None = None
        if norm_groups is not None:
            check_groups(norm_groups, in_channels)
            self.norm = MapGroupNorm(norm_groups, in_channels, eps=1e-6, **like)
        self.query = conv(in_channels, widths[0], 1, **like)
        self.key, self.value = self._sources(in_channels, *widths, like)
        self.proj: nn.Module | None = None
        if has_proj:
            self.proj = conv(widths[1], in_channels, 1, **like)
        self.gamma: nn.Parameter | None = None
        if gamma_init is None:
            start_at_zero(cast(nn.Module, self.proj))
        else:
            self.gamma = nn.Parameter(torch.full((1,), float(gamma_init), **like))

    def _sources(
        self, in_channels: int, qk_channels: int, value_channels: int, like: dict[str, Any]
    ) -> tuple[nn.Module, nn.Module]:
        """The layers that give key and value."""
        conv = CONVOLUTIONS[self.dimensions]
        return conv(in_channels, qk_channels, 1, **like), conv(
            in_channels, value_channels, 1, **like
        )

    @classmethod
    def unet(
        cls, in_channels: int, *, head_dim: int | None = None, groups: int = 32, **others: Any
    ) -> Self:
        """The form of diffusion and segmentation U-Nets.

        Group norm, then q, k and v of C channels in heads, scores divided by sqrt(head_dim), and an
        output projection that starts at 0 instead of gamma. Ho et al., "Denoising Diffusion
        Probabilistic Models" (2020), whose released code has one head; the heads are from Dhariwal
        and Nichol, "Diffusion Models Beat GANs" (2021). Their blocks, diffusers' and MONAI's come
        in with ``cvattn.weights``.

        Args:
            in_channels: channels C of the map.
            head_dim: channels of a head, which divide C; None = one head.
            groups: of the group norm, which divide C.
            others: further arguments of the class.
        """
        return cls(in_channels, **{**unet_form(in_channels, head_dim, groups), **others})

    def projections(self) -> list[nn.Module]:
        """The layers with weights: q, k, v, and those of the output projection."""
        last = self.proj if isinstance(self.proj, nn.Sequential) else [self.proj]
        return [x for x in (self.query, self.key, self.value, *last) if x is not None]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, as after construction: after ``to_empty``, say, of a meta-device model."""
        for layer in self.projections():
            layer.reset_parameters()  # type: ignore[operator]
            if parametrize.is_parametrized(layer, "weight") and "reset_parameters" not in vars(
                layer
            ):
                # That wrote into a weight that is computed; what it is computed from is elsewhere.
                plain: Any = parametrize.type_before_parametrizations(layer)
                fresh = plain(layer.in_channels, layer.out_channels, 1, bias=False)
                nn.utils.parametrizations.spectral_norm(fresh)
                state = fresh.get_submodule("parametrizations").state_dict()
                layer.get_submodule("parametrizations").load_state_dict(state)
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.gamma is not None and self.gamma_init is not None:
            self.gamma.fill_(self.gamma_init)

    def _last(self) -> list[nn.Parameter]:
        """What the branch ends with: where all of it is 0, the block gives back what it gets."""
        if self.gamma is not None:
            return [self.gamma]
        proj: Any = self.proj
        return list((proj[-1] if isinstance(proj, nn.Sequential) else proj).parameters())

    def is_identity(self) -> bool:
        """Whether it gives back what it gets, as a new block does."""
        return not any(bool(each.any()) for each in self._last())

    @torch.no_grad()
    def make_identity(self) -> None:
        """Let it give back what it gets: gamma, or else the end of the projection, becomes 0."""
        for parameter in self._last():
            parameter.zero_()

    def _prepared(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Checked, normed, channels last: what the projections take."""
        check_map(x, mask, self.in_channels, self.dimensions)
        if mask is not None and self.training and self.proj is not None:
            refuse_batch_norm(self.proj)
        normed = x if self.norm is None else self.norm(x, mask)
        # Channels last is the layout of tokens, and 1x1 convolutions are faster in it on CPUs. (By
        # strides, not by memory_format=, which vmap refuses; after the norm, of whose layout
        # compilers have a wrong idea.)
        return normed.movedim(1, -1).contiguous().movedim(-1, 1)

    @property
    def _dropout_p(self) -> float:
        return self.dropout if self.training else 0.0

    def _heads(self, x: Tensor) -> Tensor:
        """(B, heads * d, ...) -> (B, heads, ..., d)."""
        return x.unflatten(1, (self.num_heads, -1)).movedim(2, -1)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, heads * d, ...) -> (B, heads, N, d)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def _add(self, x: Tensor, attended: Tensor, mask: Tensor | None) -> Tensor:
        """``x + gamma * proj(attended)``, of attended (B, heads, N, d); padding stays as it is."""
        # Back to a map: (B, heads, N, d) -> (B, heads * d, *sizes), channels last in memory.
        attended = attended.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        output = self._sum(x, attended).to(x.dtype)
        return output if mask is None else torch.where(mask[:, None], output, x)

    def _sum(self, x: Tensor, attended: Tensor) -> Tensor:
        proj: Any = self.proj
        if self.gamma is None:
            return x + proj(attended)
        if proj is None:
            return torch.addcmul(x, self.gamma, attended)
        if not (isinstance(x, Tensor) and is_plain(proj)):  # fx traces with no tensors
            return torch.addcmul(x, self.gamma, proj(attended))
        # gamma * (W a + b) as (gamma W) a + gamma b: the projected map need not be kept.
        weight, bias = self.gamma * proj.weight, proj.bias
        bias = None if bias is None else self.gamma * bias
        return x + proj._conv_forward(attended, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, num_heads={self.num_heads}"


def unet_form(in_channels: int, head_dim: int | None, groups: int) -> dict[str, Any]:
    """The arguments of :meth:`MapAttention.unet`."""
    head_dim = in_channels if head_dim is None else head_dim
    if head_dim < 1 or in_channels % head_dim:
        raise ValueError(
            f"head_dim={head_dim} does not divide in_channels={in_channels}; "
            f"{near_divisors(in_channels, head_dim)} do"
        )
    return {
        "qk_channels": in_channels,
        "value_channels": in_channels,
        "num_heads": in_channels // head_dim,
        "norm_groups": groups,
        "scale": None,
        "gamma_init": None,
    }
