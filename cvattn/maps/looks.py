"""Which modules are attention, as far as their classes say."""

import re
import sys
from collections.abc import Collection, Iterable

import torch
from torch import nn

from cvattn.blocks import MapAttention
from cvattn.core import MultiHeadAttention

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


def is_ours(module: nn.Module) -> bool:
    """Whether it is a block of cvattn, which shows its calls itself."""
    return isinstance(module, (MapAttention, MultiHeadAttention))


def is_timm_attention(module: nn.Module) -> bool:
    """Whether it is ``timm.layers.Attention``, of timm's plain ViTs; timm need not be there."""
    layers = sys.modules.get("timm.layers.attention")
    return layers is not None and type(module) is layers.Attention


def unseen_attention(
    model: nn.Module, seen: Iterable[nn.Module], among: Collection[nn.Module] | None = None
) -> str:
    """Names of modules that look like attention and are none that is seen; the innermost each.

    Args:
        among: the modules that count; None = all.
    """
    inside = {part for block in seen for part in block.modules()}
    found: list[str] = []
    for name, module in model.named_modules():
        parts = list(module.modules())
        if (
            looks_like_attention(module)
            and (among is None or module in among)
            and not any(part in inside for part in parts)
            and not any(looks_like_attention(part) for part in parts[1:])
        ):
            found.append(f"{name or 'the module itself'} ({_kind(module)})")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def looks_like_attention(module: nn.Module, name: str = "") -> bool:
    """By its class, or by the last part of its name in a model."""
    return any(map(_ATTENTION.search, (_kind(module), name.rpartition(".")[2])))


def _kind(module: nn.Module) -> str:
    scripted = isinstance(module, torch.jit.ScriptModule)
    return str(module.original_name) if scripted else type(module).__name__
