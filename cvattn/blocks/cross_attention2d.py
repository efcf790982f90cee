"""Cross-attention: the positions of a feature map look at tokens, or at another map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.blocks.map_attention import MapAttention
from cvattn.core.attention import attention, attention_weights
from cvattn.core.attention.inputs import check_rows_wanted
from cvattn.core.observed import Observed

# One node each in a graph of torch.fx: they branch on shapes, which a tracer does not know.
for _name in ("attention", "attention_weights", "_as_tokens"):
    torch.fx.wrap(_name)


class CrossAttention2d(MapAttention):
    """``y = x + gamma * proj(softmax(scale * q k^T) v)``: q from a map, k and v from a context.

    The context is tokens (B, S, context_channels), such as a text's, or a feature map
    (B, context_channels, H', W') of any size. Queries are 1x1 convolutions of the map, keys and
    values linear layers of the context. Rombach et al., "High-Resolution Image Synthesis with
    Latent Diffusion Models" (2022), section 3.3, without the Transformer block around it. A new
    block is the identity.

    Args:
        in_channels: channels C of the map.
        context_channels: of the context; None = C.
        form: ``qk_channels``, ``value_channels``, ``num_heads``, ``norm_groups`` (of the map),
            ``scale``, ``gamma_init``, ``dropout``, ``device``, ``dtype``, as in
            :class:`cvattn.SelfAttention2d`, whose form of U-Nets there is here too:
            ``CrossAttention2d.unet(channels, context_channels=768, head_dim=64)``.

    Shape:
        x (B, C, H, W), context -> (B, C, H, W).

    Raises:
        ValueError: channels that do not fit each other or the inputs.
    """

    def __init__(
        self, in_channels: int, *, context_channels: int | None = None, **form: Any
    ) -> None:
        self.context_channels = in_channels if context_channels is None else context_channels
        if self.context_channels < 1:
            raise ValueError(f"context_channels={context_channels} must be at least 1")
        super().__init__(in_channels, **form)

    def _sources(
        self, in_channels: int, qk_channels: int, value_channels: int, like: dict[str, Any]
    ) -> tuple[nn.Module, nn.Module]:
        context = self.context_channels
        return nn.Linear(context, qk_channels, **like), nn.Linear(context, value_channels, **like)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        need_weights: bool = False,
        rows: Sequence[int] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Add to each position of the map what it gathers from the context.

        Args:
            x: (B, C, H, W).
            context: (B, S, context_channels), or a map (B, context_channels, H', W').
            mask: bool (B, H, W), True = real, False = padding, which stays as it is.
            context_mask: bool (B, S), or (B, H', W') of a map; True = may be attended to. Where
                nothing may, what is gathered is 0.
            need_weights: return ``(output, weights)``, weights (B, heads, H*W, S).
            rows: with ``need_weights``, the positions y * W + x whose weights are wanted.

        Returns:
            (B, C, H, W), or the pair.
        """
        check_rows_wanted(need_weights, rows)
        given, attn_mask = _as_tokens(context, context_mask, x, self.context_channels)
        q = self._tokens(self.query(self._prepared(x, mask)))
        k, v = (
            layer(given).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        terms: dict[str, Any] = {"attn_mask": attn_mask, "scale": self.scale}
        attended = attention(q, k, v, dropout_p=self._dropout_p, **terms)
        for observe in self.observers:
            size = (x.shape[-2], x.shape[-1])
            keys = (context.shape[-2], context.shape[-1]) if context.ndim == 4 else None
            lies: dict[str, Any] = {"size": size, "key_size": keys, "is_self": False}
            observe(Observed(q, k, v, attended, terms, **lies))
        weights = attention_weights(q, k, rows=rows, **terms) if need_weights else None
        del q, k, v  # which need not be there beside what comes now
        output = self._add(x, attended, mask)
        return output if weights is None else (output, weights)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, context_channels={self.context_channels}"


def _as_tokens(
    context: Tensor, context_mask: Tensor | None, x: Tensor, channels: int
) -> tuple[Tensor, Tensor | None]:
    """(B, S, channels) of either kind of context, and its mask (B, 1, 1, S)."""
    is_map = context.ndim == 4
    given = context.shape[1] if is_map else context.shape[-1]
    if context.ndim not in (3, 4) or given != channels or context.shape[0] != x.shape[0]:
        raise ValueError(
            f"context has shape {tuple(context.shape)}; expected tokens ({x.shape[0]}, tokens, "
            f"{channels}) or a map ({x.shape[0]}, {channels}, height, width)"
        )
    places = context.shape[2:] if is_map else context.shape[1:2]
    if context_mask is not None:
        if context_mask.dtype != torch.bool:
            raise TypeError(
                f"context_mask is {context_mask.dtype}; expected bool, True = may be attended to "
                "(of ones and zeros: context_mask.bool())"
            )
        if context_mask.shape != (context.shape[0], *places):
            raise ValueError(
                f"context_mask has shape {tuple(context_mask.shape)}; expected "
                f"{(context.shape[0], *places)}"
            )
        context_mask = context_mask.flatten(1)[:, None, None]
    return context.flatten(2).mT if is_map else context, context_mask
