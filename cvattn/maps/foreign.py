"""The attention of timm's ViTs, looked into from outside: while fused, it keeps its weights."""

import sys
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.attention import attention_weights


def is_timm_attention(module: nn.Module) -> bool:
    """Whether it is ``timm.layers.Attention``, of timm's plain ViTs; timm need not be there."""
    layers = sys.modules.get("timm.layers.attention")
    return layers is not None and type(module) is layers.Attention


def timm_attention_weights(
    module: Any,
    x: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    rows=None,
) -> Tensor:
    """Weights (B, heads, rows, N) of a ``timm.layers.Attention`` for its input x (B, N, D).

    The arguments up to ``is_causal`` are those of its ``forward``; a float mask is added there.
    """
    both = 2 * module.num_heads * module.head_dim  # values are not needed
    bias = None if module.qkv.bias is None else module.qkv.bias[:both]
    projected = F.linear(x, module.qkv.weight[:both], bias)
    q, k = projected.unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    is_bool = attn_mask is not None and not attn_mask.is_floating_point()
    return attention_weights(
        module.q_norm(q),
        module.k_norm(k),
        attn_mask=attn_mask if is_bool else None,
        attn_bias=None if is_bool else attn_mask,
        is_causal=is_causal,
        rows=rows,
    )
