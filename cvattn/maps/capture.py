"""Attention weights from any forward pass, without touching the pass itself."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import Tensor, nn

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

    The main path runs as it always does and its output is the same, bit for bit: the weights are
    computed beside it from the inputs that each block was seen to receive, without gradients, and
    only for the rows that were asked for.

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

    def watch(name: str):  # type: ignore[no-untyped-def]
        @torch.no_grad()
        def hook(module, args, kwargs):  # type: ignore[no-untyped-def]
            maps[name] = module.attention_weights(*args, **kwargs, rows=rows)
            if isinstance(module, SelfAttention2d):
                maps.query_grid[name] = tuple(args[0].shape[-2:])
                maps.key_grid[name] = module.key_grid(*args[0].shape[-2:])

        return hook

    handles = [
        found[name].register_forward_pre_hook(watch(name), with_kwargs=True) for name in wanted
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, for each head: (B, heads, rows, keys) -> (heads,).

    0 = every query looks at one key; log(keys) = at all of them alike.
    """
    weights = weights.double()
    return torch.special.entr(weights).sum(-1).mean(dim=(0, 2))
