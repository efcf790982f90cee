"""Attention weights from any forward pass, without touching the pass itself."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    computed after it from the inputs that each block was seen to receive, without gradients, and
    only for the rows that were asked for. A compiled model runs uncompiled inside the block, since
    compiled code calls no hooks.

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

    def watch(name: str):
        # After the block, not before it: the pass must be the first to use the weights. Spectral
        # norm moves its vectors at each use in training, autocast keeps the first cast it makes.
        @torch.no_grad()
        def hook(module, args, kwargs, output):
            with _standing_still(module):
                maps[name] = module.attention_weights(*args, **kwargs, rows=rows)
            if isinstance(module, SelfAttention2d):
                maps.query_grid[name] = tuple(args[0].shape[-2:])
                maps.key_grid[name] = module.key_grid(*args[0].shape[-2:])

        return hook

    handles = [found[name].register_forward_hook(watch(name), with_kwargs=True) for name in wanted]
    try:
        with _uncompiled():
            yield maps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _standing_still(module: nn.Module) -> Iterator[None]:
    """Eval mode for a second use of the weights; each submodule then gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _uncompiled() -> AbstractContextManager[object]:
    """Whatever was compiled runs as written; torch's compiler is not loaded just to say so."""
    return (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else nullcontext()
    )


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, for each head: (B, heads, rows, keys) -> (heads,).

    0 = every query looks at one key; log(keys) = at all of them alike.
    """
    weights = weights.double()
    return torch.special.entr(weights).sum(-1).mean(dim=(0, 2))
