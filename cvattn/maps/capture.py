"""Attention weights from any forward pass, without touching the pass itself."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention


class AttentionMaps(dict[str, Tensor]):
    """``{module name: weights (B, heads, rows, keys)}``, filled by the forward pass.

    ``query_grid[name]`` and ``key_grid[name]`` are (H, W) of the queries and keys of a feature-map
    block, laid out row by row. Token attention has no entry there: tokens need not be an image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query_grid: dict[str, tuple[int, int]] = {}
        self.key_grid: dict[str, tuple[int, int]] = {}


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks of a model by name, in order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (SelfAttention2d, MultiHeadAttention))
    }


@contextmanager
def capture_attention(
    model: nn.Module,
    layers: Iterable[str] | None = None,
    rows: Sequence[int] | Tensor | None = None,
) -> Iterator[AttentionMaps]:
    """Collect the attention weights of the forward passes run inside the ``with`` block.

    Each block is asked for its weights beside its output, which stays the same, bit for bit; the
    weights come from the queries and keys of that very pass, without gradients, and only for the
    rows that were asked for. A compiled model runs uncompiled inside the block, since compiled code
    calls no hooks.

    Args:
        model: any module that contains our attention blocks.
        layers: names of the blocks, as in ``model.named_modules()``; None = all.
        rows: query rows (token indices, y * W + x on maps); None = all.

    Yields:
        :class:`AttentionMaps`. A second forward pass replaces what the first one left.

    Raises:
        ValueError: unknown layer names (with near matches), or a model without attention blocks.
    """
    found = attention_modules(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention blocks of cvattn")
    wanted = list(found) if layers is None else list(layers)
    for name in wanted:
        if name not in found:
            near = get_close_matches(name, found) or list(found)
            raise ValueError(f"no attention block {name!r}; did you mean {', '.join(near)}?")

    maps = AttentionMaps()

    handles = [handle for name in wanted for handle in _watch(found[name], name, maps, rows)]
    try:
        with _uncompiled():
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    module: nn.Module, name: str, maps: AttentionMaps, rows: Sequence[int] | Tensor | None
) -> list[RemovableHandle]:
    """Hooks that ask a block for weights, keep them, and hand its caller what the caller wanted."""
    wishes: list[tuple[bool, Any]] = []  # the caller's own need_weights and rows

    def ask(module, args, kwargs):
        wishes.append((kwargs.get("need_weights", False), kwargs.get("rows")))
        # A caller with rows of its own is served from all of them.
        chosen = None if wishes[-1][0] else rows
        return args, {**kwargs, "need_weights": True, "rows": chosen}

    def keep(module, args, kwargs, result):
        output, weights = result
        wanted, own_rows = wishes.pop()
        if isinstance(module, SelfAttention2d):
            maps.query_grid[name] = tuple(args[0].shape[-2:])
            maps.key_grid[name] = module.key_grid(*args[0].shape[-2:])
        if not wanted:
            maps[name] = weights.detach()
            return output
        maps[name] = _take(weights, rows).detach()
        return output, _take(weights, own_rows)

    # Ours comes first behind the block, so that other hooks see the output that they know.
    return [
        module.register_forward_pre_hook(ask, with_kwargs=True),
        module.register_forward_hook(keep, with_kwargs=True, prepend=True),
    ]


def _take(weights: Tensor, rows: Sequence[int] | Tensor | None) -> Tensor:
    if rows is None:
        return weights
    return weights.index_select(2, torch.as_tensor(rows, device=weights.device))


def _uncompiled() -> AbstractContextManager[object]:
    """Whatever was compiled runs as written; torch's compiler is not loaded just to say so."""
    return (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else nullcontext()
    )
