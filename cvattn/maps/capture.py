"""Attention weights from any forward pass, without touching the pass itself."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from cvattn.blocks import MapAttention
from cvattn.core.copies import running_uncompiled, uncompiled
from cvattn.core.observed import Observed
from cvattn.maps.attention_maps import AttentionMaps
from cvattn.maps.calls import Rows
from cvattn.maps.foreign import ForeignCalls
from cvattn.maps.grids import Grid, Layout
from cvattn.maps.looks import is_ours, is_timm_attention
from cvattn.maps.recorder import Recorder


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks that are known before a pass, by name: ours, and those of timm's ViTs.

    Other attention shows itself in a pass.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if is_ours(module) or is_timm_attention(module)
    }


@contextmanager
def capture_attention(
    model: nn.Module,
    layers: str | Iterable[str] | None = None,
    rows: Rows = None,
    *,
    detach: bool = True,
    softmaxes: bool = False,
    grid: Grid | None = None,
) -> Iterator[AttentionMaps]:
    """Collect the attention weights of the forward passes run inside the ``with`` block.

    Of our blocks, and of any model whose attention passes through
    ``F.scaled_dot_product_attention`` or ``F.multi_head_attention_forward`` (torch's own modules,
    torchvision, timm, transformers, diffusers), under the name of the module that calls it: each
    shows the queries and keys of that very pass, whatever made them (adapters, norms, positions,
    autocast), under its masks and biases. Weights are computed from these beside the pass, which
    stays the same, bit for bit, and only for the rows that were asked for. Of a module that
    computes a softmax itself (Swin of torchvision, MONAI) its result is taken, if the class or the
    name of the module says "attention" or "attn"; of any other module if the pass shows nothing
    else. Windows of Swin and MaxViT are laid back onto the map, so that ``rows`` are positions
    there. A compiled model runs uncompiled inside the block.

    Args:
        model: any module.
        layers: name of an attention module, or several, as in ``model.named_modules()``; None =
            all. A block with several names is known by each.
        rows: query rows (token indices, y * W + x on maps); None = all.
        detach: without gradients. With False, losses of the weights reach the model's parameters,
            and :meth:`AttentionMaps.gradients` leads from a score to the weights; under activation
            checkpointing (``use_reentrant=False``) the backward pass then has to run inside the
            ``with`` block too.
        softmaxes: take every softmax over the last of three or four dimensions as weights.
        grid: (H, W) of tokens whose grid is not found; those before it are prefix tokens.

    Yields:
        :class:`AttentionMaps`. A second forward pass replaces what the first one left. Of a block
        that runs several times in one pass the last run is there, a warning says so, and ``runs``
        has all. What activation checkpointing computes again in the backward pass does not count.
        A warning names modules that look like attention, ran, and showed nothing (kernels of their
        own, TorchScript).

    Raises:
        ValueError: unknown layer names (with near matches); in the pass, ``detach=False`` where
            gradients are off, or a block of ours whose forward is not its class's and shows
            nothing; at the end of the ``with`` block, passes that showed no attention at all, or
            none in one of the layers.
    """
    model = uncompiled(model)
    names = [layers] if isinstance(layers, str) else layers
    recorder = Recorder(model, names, rows, detach=detach)
    foreign = ForeignCalls(model, recorder, softmaxes=softmaxes, detach=detach, grid=grid)
    with ExitStack() as stack:
        stack.callback(foreign.running.close)
        for block in filter(is_ours, model.modules()):
            stack.callback(_observe(block, _keeper(block, recorder, foreign)))
        stack.enter_context(foreign.mode)
        with running_uncompiled():
            yield recorder.maps
    if foreign.running.ran:
        recorder.check(foreign.running.ran)


def _keeper(
    block: nn.Module, recorder: Recorder, foreign: ForeignCalls
) -> Callable[[Observed], None]:
    def keep(seen: Observed) -> None:
        foreign.note_ours()
        layout: Layout | None = None
        if seen.size is not None:
            layout = Layout(seen.size, seen.key_size, kv_pool=seen.kv_pool)
        elif not isinstance(block, MapAttention):  # of which positions are no plane, then
            _, queries, keys = seen.sides
            layout = foreign.layout(queries, keys, is_cross=not seen.is_self)
        recorder.keep(block, seen, layout)()

    return keep


def _observe(block: Any, keep: Callable[[Observed], None]) -> Callable[[], None]:
    """Have a block of ours show its passes; what is returned ends it."""
    shown: list[bool] = []

    def show(seen: Observed) -> None:
        shown.append(True)
        keep(seen)

    def check(module: nn.Module, *_: object) -> None:
        if not shown:
            raise ValueError(
                f"{type(module).__name__} has a forward of its own that shows no queries and keys "
                "(it calls none of self.observers), so its weights cannot be captured"
            )
        shown.clear()

    block.observers = (*block.observers, show)
    handle = block.register_forward_hook(check)

    def end() -> None:
        handle.remove()
        block.observers = tuple(each for each in block.observers if each is not show)

    return end
