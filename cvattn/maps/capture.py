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
from cvattn.maps.foreign import is_timm_attention, timm_attention_weights
from cvattn.maps.grids import Layout, spread, token_layout

Rows = Sequence[int] | Tensor | None


class AttentionMaps(dict[str, Tensor]):
    """``{module name: weights (B, heads, rows, keys)}``, filled by the forward pass.

    Where positions lie on an image, ``layout[name]`` (:class:`cvattn.maps.grids.Layout`) knows the
    (H, W) grids of queries and keys, row by row, and the tokens before them. It is known for
    feature-map blocks and for ViTs, ours and timm's; other tokens need not be an image.

    Attributes:
        layout: {module name: where its queries and keys lie}.
        query_grid, key_grid: {module name: (H, W)}, out of the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layout: dict[str, Layout] = {}

    @property
    def query_grid(self) -> dict[str, tuple[int, int]]:
        return {name: layout.query_grid for name, layout in self.layout.items()}

    @property
    def key_grid(self) -> dict[str, tuple[int, int]]:
        return {name: layout.key_grid for name, layout in self.layout.items()}

    def on_grid(self, name: str) -> Tensor:
        """The weights of a block as pictures: (B, heads, rows, H, W) on the grid of its queries.

        Prefix tokens (a class token) are cut off the keys; what a pooled key has is spread evenly
        over the positions that it was pooled from.

        Raises:
            ValueError: nothing was captured under that name, or its keys lie on no grid.
        """
        if name not in self:
            raise ValueError(f"no weights of {name!r}; captured: {', '.join(self) or 'nothing'}")
        if name not in self.layout:
            raise ValueError(f"{name}: its tokens lie on no grid that is known")
        return spread(self[name], self.layout[name])


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks of a model by name, in order: ours, and those of timm's ViTs."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (SelfAttention2d, MultiHeadAttention)) or is_timm_attention(module)
    }


@contextmanager
def capture_attention(
    model: nn.Module, layers: Iterable[str] | None = None, rows: Rows = None
) -> Iterator[AttentionMaps]:
    """Collect the attention weights of the forward passes run inside the ``with`` block.

    Each block is asked for its weights beside its output, which stays the same, bit for bit; the
    weights come from the queries and keys of that very pass, without gradients, and only for the
    rows that were asked for. A compiled model runs uncompiled inside the block, since compiled code
    calls no hooks. ``timm.layers.Attention``, fused or not, is looked at from outside: its queries
    and keys are computed once more.

    Args:
        model: any module that contains our attention blocks, or a ViT of timm.
        layers: names of the blocks, as in ``model.named_modules()``; None = all.
        rows: query rows (token indices, y * W + x on maps); None = all.

    Yields:
        :class:`AttentionMaps`. A second forward pass replaces what the first one left.

    Raises:
        ValueError: unknown layer names (with near matches), or a model without attention blocks.
    """
    found = attention_modules(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention blocks of cvattn and no timm.layers.Attention"
        )
    wanted = list(found) if layers is None else list(layers)
    for name in wanted:
        if name not in found:
            near = get_close_matches(name, found) or list(found)
            raise ValueError(f"no attention block {name!r}; did you mean {', '.join(near)}?")

    maps = AttentionMaps()

    handles = [
        handle
        for name in wanted
        for handle in (
            [_watch_timm(model, name, maps, rows)]
            if is_timm_attention(found[name])
            else _watch(model, name, maps, rows)
        )
    ]
    try:
        with _uncompiled():
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def _watch(model: nn.Module, name: str, maps: AttentionMaps, rows: Rows) -> list[RemovableHandle]:
    """Hooks that ask a block for weights, keep them, and hand its caller what the caller wanted."""
    wishes: list[tuple[bool, Any]] = []  # the caller's own need_weights and rows
    block = model.get_submodule(name)

    def ask(module, args, kwargs):
        wishes.append((kwargs.get("need_weights", False), kwargs.get("rows")))
        # A caller with rows of its own is served from all of them.
        chosen = None if wishes[-1][0] else rows
        return args, {**kwargs, "need_weights": True, "rows": chosen}

    def keep(module, args, kwargs, result):
        output, weights = result
        wanted, own_rows = wishes.pop()
        if isinstance(module, SelfAttention2d):
            size = (args[0].shape[-2], args[0].shape[-1])
            maps.layout[name] = Layout(size, module.key_grid(*size), kv_pool=module.kv_pool)
        else:
            _note_tokens(model, name, maps, output.shape[1], weights.shape[-1])
        if not wanted:
            maps[name] = weights.detach()
            return output
        maps[name] = _take(weights, rows).detach()
        return output, _take(weights, own_rows)

    # Ours comes first behind the block, so that other hooks see the output that they know.
    return [
        block.register_forward_pre_hook(ask, with_kwargs=True),
        block.register_forward_hook(keep, with_kwargs=True, prepend=True),
    ]


def _watch_timm(model: nn.Module, name: str, maps: AttentionMaps, rows: Rows) -> RemovableHandle:
    def look(module, args, kwargs, output):
        with torch.no_grad():
            maps[name] = timm_attention_weights(module, *args, **kwargs, rows=rows)
        _note_tokens(model, name, maps, output.shape[1], maps[name].shape[-1])

    return model.get_submodule(name).register_forward_hook(look, with_kwargs=True)


def _note_tokens(model: nn.Module, name: str, maps: AttentionMaps, queries: int, keys: int) -> None:
    layout = token_layout(model, name, queries, keys)
    maps.layout.pop(name, None)  # of an earlier pass, maybe of other images
    if layout is not None:
        maps.layout[name] = layout


def _take(weights: Tensor, rows: Rows) -> Tensor:
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
