"""Our attention in the place of another library's module: called as that is, by that name.

Each takes what the network's own code passes, hands on what ours can honour and refuses the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvattn.blocks import CrossAttention2d, SelfAttention2d
from cvattn.core import MultiHeadAttention


class DiffusersDropIn(nn.Module):
    """Ours in the place of diffusers' ``Attention``.

    Processors that compute the same can be set (and change nothing: ours chooses its own way);
    others, such as an IP adapter's, are refused.

    Args:
        attention: ours, from :func:`cvattn.weights.from_diffusers`.
        processor: the one that the module had.
        accepted: types of processors that compute what the module did.
    """

    def __init__(
        self,
        attention: SelfAttention2d | CrossAttention2d | MultiHeadAttention,
        processor: object,
        accepted: tuple[type, ...],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.heads = attention.num_heads
        self.processor = processor
        self._accepted = accepted

    def get_processor(self) -> object:
        """The last one that was set."""
        return self.processor

    def set_processor(self, processor: object) -> None:
        """Note a processor that computes the same.

        Raises:
            ValueError: another.
        """
        if type(processor) not in self._accepted:
            known = ", ".join(each.__name__ for each in self._accepted)
            raise ValueError(
                f"{type(processor).__name__} may compute something else than the attention of "
                f"cvattn that is in this place (which stands for {known}); set processors before "
                "replace_attention"
            )
        self.processor = processor

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """As diffusers' own; ``temb`` is not used there either without a spatial norm.

        Raises:
            ValueError: a further argument; a mask or states that this attention cannot take.
        """
        further = [name for name, value in cross_attention_kwargs.items() if value is not None]
        if further:
            raise ValueError(f"the attention of cvattn in this place takes no {', '.join(further)}")
        inner, context = self.attention, encoder_hidden_states
        if isinstance(inner, MultiHeadAttention):
            return inner(hidden_states, context, **self._terms(hidden_states, attention_mask))
        if attention_mask is not None:
            raise ValueError("the attention of cvattn in this place takes no attention_mask")
        if isinstance(inner, CrossAttention2d):
            if context is None:
                raise ValueError("encoder_hidden_states is None; expected the context's tokens")
            return inner(hidden_states, context)
        if context is not None:
            raise ValueError(
                "the attention of cvattn in this place is self-attention on a map: it takes no "
                "encoder_hidden_states"
            )
        return inner(hidden_states)

    def _terms(self, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Theirs is (B, S), (B, 1 or L, S) or with B * heads in front; bool, or added."""
        if mask is None:
            return {}
        batch, keys = x.shape[0], mask.shape[-1]
        heads = {batch: 1, batch * self.heads: self.heads}.get(mask.shape[0])
        if mask.ndim not in (2, 3) or heads is None:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; expected ({batch} or "
                f"{batch * self.heads}, queries or 1, keys)"
            )
        name = "attn_mask" if mask.dtype == torch.bool else "attn_bias"
        return {name: mask.reshape(batch, heads, -1, keys)}


class MonaiDropIn(nn.Module):
    """Ours in the place of MONAI's ``SABlock``.

    Args:
        attention: ours, from :func:`cvattn.weights.from_monai`.
        takes_scores_mask: of a block with ``use_flash_attention``, whose mask is that of torch's
            fused attention, not one of keys.
    """

    def __init__(self, attention: MultiHeadAttention, *, takes_scores_mask: bool) -> None:
        super().__init__()
        self.attention = attention
        self.takes_scores_mask = takes_scores_mask

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """As MONAI's own: a mask (B, N), where 0 hides a key."""
        if attn_mask is None:
            return self.attention(x)
        if self.takes_scores_mask:
            name = "attn_mask" if attn_mask.dtype == torch.bool else "attn_bias"
            return self.attention(x, **{name: attn_mask})
        if attn_mask.shape != x.shape[:2]:
            raise ValueError(
                f"attn_mask has shape {tuple(attn_mask.shape)}; expected {tuple(x.shape[:2])}, 0 "
                "where a key is hidden"
            )
        return self.attention(x, attn_mask=(attn_mask != 0)[:, None, None])


class ClassDropIn(nn.Module):
    """Ours in the place of BigGAN's ``Attention``, which is given the class too and ignores it."""

    def __init__(self, attention: SelfAttention2d) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, y: object = None) -> Tensor:
        return self.attention(x)


class PairDropIn(nn.Module):
    """Ours in the place of a ``Self_Attn`` that returns its weights too: (output, (B, N, N)).

    They are stored, as there: memory is linear only once the network takes the output alone.
    """

    def __init__(self, attention: SelfAttention2d) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, weights = self.attention(x, need_weights=True)
        return output, weights[:, 0]
