"""The attention of timm's ViTs, looked into from outside: while fused, it keeps its weights."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from cvattn.core.observed import Observed

_LOOKS_LIKE_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


def is_timm_attention(module: nn.Module) -> bool:
    """Whether it is ``timm.layers.Attention``, of timm's plain ViTs; timm need not be there."""
    layers = sys.modules.get("timm.layers.attention")
    return layers is not None and type(module) is layers.Attention


def observe_timm(block: Any, keep: Callable[[Observed], None]) -> Callable[[], None]:
    """Show the passes of a ``timm.layers.Attention``; what is returned ends it.

    Queries and keys are what its two norms (identities, mostly) gave in that pass: whatever
    projects them, they are those that were multiplied.
    """
    given: list[Tensor] = []  # first the queries, then the keys

    def note(_: nn.Module, args: tuple, output: Tensor) -> None:
        given.append(output)

    def show(module: Any, args: tuple, kwargs: dict[str, Any], _: object) -> None:
        both = given[-2:]  # a pass that was broken off may have left more
        given.clear()
        if len(both) < 2 or "forward" in vars(module):
            raise ValueError(
                "a timm.layers.Attention has a forward of its own, so that the weights it uses "
                "are not known; take that off to capture them"
            )
        query, key = both
        keep(Observed(query, key, _terms(module, *args, **kwargs)))

    norms = {id(norm): norm for norm in (block.q_norm, block.k_norm)}.values()
    handles = [norm.register_forward_hook(note) for norm in norms]
    handles.append(block.register_forward_hook(show, with_kwargs=True))

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def _terms(
    module: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> dict[str, Any]:
    """Of ``attention_weights``, from the arguments of timm's forward; a float mask is added."""
    is_bool = attn_mask is not None and not attn_mask.is_floating_point()
    return {
        "attn_mask": attn_mask if is_bool else None,
        "attn_bias": None if is_bool else attn_mask,
        "is_causal": is_causal,
        "scale": None if module.fused_attn else module.scale,
    }


def unseen_attention(model: nn.Module, seen: Iterable[nn.Module]) -> str:
    """Names of modules that look like attention and are none that is seen; the innermost each."""
    inside = {id(part) for block in seen for part in block.modules()}
    found: list[str] = []
    for name, module in model.named_modules():
        parts = list(module.modules())
        if (
            _LOOKS_LIKE_ATTENTION.search(type(module).__name__)
            and not any(id(part) in inside for part in parts)
            and not any(_LOOKS_LIKE_ATTENTION.search(type(part).__name__) for part in parts[1:])
        ):
            found.append(f"{name or 'the module itself'} ({type(module).__name__})")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
